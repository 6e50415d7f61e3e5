// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"time"

	"github.com/nodeagent/nodeagent/dataplane/attach"
	"github.com/nodeagent/nodeagent/dataplane/maps"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// Waits of the worker that follows the host: changes come in bursts, and the
// kernel may drop a notification when there are too many.
const (
	hostSettle = 200 * time.Millisecond
	hostResync = time.Minute
)

// SetNode says what is known of the node. It may be called again at any time,
// also before Start.
func (d *Dataplane) SetNode(ctx context.Context, n Node) error {
	if err := n.validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.node, d.nodeKnown = n, true
	if !d.started {
		return nil
	}
	host, err := attach.ReadHost()
	if err != nil {
		return err
	}
	return errors.Join(d.syncHost(host), d.recompile(ctx))
}

// syncHost makes the maps agree with the node's interfaces and addresses. The
// caller holds mu.
func (d *Dataplane) syncHost(host attach.Host) error {
	d.host = d.relevant(host)
	return errors.Join(d.syncUplinks(), d.syncHostAddrs(), d.syncRoutes())
}

// relevant leaves out interfaces that have nothing to say to the data path:
// those of pods, above all, which come and go all the time.
func (d *Dataplane) relevant(host attach.Host) attach.Host {
	var out attach.Host
	for _, i := range host.Interfaces {
		if len(i.Addrs) > 0 || i.Default || i.Name == d.cfg.Tunnel.Device || d.isUplink(i) {
			out.Interfaces = append(out.Interfaces, i)
		}
	}
	return out
}

// syncHostAddrs makes the node's addresses known as its own.
func (d *Dataplane) syncHostAddrs() error {
	have, err := d.eps.All()
	if err != nil {
		return err
	}
	want := slices.Concat(d.host.Addrs(), d.node.Addrs)
	var errs []error
	for _, a := range want {
		if d.owners[a] == "" && !have[a].Host {
			errs = append(errs, d.eps.Put(a, maps.Endpoint{Host: true}))
		}
	}
	for a, ep := range have {
		if ep.Host && !slices.Contains(want, a) {
			errs = append(errs, d.eps.Delete(a))
		}
	}
	return errors.Join(errs...)
}

// isUplink says whether an interface is a way out: configured, or a default
// route or an address of the node is there.
func (d *Dataplane) isUplink(i attach.Interface) bool {
	names := d.cfg.Uplinks
	if len(names) == 0 {
		names = d.node.Uplinks
	}
	if len(names) > 0 {
		return slices.Contains(names, i.Name)
	}
	if i.Name == d.cfg.Tunnel.Device || i.Name == "lo" {
		return false
	}
	return i.Default || slices.ContainsFunc(i.Addrs, func(a netip.Addr) bool { return slices.Contains(d.node.Addrs, a) })
}

// syncUplinks attaches to uplinks, and lets those go that are none any more.
func (d *Dataplane) syncUplinks() error {
	want := map[int]maps.Uplink{}
	fast := map[int]bool{}
	next := map[int]string{}
	var errs []error
	for _, i := range d.host.Interfaces {
		if !d.isUplink(i) {
			continue
		}
		next[i.Index] = i.Name
		fast[i.Index] = d.accelerate(i)
		want[i.Index] = maps.Uplink{
			XDP:        fast[i.Index],
			Addr4:      d.sourceAddr(i, true),
			Addr6:      d.sourceAddr(i, false),
			Masquerade: d.node.Masquerade,
		}
		if _, ok := d.uplinks[i.Index]; ok {
			continue
		}
		if err := d.kernel.Uplink(i.Index); err != nil {
			errs = append(errs, fmt.Errorf("uplink %s: %w", i.Name, err))
			delete(next, i.Index)
			continue
		}
		d.log.Info("uplink attached", "if_name", i.Name, "if_index", i.Index)
	}
	errs = append(errs, d.ups.Sync(want))
	old, err := d.kernel.AttachedUplinks()
	errs = append(errs, err)
	for _, idx := range old {
		if _, ok := next[idx]; !ok && d.nodeKnown {
			errs = append(errs, d.kernel.ForgetUplink(idx))
		}
	}
	d.uplinks = next
	errs = append(errs, d.slowDown(fast))
	names := make([]string, 0, len(next))
	for _, n := range next {
		names = append(names, n)
	}
	return errors.Join(append(errs, attach.Forwarding(names))...)
}

// sourceAddr is the address that flows leave an uplink with: one of the node's
// if it is there, else the first.
func (d *Dataplane) sourceAddr(i attach.Interface, v4 bool) netip.Addr {
	var first netip.Addr
	for _, a := range i.Addrs {
		if a.Is4() != v4 {
			continue
		}
		if slices.Contains(d.node.Addrs, a) {
			return a
		}
		if !first.IsValid() {
			first = a
		}
	}
	if first.IsValid() {
		return first
	}
	// An uplink without an address of its own: the node's primary one.
	for _, a := range d.node.Addrs {
		if a.Is4() == v4 {
			return a
		}
	}
	return first
}

// followHost brings the maps up to date when the host changes.
func (d *Dataplane) followHost(ctx context.Context, deaf <-chan struct{}) {
	resync := time.NewTicker(hostResync)
	defer resync.Stop()
	for {
		force := true
		select {
		case <-ctx.Done():
			return
		case <-deaf:
			var err error
			if deaf, err = attach.Watch(ctx, d.hostChanged, &d.concerns); err != nil {
				// The next resync looks, and tries again.
				d.log.ErrorContext(ctx, "watch host", "err", err)
			}
		case <-resync.C:
			if deaf == nil {
				closed := make(chan struct{})
				close(closed)
				deaf = closed
			}
		case <-d.hostChanged:
			force = false
			if !settle(ctx, hostSettle) {
				return
			}
		}
		if err := d.lookAtHost(force); err != nil {
			d.log.ErrorContext(ctx, "follow host", "err", err)
		}
	}
}

// lookAtHost reads the host, which endpoints need not wait for, and brings the
// maps up to date when something has changed.
func (d *Dataplane) lookAtHost(force bool) error {
	host, err := attach.ReadHost()
	if err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if force || !reflect.DeepEqual(d.relevant(host), d.host) {
		return d.syncHost(host)
	}
	if d.underChanged() {
		return d.syncRoutes()
	}
	return nil
}

// settle waits until a burst of changes is over; false when ctx ended first.
func settle(ctx context.Context, wait time.Duration) bool {
	t := time.NewTimer(wait)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}

// serviceNode is what services have to know of the node.
func (d *Dataplane) serviceNode() service.Node {
	n := service.Node{Name: d.node.Name, Zone: d.node.Zone}
	switch mode := d.cfg.ServiceOptions.ExternalMode; mode {
	case ExternalSNAT:
	case ExternalAnnotated:
		n.External = service.ModeSNAT
	default:
		n.External = mode
	}
	return n
}
