// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/nodeagent/nodeagent/dataplane/maps"
)

// PrepareLink attaches the programs to the host side of a link whose endpoint
// is not known yet: nothing passes it until UpdateEndpoint, which is then a
// matter of microseconds. A pool of links that wait for pods calls this ahead.
func (d *Dataplane) PrepareLink(_ context.Context, ifindex int) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.started {
		return ErrNotStarted
	}
	return d.attach(ifindex)
}

// UpdateEndpoint brings an endpoint into the data path, or changes it: when it
// returns, the pod can send and receive, as its network policies allow. Its link must exist. An address that
// belonged to another endpoint belongs to this one from now on.
func (d *Dataplane) UpdateEndpoint(ctx context.Context, ep Endpoint) error {
	if err := ep.validate(); err != nil {
		return err
	}
	// Programs first: no packet may pass without them.
	if err := d.PrepareLink(ctx, ep.IfIndex); err != nil {
		return fmt.Errorf("endpoint %s: %w", ep.ID, err)
	}
	if err := d.awaitPolicies(ctx, ep); err != nil {
		d.mu.Lock()
		defer d.mu.Unlock()
		d.forget(ep.IfIndex)
		return fmt.Errorf("endpoint %s: %w", ep.ID, err)
	}
	// Nobody compiles without it until it is in place.
	d.policies.mu.Lock()
	defer d.policies.mu.Unlock()
	if err := d.compilePolicies(ctx, &ep); err != nil {
		return fmt.Errorf("endpoint %s: %w", ep.ID, err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.started {
		return ErrNotStarted
	}
	old, known := d.endpoints[ep.ID]
	moved, err := d.putAddrs(ep)
	if err != nil {
		return fmt.Errorf("endpoint %s: %w", ep.ID, err)
	}
	d.endpoints[ep.ID] = ep
	var errs []error
	if moved || known && (old.IfIndex != ep.IfIndex || old.limited() != ep.limited()) {
		errs = append(errs, d.bumpEpoch())
	}
	if known {
		errs = append(errs, d.dropAddrs(ep.ID, old.Addrs, ep.Addrs))
		if old.IfIndex != ep.IfIndex {
			d.forget(old.IfIndex)
		}
	}
	if len(ep.HostPorts) > 0 || len(old.HostPorts) > 0 {
		errs = append(errs, d.setHostPorts(ctx, ep))
	}
	return errors.Join(errs...)
}

// putAddrs gives an endpoint its addresses, and says whether one of them was
// another endpoint's.
func (d *Dataplane) putAddrs(ep Endpoint) (moved bool, err error) {
	slot, err := d.limit(ep)
	if err != nil {
		return false, err
	}
	v := maps.Endpoint{IfIndex: ep.IfIndex, MAC: ep.MAC, HostMAC: ep.HostMAC, Rate: slot}
	for _, a := range ep.Addrs {
		moved = moved || d.owners[a] != "" && d.owners[a] != ep.ID
		if err := d.eps.Put(a, v); err != nil {
			return moved, err
		}
		d.owners[a] = ep.ID
		delete(d.purge, a)
	}
	return moved, nil
}

func (ep Endpoint) limited() bool { return ep.IngressRate > 0 || ep.EgressRate > 0 }

// limit sets an endpoint's bandwidth and returns its slot, 0 when it has no
// limit. Slots are even: each has two buckets.
func (d *Dataplane) limit(ep Endpoint) (uint32, error) {
	slot := d.limits[ep.ID]
	if !ep.limited() {
		delete(d.limits, ep.ID)
		return 0, nil
	}
	if slot == 0 {
		used := map[uint32]bool{}
		for _, s := range d.limits {
			used[s] = true
		}
		for slot = 2; used[slot]; slot += 2 {
		}
		if slot/2 > d.rates.Slots() {
			return 0, fmt.Errorf("%w: %d endpoints have a bandwidth limit already", ErrFull, len(d.limits))
		}
	}
	if err := d.rates.Put(slot, ep.EgressRate, ep.IngressRate); err != nil {
		return 0, err
	}
	d.limits[ep.ID] = slot
	return slot, nil
}

// attach brings the programs to a pod's link, once.
func (d *Dataplane) attach(ifindex int) error {
	if d.attached[ifindex] {
		return nil
	}
	if err := d.kernel.Pod(ifindex); err != nil {
		return err
	}
	delete(d.forgotten, ifindex)
	d.attached[ifindex] = true
	d.handover[ifindex] = true
	wake(d.podsChanged)
	return nil
}

// bumpEpoch makes every flow look up its endpoints again. It begins with the
// clock, so that records of an earlier load never agree by chance.
func (d *Dataplane) bumpEpoch() error {
	now, err := maps.Now()
	if err != nil {
		return err
	}
	d.epoch = max(d.epoch+1, uint32(now))
	if err := d.kernel.Epoch.Set(d.epoch); err != nil {
		return fmt.Errorf("set epoch: %w", err)
	}
	return nil
}

// forget lets the worker take the programs off an interface, which is quick
// once the interface is gone and slow before. One that an endpoint still has
// keeps them: it may have got another id, or other addresses.
func (d *Dataplane) forget(ifindex int) {
	for _, ep := range d.endpoints {
		if ep.IfIndex == ifindex {
			return
		}
	}
	delete(d.attached, ifindex)
	delete(d.handover, ifindex)
	d.forgotten[ifindex] = true
	wake(d.podsChanged)
}

// dropAddrs takes addresses from an endpoint, except those that it keeps and
// those that another one has by now. Their flows are forgotten.
func (d *Dataplane) dropAddrs(id string, addrs, keep []netip.Addr) error {
	var errs []error
	for _, a := range addrs {
		if d.owners[a] != id || slices.Contains(keep, a) {
			continue
		}
		if err := d.eps.Delete(a); err != nil {
			errs = append(errs, err)
			continue
		}
		delete(d.owners, a)
		d.purge[a] = true
	}
	wake(d.sweepNow)
	return errors.Join(append(errs, d.bumpEpoch())...)
}

// DeleteEndpoint takes an endpoint out of the data path; its link may be gone
// already. Deleting an unknown endpoint succeeds.
func (d *Dataplane) DeleteEndpoint(ctx context.Context, id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.started {
		return ErrNotStarted
	}
	return d.deleteEndpoint(ctx, id)
}

func (d *Dataplane) deleteEndpoint(ctx context.Context, id string) error {
	ep, ok := d.endpoints[id]
	if !ok {
		return nil
	}
	err := d.dropAddrs(id, ep.Addrs, nil)
	if len(ep.HostPorts) > 0 {
		err = errors.Join(err, d.setHostPorts(ctx, Endpoint{ID: id}))
	}
	if err != nil {
		return fmt.Errorf("delete endpoint %s: %w", id, err)
	}
	delete(d.endpoints, id)
	delete(d.limits, id)
	d.forget(ep.IfIndex)
	return nil
}

// PruneEndpoints deletes every endpoint that is not in keep, those of an
// earlier daemon included.
func (d *Dataplane) PruneEndpoints(ctx context.Context, keep []string) error {
	want := make(map[string]bool, len(keep))
	for _, id := range keep {
		want[id] = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.started {
		return ErrNotStarted
	}
	d.pruned = true
	var errs []error
	for id := range d.endpoints {
		if !want[id] {
			errs = append(errs, d.deleteEndpoint(ctx, id))
		}
	}
	have, err := d.eps.All()
	if err != nil {
		return errors.Join(append(errs, err)...)
	}
	for a, ep := range have {
		if ep.Host || d.owners[a] != "" {
			continue
		}
		errs = append(errs, d.eps.Delete(a))
		d.purge[a] = true
		d.forget(ep.IfIndex)
	}
	errs = append(errs, d.bumpEpoch())
	if !d.cfg.Services {
		// Nobody else will say that the services of an earlier daemon may go.
		errs = append(errs, d.pruneTable())
	}
	return errors.Join(append(errs, d.prunePins())...)
}

// prunePins forgets pinned links of interfaces that no endpoint has.
func (d *Dataplane) prunePins() error {
	pins, err := d.kernel.AttachedPods()
	if err != nil {
		return err
	}
	used := map[int]bool{}
	for _, ep := range d.endpoints {
		used[ep.IfIndex] = true
	}
	for _, idx := range pins {
		if !used[idx] && !d.attached[idx] {
			d.forget(idx)
		}
	}
	return nil
}

// Endpoints returns the endpoints in the data path, in no particular order.
func (d *Dataplane) Endpoints() []Endpoint {
	d.mu.Lock()
	defer d.mu.Unlock()
	out := make([]Endpoint, 0, len(d.endpoints))
	for _, ep := range d.endpoints {
		out = append(out, ep)
	}
	return out
}

// wake makes a worker look again; a wake-up that is pending already will do.
func wake(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default:
	}
}
