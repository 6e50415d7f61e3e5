// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nodeagent/nodeagent/dataplane/maps"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// mostEntries is the largest map that is ever made.
const mostEntries = 1 << 24

// short says which maps have too little room for what is wanted, and the sizes
// they need; nothing when there is enough. It may overestimate.
func (t *table) short(wishes []wish) map[string]uint32 {
	fronts, most := 0, uint64(0)
	for _, w := range wishes {
		for _, e := range w.entries {
			key := keyOf(e.Frontend)
			if _, left := t.left[key]; !left && t.fronts[key] == nil {
				fronts++
			}
			most += uint64(classOf(rowsOf(e)))
		}
	}
	want := map[string]uint32{}
	if used := uint64(len(t.fronts) + len(t.left) + fronts); fronts > 0 && used > uint64(t.maps.MaxFrontends()) {
		want["svc"] = roomier(t.maps.MaxFrontends(), used)
	}
	if most <= uint64(t.slots.size-t.slots.next) {
		return want
	}
	classes := map[uint32]uint32{}
	for _, w := range wishes {
		t.slices(w, classes)
	}
	if !t.slots.fits(classes) {
		room := uint64(t.slots.next)
		for class, n := range classes {
			room += uint64(class) * uint64(n)
		}
		want["be"] = roomier(t.slots.size, room)
	}
	return want
}

// slices counts, by capacity, the slices that an owner does not have yet.
func (t *table) slices(w wish, classes map[uint32]uint32) {
	old := t.owners[w.owner]
	var seen [][]service.Backend
	for _, e := range w.entries {
		n := rowsOf(e)
		if n == 0 || old.hasSlice(e, n) || containsSlice(seen, e.Backends) {
			continue
		}
		seen = append(seen, e.Backends)
		if was, ok := t.left[keyOf(e.Frontend)]; !ok || !t.leftEqual(was, rowsFor(e), e.Frontend.Proto) {
			classes[classOf(n)]++
		}
	}
}

func (o *owned) hasSlice(e service.Entry, rows uint32) bool {
	return o != nil && slices.ContainsFunc(o.slices, func(s *slice) bool {
		return s.count == rows && slices.Equal(s.backends, e.Backends)
	})
}

// rowsFor is what the array holds for an entry.
func rowsFor(e service.Entry) []service.Backend {
	if e.Maglev {
		return service.MaglevTable(e.Backends)
	}
	return e.Backends
}

func containsSlice(all [][]service.Backend, one []service.Backend) bool {
	return slices.ContainsFunc(all, func(s []service.Backend) bool { return slices.Equal(s, one) })
}

// rowsOf is the number of slots that an entry takes.
func rowsOf(e service.Entry) uint32 {
	if e.Maglev {
		return service.MaglevSize(len(e.Backends))
	}
	return uint32(len(e.Backends))
}

// roomier doubles a size until what is used fills three quarters at most.
func roomier(size uint32, used uint64) uint32 {
	for size < mostEntries && used > uint64(size)/4*3 {
		size *= 2
	}
	return min(size, mostEntries)
}

// grow makes maps larger while they are in use: new maps with the same content,
// then new programs in every link, one after the other. Packets are never
// without either. The caller holds mu and svcMu.
func (d *Dataplane) grow(ctx context.Context, want map[string]uint32) error {
	for name, size := range want {
		if have := d.sizeOf(name); size <= have {
			delete(want, name) // at its limit, or somebody was faster
		}
	}
	if len(want) == 0 || !d.started {
		return nil
	}
	from := map[string]uint32{}
	for name := range want {
		from[name] = d.sizeOf(name)
	}
	done, err := d.kernel.Grow(want)
	if err != nil {
		return fmt.Errorf("make maps larger: %w", err)
	}
	d.table.resize(maps.NewServices(d.kernel.Svc, d.kernel.Be, d.kernel.Ranges))
	d.affinity = maps.NewAffinity(d.kernel.Aff)
	err = errors.Join(d.kernel.Epoch.Set(d.epoch), d.rewatch(), d.tellUnderlay(), d.relink(), done())
	for name, size := range want {
		d.grown[name]++
		d.log.WarnContext(ctx, "map was made larger", "map", mapName(name), "from", from[name], "to", size,
			"hint", "raise dataplane.maps to have it so from the start")
		if d.deps.OnGrow != nil {
			d.deps.OnGrow(mapName(name), from[name], size)
		}
	}
	return err
}

// mapName is what configuration and metrics call a map.
func mapName(name string) string {
	return map[string]string{"svc": "services", "be": "backends", "aff": "affinity"}[name]
}

func (d *Dataplane) sizeOf(name string) uint32 {
	switch name {
	case "svc":
		return d.kernel.Svc.MaxEntries()
	case "be":
		return d.kernel.Be.MaxEntries()
	default:
		return d.kernel.Aff.MaxEntries()
	}
}

// relink puts the newest programs into every link.
func (d *Dataplane) relink() error {
	errs := []error{d.attachSockets()}
	for idx := range d.attached {
		if err := d.kernel.Pod(idx); err != nil {
			// Its interface goes away, or is gone.
			d.log.Debug("link keeps its programs", "if_index", idx, "err", err)
		}
	}
	for idx := range d.uplinks {
		errs = append(errs, d.kernel.Uplink(idx))
		if d.xdp[idx].Native {
			errs = append(errs, d.kernel.XDP(idx))
		}
	}
	if d.tunnel != 0 {
		errs = append(errs, d.kernel.Tunnel(d.tunnel))
	}
	return errors.Join(errs...)
}

// resize goes on with larger maps of the same content.
func (t *table) resize(m maps.Services) {
	t.maps = m
	t.slots.size = m.MaxBackends()
}
