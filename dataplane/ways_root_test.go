// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
	"github.com/nodeagent/nodeagent/dataplane/maps"
)

// newMap makes a map of the data path, of a size.
func newMap(t *testing.T, name string, entries uint32) *ebpf.Map {
	t.Helper()
	needRoot(t)
	spec, err := bpf.LoadDatapath()
	if err != nil {
		t.Fatal(err)
	}
	spec.Maps[name].MaxEntries = entries
	m, err := ebpf.NewMap(spec.Maps[name])
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := m.Close(); err != nil {
			t.Error(err)
		}
	})
	return m
}

// wayTable is a table of routes and the one of their ways.
type wayTable struct {
	*testing.T
	raw    *ebpf.Map
	routes maps.Routes
}

// sync routes each range to a next hop and returns the numbers of their ways.
func (w wayTable) sync(hops map[string]string) map[string]uint32 {
	w.Helper()
	want := map[netip.Prefix]maps.Route{}
	for p, hop := range hops {
		want[netip.MustParsePrefix(p)] = maps.Route{Kind: bpf.DatapathRouteKindROUTE_NATIVE, IfIndex: 7, Next: netip.MustParseAddr(hop)}
	}
	if err := w.routes.Sync(want, true); err != nil {
		w.Fatal(err)
	}
	got := map[string]uint32{}
	for p := range want {
		var v bpf.DatapathRoute
		if err := w.raw.Lookup(bpf.DatapathRouteKey{Bits: uint32(96 + p.Bits()), Addr: maps.AddrOf(p.Addr())}, &v); err != nil {
			w.Fatal(err)
		}
		got[p.String()] = v.Way
	}
	return got
}

// TestRootWays: equal ways share a number, each keeps its own, and that of a way
// that is gone waits for one more change before another one gets it; when there
// are too many, the last have none and their routes are there all the same.
func TestRootWays(t *testing.T) {
	w := wayTable{T: t, raw: newMap(t, "routes", 64)}
	w.routes = maps.NewRoutes(w.raw, newMap(t, "ways", 4)) // three, for 0 is none
	const a, b, c, d, e = "10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24", "10.0.4.0/24", "10.0.5.0/24"
	first := w.sync(map[string]string{a: "192.0.2.1", b: "192.0.2.1", c: "192.0.2.3"})
	if first[a] == 0 || first[a] != first[b] || first[c] == 0 || first[c] == first[a] {
		t.Errorf("numbers %v", first)
	}
	moved := w.sync(map[string]string{a: "192.0.2.9", b: "192.0.2.9", c: "192.0.2.3"})
	if moved[a] == 0 || moved[a] == first[a] || moved[c] != first[c] {
		t.Errorf("numbers %v after %v", moved, first)
	}
	last := w.sync(map[string]string{a: "192.0.2.9", c: "192.0.2.3", d: "192.0.2.4", e: "192.0.2.5"})
	if last[d]+last[e] != first[a] {
		t.Errorf("numbers %v: one of two new ways has the number that is free, the other none", last)
	}
}
