// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"testing"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/observe"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// TestRootGrow: the maps of services grow under traffic, no connection
// notices, all of what was wanted is there, also after a restart.
func TestRootGrow(t *testing.T) {
	l := newLabWith(t, 2, func(c *Config) {
		c.Maps.Services, c.Maps.Backends = 64, 64
	})
	h := l.hosts[0]
	a, b := h.addPod(t, "a"), h.addPod(t, "b")
	l.join(t, "vxlan")
	b.serve(t, "b", 80, b.addrs...)
	first := newService("first", vips(1), 80, b.target())
	h.agent.must(t, "UpdateServices", []service.Object{first})
	var streams []*stream
	for _, vip := range vips(1) {
		streams = append(streams, a.stream(t, netip.AddrPortFrom(vip, 80)))
	}
	want := []service.Object{first}
	for i := range 100 {
		want = append(want, newService(fmt.Sprint("s", i), vips(byte(i+2)), 80, b.target(), a.target(), h.target()))
	}
	for piece := range slices.Chunk(want, 20) {
		h.agent.must(t, "UpdateServices", piece)
		for _, s := range streams {
			s.progress(t)
		}
	}
	checkGrown(t, a, true)
	var told []string
	if err := h.agent.get("Grown", nil, &told); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"services", "backends"} {
		if !slices.Contains(told, name) {
			t.Errorf("told that %v grew, want %s among them", told, name)
		}
	}
	h.waitLinks(t, a, b)
	h.agent.kill(t)
	h.startAgent(t)
	for _, p := range []*pod{a, b} {
		h.agent.must(t, "UpdateEndpoint", p.ep)
	}
	names := make([]types.NamespacedName, 0, len(want))
	for _, o := range want {
		names = append(names, o.Name())
	}
	h.agent.must(t, "UpdateServices", want)
	h.agent.must(t, "PruneServices", names)
	checkGrown(t, a, false)
	for _, s := range streams {
		s.progress(t)
		s.finish(t)
	}
}

// checkGrown asks for the sizes, and whether all services are there.
func checkGrown(t *testing.T, a *pod, grown bool) {
	t.Helper()
	h := a.host
	var usage []observe.Fill
	if err := h.agent.get("Usage", nil, &usage); err != nil {
		t.Fatal(err)
	}
	for _, u := range usage {
		if (u.Map == "services" || u.Map == "backends") && (u.Entries < 512 || (u.Grown > 0) != grown) {
			t.Errorf("%+v, want it larger (grown: %v)", u, grown)
		}
	}
	for i := range 2 {
		for n := range byte(100) {
			to := netip.AddrPortFrom(vips(n + 2)[i], 80)
			if got := h.trace(t, TraceRequest{netip.AddrPortFrom(a.addrs[i], 0), to, service.TCP}); len(got.Backends) != 3 {
				t.Errorf("%s: %d backends, want 3", to, len(got.Backends))
			}
		}
		if name, _, err := a.ask("tcp", netip.AddrPortFrom(vips(1)[i], 80)); err != nil || name != "b" {
			t.Errorf("%s answers, %v; want b", name, err)
		}
	}
}
