// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/rlimit"

	"github.com/nodeagent/nodeagent/bpf"
	"github.com/nodeagent/nodeagent/dataplane/maps"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// newServiceMaps makes the maps of services alone.
func newServiceMaps(tb testing.TB, services, backends uint32) maps.Services {
	tb.Helper()
	needRoot(tb)
	if err := rlimit.RemoveMemlock(); err != nil {
		tb.Fatal(err)
	}
	spec, err := bpf.LoadDatapath()
	if err != nil {
		tb.Fatal(err)
	}
	made := map[string]*ebpf.Map{}
	for name, size := range map[string]uint32{"svc": services, "be": backends, "ranges": 1024} {
		s := spec.Maps[name]
		s.MaxEntries = size
		if made[name], err = ebpf.NewMap(s); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() {
			if err := made[name].Close(); err != nil {
				tb.Error(err)
			}
		})
	}
	return maps.NewServices(made["svc"], made["be"], made["ranges"])
}

func newTestTable(tb testing.TB, m maps.Services) *table {
	tb.Helper()
	t, err := newTable(m)
	if err != nil {
		tb.Fatal(err)
	}
	return t
}

// entry is a service of one port with n backends.
func entry(i, n int) []service.Entry {
	e := service.Entry{Port: "p", Frontend: service.Frontend{
		Addr: netip.AddrFrom4([4]byte{10, 96 + byte(i>>16), byte(i >> 8), byte(i)}), Port: 80, Proto: service.TCP,
	}}
	for b := range n {
		e.Backends = append(e.Backends, service.Backend{
			Addr: netip.AddrFrom4([4]byte{10, 1, byte(i), byte(b + 1)}), Port: 8080,
		})
	}
	return []service.Entry{e}
}

func (t *table) apply(tb testing.TB, owners map[string][]service.Entry) *change {
	tb.Helper()
	c := &change{}
	for owner, entries := range owners {
		t.set(c, owner, entries)
	}
	if err := t.commit(c); err != nil {
		tb.Fatal(err)
	}
	return c
}

// check compares what the kernel holds with what is wanted.
func (t *table) check(tb testing.TB, want map[string][]service.Entry) {
	tb.Helper()
	have, err := t.maps.All()
	if err != nil {
		tb.Fatal(err)
	}
	all, err := t.maps.Backends(t.maps.MaxBackends())
	if err != nil {
		tb.Fatal(err)
	}
	n := 0
	for owner, entries := range want {
		for _, e := range entries {
			n++
			v, ok := have[keyOf(e.Frontend)]
			if !ok || int(v.Count) != len(e.Backends) {
				tb.Fatalf("%s: %s has %d backends (known: %v), want %d", owner, e.Frontend, v.Count, ok, len(e.Backends))
			}
			for i, b := range e.Backends {
				if got := all[int(v.Base)+i]; got != backendOf(b, e.Frontend.Proto) {
					tb.Fatalf("%s: %s: backend %d is %v, want %v", owner, e.Frontend, i, got, b)
				}
			}
		}
	}
	if len(have) != n {
		tb.Fatalf("%d frontends in the kernel, want %d", len(have), n)
	}
}

// TestRootTable changes services at random, restarts now and then, and
// compares the kernel's maps with the wish after each step.
func TestRootTable(t *testing.T) {
	m := newServiceMaps(t, 1024, 2048)
	r := rand.New(rand.NewPCG(3, 4))
	tab := newTestTable(t, m)
	want := map[string][]service.Entry{}
	for step := range 400 {
		owners := map[string][]service.Entry{}
		for range 1 + r.IntN(5) {
			i := r.IntN(60)
			owner := fmt.Sprint("s", i)
			if r.IntN(4) == 0 {
				owners[owner] = nil
				delete(want, owner)
			} else {
				owners[owner] = entry(i, r.IntN(12))
				want[owner] = owners[owner]
			}
		}
		tab.apply(t, owners)
		if step%50 == 49 {
			// A restart: one service has gone meanwhile, the rest is the same.
			for owner := range want {
				delete(want, owner)
				break
			}
			tab = newTestTable(t, m)
			c := tab.apply(t, want)
			if len(c.idx)+len(c.keys)+len(c.gone) != 0 {
				t.Fatalf("a restart wrote %d backends and %d frontends, and removed %d", len(c.idx), len(c.keys), len(c.gone))
			}
			c = &change{}
			tab.prune(c)
			if err := tab.commit(c); err != nil {
				t.Fatal(err)
			}
		}
		tab.check(t, want)
	}
	used := uint32(0)
	for _, entries := range want {
		if n := len(entries[0].Backends); n > 0 {
			used += classOf(uint32(n))
		}
	}
	for _, s := range tab.spare {
		used += classOf(s.count)
	}
	if tab.slots.used != used {
		t.Errorf("%d slots in use, want %d", tab.slots.used, used)
	}
}

// TestRootTableMove: a frontend that goes from one owner to another in one
// change, in either order, is there after it.
func TestRootTableMove(t *testing.T) {
	tab := newTestTable(t, newServiceMaps(t, 64, 64))
	for round := range 4 {
		c := &change{}
		owners := []string{"a", "b"}
		if round%2 == 1 {
			slices.Reverse(owners)
		}
		tab.set(c, owners[0], entry(1, 2))
		tab.set(c, owners[1], entry(2, 2))
		if err := tab.commit(c); err != nil {
			t.Fatal(err)
		}
		tab.check(t, map[string][]service.Entry{"a": entry(1, 2), "b": entry(2, 2)})
	}
}

// TestRootTableRivals: of two that want a frontend, a service goes before a host
// port, and the other one gets it when the first lets go.
func TestRootTableRivals(t *testing.T) {
	m := newServiceMaps(t, 64, 64)
	tab := newTestTable(t, m)
	pod, svc := entry(1, 1), entry(1, 3)
	for _, order := range [][]string{{"endpoint p", "service s"}, {"service s", "endpoint p"}} {
		all := map[string][]service.Entry{"endpoint p": pod, "service s": svc}
		said := 0
		for range 2 { // the second time nothing is new
			for _, owner := range order {
				said += len(tab.apply(t, map[string][]service.Entry{owner: all[owner]}).rival)
			}
		}
		if said != 1 {
			t.Errorf("%v: said %d times that two want it, want once", order, said)
		}
		tab.check(t, map[string][]service.Entry{"service s": svc})
		tab.apply(t, map[string][]service.Entry{"service s": nil})
		tab.check(t, map[string][]service.Entry{"endpoint p": pod})
		tab.apply(t, map[string][]service.Entry{"service s": svc})
		tab.apply(t, map[string][]service.Entry{"endpoint p": nil})
		tab.check(t, map[string][]service.Entry{"service s": svc})
		tab.apply(t, map[string][]service.Entry{"service s": nil})
		tab.check(t, nil)
	}
	if len(tab.rivals) > 0 || tab.slots.used > 4 {
		t.Errorf("%d rivals and %d slots are left", len(tab.rivals), tab.slots.used)
	}
}

// TestRootTableFlapping: a service that changes a thousand times costs a slice
// or two and one write each, and others are not touched.
func TestRootTableFlapping(t *testing.T) {
	tab := newTestTable(t, newServiceMaps(t, 64, 64))
	want := map[string][]service.Entry{"calm": entry(1, 5)}
	tab.apply(t, want)
	for i := range 1000 {
		entries := entry(2, 3+i%2)
		if i%7 == 6 {
			entries = nil
		}
		want["flaps"] = entries
		c := tab.apply(t, map[string][]service.Entry{"flaps": entries})
		if len(c.keys) > 1 || len(c.idx) > 4 {
			t.Fatalf("change %d wrote %d frontends and %d backends", i, len(c.keys), len(c.idx))
		}
		if tab.slots.next > 5+2*4+2*3 {
			t.Fatalf("change %d: %d slots were handed out", i, tab.slots.next)
		}
	}
	tab.check(t, want)
}

// TestRootTableFull: what does not fit is reported, what is there stays, and
// there is room again once something goes.
func TestRootTableFull(t *testing.T) {
	tab := newTestTable(t, newServiceMaps(t, 64, 64))
	want := map[string][]service.Entry{"a": entry(1, 30), "b": entry(2, 30)}
	tab.apply(t, want)
	c := &change{}
	tab.set(c, "c", entry(3, 30))
	if err := tab.commit(c); !errors.Is(err, ErrFull) {
		t.Errorf("got %v, want %v", err, ErrFull)
	}
	tab.check(t, want)
	tab.apply(t, map[string][]service.Entry{"a": nil})
	tab.apply(t, map[string][]service.Entry{"b": entry(2, 30)}) // what was freed is free from the next write on
	tab.apply(t, map[string][]service.Entry{"c": entry(3, 30)})
	delete(want, "a")
	want["c"] = entry(3, 30)
	tab.check(t, want)
}

func TestSlots(t *testing.T) {
	for n := uint32(1); n < 5000; n++ {
		c := classOf(n)
		if c < n || c > n+n/5+1 || classOf(c) != c {
			t.Fatalf("%d backends get %d slots, and those %d", n, c, classOf(c))
		}
	}
	s := newSlots(100)
	s.adopt([]span{{10, 5}, {40, 3}})
	seen := map[uint32]bool{}
	for range 92 {
		base, err := s.alloc(1)
		if err != nil {
			t.Fatal(err)
		}
		if seen[base] || base >= 10 && base < 15 || base >= 40 && base < 43 || base >= 100 {
			t.Fatalf("slot %d was handed out and is not free", base)
		}
		seen[base] = true
	}
	if _, err := s.alloc(1); !errors.Is(err, ErrFull) {
		t.Errorf("got %v, want %v", err, ErrFull)
	}
}

func TestHostPorts(t *testing.T) {
	ep := Endpoint{
		Addrs: []netip.Addr{netip.MustParseAddr("10.0.1.2"), netip.MustParseAddr("fd00::2")},
		HostPorts: []HostPort{
			{Protocol: 6, HostPort: 8080, ContainerPort: 80},
			{Protocol: 17, HostPort: 53, ContainerPort: 53, HostIP: netip.MustParseAddr("192.0.2.1")},
		},
	}
	var got []string
	for _, e := range hostPorts(ep) {
		got = append(got, fmt.Sprint(e.Frontend, " ", e.Frontend.Addr.Is4(), " ", e.Backends[0].Addr, ":", e.Backends[0].Port))
	}
	slices.Sort(got)
	want := []string{
		"*:8080/tcp false fd00::2:80", "*:8080/tcp from outside false fd00::2:80",
		"*:8080/tcp from outside true 10.0.1.2:80", "*:8080/tcp true 10.0.1.2:80",
		"192.0.2.1:53/udp from outside true 10.0.1.2:53", "192.0.2.1:53/udp true 10.0.1.2:53",
	}
	if !slices.Equal(got, want) {
		t.Errorf("got %q, want %q", got, want)
	}
}

// BenchmarkRootServices programs 50,000 services of 5 backends from nothing,
// again without a change, after a restart, and with one more.
func BenchmarkRootServices(b *testing.B) {
	const n = 50000
	want := map[string][]service.Entry{}
	for i := range n {
		want[fmt.Sprint("s", i)] = entry(i, 5)
	}
	for range b.N {
		m := newServiceMaps(b, 65536, 262144)
		tab := newTestTable(b, m)
		lap := func(what string, fn func()) {
			start := time.Now()
			fn()
			b.ReportMetric(float64(time.Since(start).Microseconds())/1000, what+"-ms")
		}
		lap("cold", func() { tab.apply(b, want) })
		lap("same", func() { tab.apply(b, want) })
		lap("one-more", func() { tab.apply(b, map[string][]service.Entry{"x": entry(n, 5)}) })
		lap("restart", func() { tab = newTestTable(b, m); tab.apply(b, want) })
	}
}
