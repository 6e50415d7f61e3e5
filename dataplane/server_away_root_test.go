// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
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
	for range 2 {
		x.agent.kill(t)
		serves("without an agent")
		x.startAgent(t)
		serves("started again")
	}
	// One service that is told does not take the others away.
	x.agent.must(t, "UpdateServices", []service.Object{newService("other", vips(2), 80, b.target())})
	serves("with the first news")
}
