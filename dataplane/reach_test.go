// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"testing"
)

func family(a netip.Addr) string {
	if a.Is4() {
		return "v4"
	}
	return "v6"
}

// TestRootReachOneNode asks everybody from everywhere on one node.
func TestRootReachOneNode(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b := h.addPod(t, "a"), h.addPod(t, "b")
	a.serve(t, "a", 80, a.addrs...)
	b.serve(t, "b", 80, b.addrs...)
	h.serve(t, "host", 81, h.node.Addrs...)
	l.world.serve(t, "world", 82, worldAddrs...)
	for i := range 2 {
		for _, c := range []struct {
			what string
			from netns
			to   netip.Addr
			port uint16
			name string
			saw  netip.Addr
		}{
			{"pod to pod", a.netns, b.addrs[i], 80, "b", a.addrs[i]},
			{"pod to pod back", b.netns, a.addrs[i], 80, "a", b.addrs[i]},
			{"pod to itself", a.netns, a.addrs[i], 80, "a", a.addrs[i]},
			{"pod to node", a.netns, h.node.Addrs[i], 81, "host", a.addrs[i]},
			{"node to pod", h.netns, b.addrs[i], 80, "b", h.node.Addrs[i]},
			{"pod to world", a.netns, worldAddrs[i], 82, "world", h.node.Addrs[i]},
			{"node to world", h.netns, worldAddrs[i], 82, "world", h.node.Addrs[i]},
		} {
			for _, network := range []string{"tcp", "udp"} {
				t.Run(c.what+"/"+family(c.to)+"/"+network, func(t *testing.T) {
					name, saw, err := c.from.ask(network, netip.AddrPortFrom(c.to, c.port))
					if err != nil {
						t.Fatal(err)
					}
					if name != c.name || saw != c.saw.String() {
						t.Errorf("got %s which saw %s, want %s which saw %s", name, saw, c.name, c.saw)
					}
				})
			}
		}
	}
}
