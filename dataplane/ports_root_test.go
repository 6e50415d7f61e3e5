// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
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
		exhausted := errors.New("there is always a port")
		for range 40 { // each flow tries 32 ports at random
			if _, _, err := a.ask(network, to); err != nil {
				exhausted = nil
				break
			}
		}
		if exhausted != nil {
			t.Fatalf("%s: %v", network, exhausted)
		}
		eventually(t, fmt.Sprintf("%s: a port is free again", network), func() error {
			_, _, err := a.ask(network, to)
			return err
		})
	}
	for _, s := range streams {
		s.progress(t)
		s.finish(t)
	}
}
