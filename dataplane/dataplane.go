// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"sync"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// ErrInvalid marks input that cannot be programmed; nothing was changed.
var ErrInvalid = errors.New("invalid")

// Deps are what the data path needs from others.
type Deps struct {
	Log *slog.Logger
}

// Dataplane holds the desired state and makes the kernel agree with it. All
// methods may be called concurrently; Update and Delete are idempotent.
//
// After Start the kernel still works with what an earlier daemon left in the
// pinned maps. Updates are merged into it; only the Prune verbs, called once
// the caller knows its desired state to be complete, remove what is left over.
type Dataplane struct {
	cfg  Config
	deps Deps

	// mu guards the desired state below.
	mu        sync.Mutex
	node      Node
	endpoints map[string]Endpoint
	peers     map[string]Peer
	services  map[types.NamespacedName]service.Object
}

// New returns a data path that has not touched the kernel yet.
func New(cfg Config, deps Deps) (*Dataplane, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	return &Dataplane{
		cfg:       cfg,
		deps:      deps,
		endpoints: map[string]Endpoint{},
		peers:     map[string]Peer{},
		services:  map[types.NamespacedName]service.Object{},
	}, nil
}

// SetNode says what is known of the node. It may be called again at any time,
// also before Start.
func (d *Dataplane) SetNode(_ context.Context, n Node) error {
	if err := n.validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.node = n
	return nil
}

// UpdateEndpoint brings an endpoint into the data path, or changes it: when it
// returns, the pod can send and receive. Its link must exist. An address that
// belonged to another endpoint belongs to this one from now on.
func (d *Dataplane) UpdateEndpoint(_ context.Context, ep Endpoint) error {
	if err := ep.validate(); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.endpoints[ep.ID] = ep
	return nil
}

// DeleteEndpoint takes an endpoint out of the data path; its link may be gone
// already. Deleting an unknown endpoint succeeds.
func (d *Dataplane) DeleteEndpoint(_ context.Context, id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.endpoints, id)
	return nil
}

// PruneEndpoints deletes every endpoint that is not in keep, those of an
// earlier daemon included.
func (d *Dataplane) PruneEndpoints(_ context.Context, keep []string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.endpoints, func(id string, _ Endpoint) bool { return !slices.Contains(keep, id) })
	return nil
}

// UpdatePeers replaces the set of other nodes. Peers that did not change are
// not touched.
func (d *Dataplane) UpdatePeers(_ context.Context, peers []Peer) error {
	next := make(map[string]Peer, len(peers))
	var errs []error
	for _, p := range peers {
		if err := p.validate(); err != nil {
			errs = append(errs, err)
		}
		next[p.Name] = p
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.peers = next
	return nil
}

// UpdateServices adds services or replaces them, each with all its slices, in
// one batch. A service that cannot be programmed is reported in the error; the
// others are in place all the same.
func (d *Dataplane) UpdateServices(_ context.Context, objs []service.Object) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, o := range objs {
		d.services[o.Name()] = o
	}
	return nil
}

// DeleteServices removes services; unknown ones are no fault.
func (d *Dataplane) DeleteServices(_ context.Context, names []types.NamespacedName) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, n := range names {
		delete(d.services, n)
	}
	return nil
}

// PruneServices deletes every service that is not in keep, those of an earlier
// daemon included. Call it once the watch is complete.
func (d *Dataplane) PruneServices(_ context.Context, keep []types.NamespacedName) error {
	want := make(map[types.NamespacedName]bool, len(keep))
	for _, n := range keep {
		want[n] = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	maps.DeleteFunc(d.services, func(n types.NamespacedName, _ service.Object) bool { return !want[n] })
	return nil
}

func (ep Endpoint) validate() error {
	if ep.ID == "" {
		return fmt.Errorf("%w endpoint: no id", ErrInvalid)
	}
	if ep.IfIndex <= 0 {
		return fmt.Errorf("%w endpoint %s: no interface index", ErrInvalid, ep.ID)
	}
	if len(ep.MAC) != 6 || len(ep.HostMAC) != 6 {
		return fmt.Errorf("%w endpoint %s: hardware addresses of %d and %d bytes", ErrInvalid, ep.ID, len(ep.MAC), len(ep.HostMAC))
	}
	if len(ep.Addrs) == 0 {
		return fmt.Errorf("%w endpoint %s: no address", ErrInvalid, ep.ID)
	}
	for _, a := range ep.Addrs {
		if !validAddr(a) {
			return fmt.Errorf("%w endpoint %s: address %s", ErrInvalid, ep.ID, a)
		}
	}
	return nil
}

func (n Node) validate() error {
	for _, a := range n.Addrs {
		if !validAddr(a) {
			return fmt.Errorf("%w node %s: address %s", ErrInvalid, n.Name, a)
		}
	}
	for _, p := range slices.Concat(n.PodCIDRs, n.NonMasqueradeCIDRs) {
		if !p.IsValid() {
			return fmt.Errorf("%w node %s: range %s", ErrInvalid, n.Name, p)
		}
	}
	return nil
}

func (p Peer) validate() error {
	if p.Name == "" {
		return fmt.Errorf("%w peer: no name", ErrInvalid)
	}
	switch p.Mode {
	case "", "auto", "native", "vxlan":
	default:
		return fmt.Errorf("%w peer %s: mode %q", ErrInvalid, p.Name, p.Mode)
	}
	for _, a := range p.Addrs {
		if !validAddr(a) {
			return fmt.Errorf("%w peer %s: address %s", ErrInvalid, p.Name, a)
		}
	}
	for _, c := range p.PodCIDRs {
		if !c.IsValid() {
			return fmt.Errorf("%w peer %s: range %s", ErrInvalid, p.Name, c)
		}
	}
	return nil
}
