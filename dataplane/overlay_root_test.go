// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"syscall"
	"testing"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// fragments is how many fragments the kernel of the host made of what it sent.
func (h *host) fragments(t *testing.T) string {
	t.Helper()
	return strings.TrimSpace(h.run(t, `
		awk '$1 == "Ip:" && !n { n = split($0, name) ; next }
		     $1 == "Ip:" { for (i = 1; i <= n; i++) if (name[i] == "FragCreates") print $i }' /proc/net/snmp
		awk '$1 == "Ip6FragCreates" { print $2 }' /proc/net/snmp6`))
}

// TestRootOverlayStream turns a peer to the overlay, which carries less, while
// connections with it are open, and makes others from pods, and from the world,
// that know nothing of its MTU: all shorten their segments, and nothing is sent
// in fragments.
func TestRootOverlayStream(t *testing.T) {
	l := newLab(t, 2)
	x, y := l.hosts[0], l.hosts[1]
	a, b := x.addPod(t, "a"), y.addPod(t, "b")
	l.join(t, "auto")
	b.serve(t, "b", 80, b.addrs...)
	for _, h := range l.hosts {
		h.agent.must(t, "UpdateServices", []service.Object{external(newService("b", vips(1), 80, b.target()), 30080, nil, false)})
	}
	var streams []*stream
	open := func(from netns, to ...netip.AddrPort) {
		for _, to := range to {
			streams = append(streams, from.stream(t, to))
			streams[len(streams)-1].progress(t)
		}
	}
	open(a.netns, netip.AddrPortFrom(b.addrs[0], 80), netip.AddrPortFrom(b.addrs[1], 80))
	l.join(t, "vxlan")
	for _, s := range streams {
		s.progress(t)
	}
	for i := range 2 {
		open(a.netns, netip.AddrPortFrom(b.addrs[i], 80), netip.AddrPortFrom(vips(1)[i], 80))
		open(l.world, netip.AddrPortFrom(x.node.Addrs[i], 30080))
	}
	for _, s := range streams {
		s.finish(t)
	}
	for _, h := range l.hosts {
		if n := h.fragments(t); n != "0\n0" {
			t.Errorf("%s sent fragments, IPv4 and IPv6: %q", h.name, n)
		}
	}
}

// TestRootOverlayLarge sends datagrams that the overlay cannot carry: who
// forbids to fragment them hears of it, also where a service is asked, or a
// port of a node that has not the backend.
func TestRootOverlayLarge(t *testing.T) {
	l := newLab(t, 2)
	x, y := l.hosts[0], l.hosts[1]
	a, b := x.addPod(t, "a"), y.addPod(t, "b")
	l.join(t, "vxlan")
	b.serve(t, "b", 80, b.addrs...)
	x.agent.must(t, "UpdateServices", []service.Object{external(newService("b", vips(1), 80, b.target()), 80, nil, false)})
	for i := range 2 {
		for what, c := range map[string]udpConn{
			"pod":       a.dialUDP(t, b.addrs[i]),
			"service":   a.dialUDP(t, vips(1)[i]),
			"node port": l.world.dialUDP(t, x.node.Addrs[i]),
		} {
			c.doNotFragment(t)
			err := c.exchange(1440)
			for range 3 {
				if !errors.Is(err, syscall.EMSGSIZE) {
					err = c.exchange(1440)
				}
			}
			if !errors.Is(err, syscall.EMSGSIZE) {
				t.Errorf("%s, %s: the sender does not hear that the overlay is narrow: %v", what, family(b.addrs[i]), err)
			}
			if err := c.exchange(1300); err != nil {
				t.Errorf("%s, %s: 1300 bytes: %v", what, family(b.addrs[i]), err)
			}
		}
	}
}

// overDevice is how many packets the overlay's device has sent.
func (h *host) overDevice(t *testing.T) (n int) {
	t.Helper()
	if _, err := fmt.Sscan(h.run(t, "ip -s -o link show nvx0 | sed 's/.*TX: *[^0-9]*[0-9]* *\\([0-9]*\\).*/\\1/'"), &n); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestRootOverlayDirect: flows through the overlay leave and come without its
// device, until the way to the other node is one that only the kernel knows, and
// no stream notices.
func TestRootOverlayDirect(t *testing.T) {
	for _, direct := range []bool{true, false} {
		t.Run(fmt.Sprint(direct), func(t *testing.T) {
			l := newLabWith(t, 2, func(c *Config) { c.Tunnel.Direct = direct })
			x, y := l.hosts[0], l.hosts[1]
			a, b := x.addPod(t, "a"), y.addPod(t, "b")
			l.join(t, "vxlan")
			b.serve(t, "b", 80, b.addrs...)
			var streams []*stream
			for i := range 2 {
				s := a.stream(t, netip.AddrPortFrom(b.addrs[i], 80))
				s.progress(t)
				streams = append(streams, s)
			}
			// progress is how many packets the devices sent meanwhile.
			progress := func() int {
				before := x.overDevice(t) + y.overDevice(t)
				for _, s := range streams {
					s.progress(t)
				}
				return x.overDevice(t) + y.overDevice(t) - before
			}
			// A few take the long way whenever something on the host changes.
			if n := progress(); (n < 20) != direct {
				t.Errorf("the devices sent %d packets", n)
			}
			x.run(t, "ip link add side type veth peer name side netns "+y.path)
			for i, h := range l.hosts {
				far := l.hosts[1-i].node.Addrs[0]
				h.run(t, fmt.Sprintf(`ip addr add 192.168.50.%d/24 dev side; ip link set side mtu 1600 up
					ip route add %s/32 via 192.168.50.%d src %s`, i+1, far, 2-i, h.node.Addrs[0]))
			}
			eventually(t, "the devices carry the flows", func() error {
				if n := progress(); n < 20 {
					return fmt.Errorf("they sent %d packets", n)
				}
				return nil
			})
			for _, s := range streams {
				s.finish(t)
			}
		})
	}
}
