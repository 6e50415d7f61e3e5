// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// TestRootServerAway: an agent that is killed and starts while nobody tells it of
// services and peers, because the API server is away, changes nothing: they
// are served as before, from pods, from the node and from outside.
func TestRootServerAway(t *testing.T) {
	l := newLab(t, 2)
	x, y := l.hosts[0], l.hosts[1]
	a, b := x.addPod(t, "a"), y.addPod(t, "b")
	l.join(t, "vxlan")
	b.serve(t, "b", 80, b.addrs...)
	l.serveEverywhere(t, external(newService("b", vips(1), 80, b.target()), 30080, balancers, false))
	l.leadTo(t, x, balancers...)
	serves := func(when string) {
		t.Helper()
		for i := range 2 {
			vip := netip.AddrPortFrom(vips(1)[i], 80)
			for _, network := range []string{"tcp", "udp"} {
				if name, _, err := a.ask(network, vip); err != nil || name != "b" {
					t.Errorf("%s: from a pod, %s: %s, %v", when, network, name, err)
				}
				if got, err := x.askAt(x.cgroup, network, vip); err != nil || got.name != "b" {
					t.Errorf("%s: from the node, %s: %v, %v", when, network, got, err)
				}
				for _, to := range []netip.AddrPort{netip.AddrPortFrom(x.node.Addrs[i], 30080), netip.AddrPortFrom(balancers[i], 80)} {
					if name, _, err := l.world.ask(network, to); err != nil || name != "b" {
						t.Errorf("%s: from outside, %s, %s: %s, %v", when, to, network, name, err)
					}
				}
			}
		}
	}
	serves("before")
	before, _ := x.shown(t)
	for range 2 {
		x.agent.kill(t)
		serves("without an agent")
		x.startAgent(t)
		serves("started again")
		x.showsLeft(t, a, before)
	}
	// One service that is told does not take the others away.
	x.agent.must(t, "UpdateServices", []service.Object{newService("other", vips(2), 80, b.target())})
	serves("with the first news")
}

// shown are the frontends that the agent tells of, and whether it has a name of
// whom they are of.
func (h *host) shown(t *testing.T) (out []string, named bool) {
	t.Helper()
	var all []Frontend
	if err := h.agent.get("Frontends", nil, &all); err != nil {
		t.Fatal(err)
	}
	for _, f := range all {
		named = named || f.Owner != ""
		out = append(out, fmt.Sprint(f.Frontend, f.Backends, f.State, f.Local))
	}
	slices.Sort(out)
	return out, named
}

// showsLeft wants the agent to tell of what an earlier one wrote, without the
// names that nobody has told it yet.
func (h *host) showsLeft(t *testing.T, from *pod, want []string) {
	t.Helper()
	if got, named := h.shown(t); !slices.Equal(got, want) || named {
		t.Errorf("frontends are %v, named: %v; want %v, not named", got, named, want)
	}
	req := TraceRequest{netip.AddrPortFrom(from.addrs[0], 0), netip.AddrPortFrom(vips(1)[0], 80), service.TCP}
	if got := h.trace(t, req); !strings.Contains(got.Reason, "earlier start") {
		t.Errorf("trace of what an earlier daemon serves: %+v", got)
	}
}
