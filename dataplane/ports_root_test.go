// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/netip"
	"testing"
	"time"
)

// TestRootPorts: when no port is left towards an address, new flows are dropped
// and those that go on live; and somebody makes room, although the next sweep is
// an hour away.
func TestRootPorts(t *testing.T) {
	t.Setenv(labSweep, "1h")
	l := newLabWith(t, 1, func(c *Config) {
		c.SNATPorts = PortRange{Min: 61000, Max: 61007}
		c.Timeouts.UDP, c.Timeouts.TCPClosing = 4*time.Second, 4*time.Second
	})
	h := l.hosts[0]
	a := h.addPod(t, "a")
	l.world.serve(t, "world", 82, worldAddrs...)
	var streams []*stream
	for i, network := range []string{"udp", "tcp"} {
		to := netip.AddrPortFrom(worldAddrs[i], 82)
		streams = append(streams, a.stream(t, to))
		exhausted := func() uint64 { return countedAt(t, h, "from_pod", "snat_ports_exhausted") }
		before := exhausted()
		for range 40 { // each flow tries 32 ports at random
			if exhausted() > before {
				break
			}
			_, _, _ = a.askWithin(100*time.Millisecond, network, to)
		}
		if exhausted() == before {
			t.Fatalf("%s: there is always a port", network)
		}
		eventually(t, fmt.Sprintf("%s: a port is free again", network), func() error {
			_, _, err := a.askWithin(briefly, network, to)
			return err
		})
	}
	for _, s := range streams {
		s.progress(t)
		s.finish(t)
	}
}
