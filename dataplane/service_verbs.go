// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"maps"
	"slices"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// atOnce is how many services are compiled and written in one piece: it bounds
// what is held meanwhile.
const atOnce = 4096

// UpdateServices adds services or replaces them, each with all its slices. A
// service that cannot be programmed is reported in the error; the others are in
// place all the same.
func (d *Dataplane) UpdateServices(ctx context.Context, objs []service.Object) error {
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	if d.table == nil {
		return ErrNotStarted
	}
	if !d.cfg.Services {
		return nil
	}
	var errs []error
	for piece := range slices.Chunk(objs, atOnce) {
		for _, o := range piece {
			d.services[o.Name()] = o
		}
		errs = append(errs, d.program(ctx, piece, false))
	}
	return errors.Join(errs...)
}

// wish is what an owner wants.
type wish struct {
	owner   string
	entries []service.Entry
}

// program compiles services and writes the difference. The caller holds svcMu,
// which is given up for a moment when a map has to grow, unless it holds mu too.
func (d *Dataplane) program(ctx context.Context, objs []service.Object, holdsMu bool) error {
	for {
		c := &change{}
		wishes := d.compile(c, objs)
		want := d.table.short(wishes)
		if len(want) == 0 || holdsMu {
			c.errs = append(c.errs, d.grow(ctx, want))
			for _, w := range wishes {
				d.table.set(c, w.owner, w.entries)
			}
			return d.commit(c)
		}
		// What is known may have changed meanwhile: it is compiled again.
		d.svcMu.Unlock()
		d.mu.Lock()
		d.svcMu.Lock()
		err := ErrNotStarted
		if d.table != nil {
			err = d.grow(ctx, want)
		}
		d.mu.Unlock()
		if err != nil {
			return err
		}
	}
}

func (d *Dataplane) compile(c *change, objs []service.Object) []wish {
	wishes := make([]wish, 0, len(objs))
	for _, o := range objs {
		entries, err := service.Compile(o, d.svcNode)
		if err != nil {
			c.errs = append(c.errs, err)
		}
		wishes = append(wishes, wish{serviceOwner(o.Name()), entries})
		if err := d.health.set(o.Name(), service.HealthOf(o, d.svcNode)); err != nil {
			c.errs = append(c.errs, err)
		}
	}
	return wishes
}

// remove puts the end of a service into a change. The caller holds svcMu.
func (d *Dataplane) remove(c *change, n types.NamespacedName) {
	delete(d.services, n)
	d.table.set(c, serviceOwner(n), nil)
	if err := d.health.set(n, service.Health{}); err != nil {
		c.errs = append(c.errs, err)
	}
}

func serviceOwner(n types.NamespacedName) string { return "service " + n.String() }

// DeleteServices removes services; unknown ones are no fault.
func (d *Dataplane) DeleteServices(_ context.Context, names []types.NamespacedName) error {
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	if d.table == nil {
		return ErrNotStarted
	}
	c := &change{}
	for _, n := range names {
		d.remove(c, n)
	}
	return d.commit(c)
}

// PruneServices deletes every service that is not in keep, those of an earlier
// daemon included. Call it once the watch is complete, and after the endpoints
// with host ports are known.
func (d *Dataplane) PruneServices(ctx context.Context, keep []types.NamespacedName) error {
	want := make(map[types.NamespacedName]bool, len(keep))
	for _, n := range keep {
		want[n] = true
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	if d.table == nil {
		return ErrNotStarted
	}
	c := &change{}
	for n := range d.services {
		if !want[n] {
			d.remove(c, n)
		}
	}
	d.table.prune(c)
	if err := d.commit(c); err != nil {
		return err
	}
	return d.takeFlows(ctx)
}

// pruneTable removes the frontends that an earlier daemon left.
func (d *Dataplane) pruneTable() error {
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	c := &change{}
	d.table.prune(c)
	return d.commit(c)
}

// setHostPorts makes the table agree with an endpoint's host ports.
func (d *Dataplane) setHostPorts(ctx context.Context, ep Endpoint) error {
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	w := wish{"endpoint " + ep.ID, hostPorts(ep)}
	c := &change{}
	c.errs = append(c.errs, d.grow(ctx, d.table.short([]wish{w})))
	d.table.set(c, w.owner, w.entries)
	return d.commit(c)
}

// recompile compiles all services again after the node changed: which backends
// are local and which are near depends on it.
func (d *Dataplane) recompile(ctx context.Context) error {
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	node := d.serviceNode()
	if d.svcNode == node {
		return nil
	}
	d.svcNode = node
	var errs []error
	for piece := range slices.Chunk(slices.Collect(maps.Values(d.services)), atOnce) {
		errs = append(errs, d.program(ctx, piece, true))
	}
	return errors.Join(errs...)
}

// commit writes a change. Flows to backends that are lost are forgotten soon.
func (d *Dataplane) commit(c *change) error {
	for _, b := range c.lost {
		d.lost[b] = true
	}
	if len(c.lost) > 0 {
		wake(d.sweepNow)
	}
	for _, r := range c.rival {
		d.log.Warn("two want one frontend", "frontend", r)
	}
	err := d.table.commit(c)
	for _, id := range c.ids {
		err = errors.Join(err, d.stats.Delete(id))
	}
	return err
}
