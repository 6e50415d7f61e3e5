// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// UpdateServices adds services or replaces them, each with all its slices, in
// one batch. A service that cannot be programmed is reported in the error; the
// others are in place all the same.
func (d *Dataplane) UpdateServices(_ context.Context, objs []service.Object) error {
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	if d.table == nil {
		return ErrNotStarted
	}
	if !d.cfg.Services {
		return nil
	}
	c := &change{}
	for _, o := range objs {
		d.services[o.Name()] = o
		d.compile(c, o)
	}
	return d.commit(c)
}

// compile puts what a service asks for into a change. The caller holds svcMu.
func (d *Dataplane) compile(c *change, o service.Object) {
	entries, err := service.Compile(o, d.svcNode)
	if err != nil {
		c.errs = append(c.errs, err)
	}
	d.table.set(c, serviceOwner(o.Name()), entries)
	if err := d.health.set(o.Name(), service.HealthOf(o, d.svcNode)); err != nil {
		c.errs = append(c.errs, err)
	}
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
func (d *Dataplane) PruneServices(_ context.Context, keep []types.NamespacedName) error {
	want := make(map[types.NamespacedName]bool, len(keep))
	for _, n := range keep {
		want[n] = true
	}
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
	return d.commit(c)
}

// setHostPorts makes the table agree with an endpoint's host ports.
func (d *Dataplane) setHostPorts(ep Endpoint) error {
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	c := &change{}
	d.table.set(c, "endpoint "+ep.ID, hostPorts(ep))
	return d.commit(c)
}

// recompile compiles all services again after the node changed: which backends
// are local and which are near depends on it.
func (d *Dataplane) recompile() error {
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	node := d.node.serviceNode()
	if d.svcNode == node {
		return nil
	}
	d.svcNode = node
	c := &change{}
	for _, o := range d.services {
		d.compile(c, o)
	}
	return d.commit(c)
}

// commit writes a change. Flows to backends that are lost are forgotten soon.
func (d *Dataplane) commit(c *change) error {
	for _, b := range c.lost {
		d.lost[b] = true
	}
	if len(c.lost) > 0 {
		wake(d.sweepNow)
	}
	err := d.table.commit(c)
	for _, id := range c.ids {
		err = errors.Join(err, d.stats.Delete(id))
	}
	return err
}
