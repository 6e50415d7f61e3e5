// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// TestRootEndpointVerbs calls the verbs twice, out of order and with what is
// wrong, and looks who can be reached in between.
func TestRootEndpointVerbs(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b := h.addPod(t, "a"), h.wirePod(t, "b")
	b.serve(t, "b", 80, b.addrs...)
	reach := func(want bool) {
		t.Helper()
		to := netip.AddrPortFrom(b.addrs[0], 80)
		if !want {
			if err := a.silent("tcp", to); err != nil {
				t.Error(err)
			}
			return
		}
		if _, _, err := a.ask("tcp", to); err != nil {
			t.Errorf("not reached: %v", err)
		}
	}
	// A link that is prepared, and no endpoint yet: nothing comes out of it.
	h.agent.must(t, "PrepareLink", b.ep.IfIndex)
	if err := b.silent("udp", netip.AddrPortFrom(a.addrs[0], 80)); err != nil {
		t.Errorf("a link without an endpoint sends: %v", err)
	}
	for range 2 {
		h.agent.must(t, "UpdateEndpoint", b.ep)
		reach(true)
	}
	// The same link under another id: the old one's end must not cut it off.
	again := b.ep
	again.ID = "other/eth0"
	h.agent.must(t, "UpdateEndpoint", again)
	h.agent.must(t, "DeleteEndpoint", b.ep.ID)
	h.agent.must(t, "PruneEndpoints", []string{a.ep.ID, again.ID})
	h.waitLinks(t, b)
	reach(true)
	for range 2 {
		h.agent.must(t, "DeleteEndpoint", again.ID)
	}
	h.agent.must(t, "DeleteEndpoint", "nobody")
	pin := filepath.Join(h.cfg.BPFFS, "v1", "links")
	for deadline := time.Now().Add(30 * time.Second); ; h.run(t, "sleep 0.1") {
		entries, err := os.ReadDir(pin)
		if err != nil {
			t.Fatal(err)
		}
		names := ""
		for _, e := range entries {
			names += e.Name() + " "
		}
		if strings.Count(names, "pod-") <= 1 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("pins are left: %s", names)
		}
	}
	for what, change := range map[string]func(*Endpoint){
		"no id":            func(e *Endpoint) { e.ID = "" },
		"no link":          func(e *Endpoint) { e.IfIndex = 0 },
		"a link not there": func(e *Endpoint) { e.IfIndex = 99999 },
		"no address":       func(e *Endpoint) { e.Addrs = nil },
		"loopback":         func(e *Endpoint) { e.Addrs = []netip.Addr{netip.MustParseAddr("127.0.0.1")} },
		"short mac":        func(e *Endpoint) { e.MAC = net.HardwareAddr{1} },
	} {
		ep := b.ep
		change(&ep)
		if err := h.agent.call("UpdateEndpoint", ep); err == nil {
			t.Errorf("an endpoint with %s was taken", what)
		}
	}
}

// TestRootHostPort asks a pod through ports of its node, from outside, from
// another pod, and from the node.
func TestRootHostPort(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b := h.addPod(t, "a"), h.wirePod(t, "b")
	b.serve(t, "b", 80, b.addrs...)
	b.ep.HostPorts = []HostPort{
		{Protocol: 6, HostPort: 8080, ContainerPort: 80}, {Protocol: 17, HostPort: 8080, ContainerPort: 80},
	}
	h.agent.must(t, "UpdateEndpoint", b.ep)
	for i := range 2 {
		to := netip.AddrPortFrom(h.node.Addrs[i], 8080)
		for _, network := range []string{"tcp", "udp"} {
			for what, from := range map[string]netns{"world": l.world, "pod": a.netns, "itself": b.netns} {
				if name, _, err := from.ask(network, to); err != nil || name != "b" {
					t.Errorf("%s, %s, from %s: got %s, %v", to, network, what, name, err)
				}
			}
			if got, err := h.askAt(h.cgroup, network, to); err != nil || got.name != "b" {
				t.Errorf("%s, %s, from the node: got %v, %v", to, network, got, err)
			}
		}
	}
	h.agent.must(t, "DeleteEndpoint", b.ep.ID)
	if err := l.world.silent("tcp", netip.AddrPortFrom(h.node.Addrs[0], 8080)); err != nil {
		t.Errorf("the port of a deleted endpoint: %v", err)
	}
}

// TestRootLarge: packets in fragments get through, translated or not, and a
// pod hears of a way out that is too narrow, although its flow is masqueraded.
func TestRootLarge(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b := h.addPod(t, "a"), h.addPod(t, "b")
	b.serve(t, "b", 80, b.addrs...)
	h.serve(t, "host", 80, h.node.Addrs...)
	l.world.serve(t, "world", 80, worldAddrs...)
	h.agent.must(t, "UpdateServices", []service.Object{newService("s", vips(1), 80, b.target())})
	for i := range 2 {
		for _, to := range []netip.Addr{b.addrs[i], h.node.Addrs[i], worldAddrs[i], vips(1)[i]} {
			c := a.dialUDP(t, to)
			if err := c.exchange(4000); err != nil {
				t.Errorf("4000 bytes to %s: %v", to, err)
			}
		}
	}
	h.run(t, "ip link set eth0 mtu 1400")
	for i := range 2 {
		c := a.dialUDP(t, worldAddrs[i])
		c.doNotFragment(t)
		err := c.exchange(1380)
		for range 3 {
			if !errors.Is(err, syscall.EMSGSIZE) {
				err = c.exchange(1380)
			}
		}
		if !errors.Is(err, syscall.EMSGSIZE) {
			t.Errorf("the pod does not hear that the way to %s is narrow: %v", worldAddrs[i], err)
		}
		if err := c.exchange(1300); err != nil {
			t.Errorf("1300 bytes to %s: %v", worldAddrs[i], err)
		}
	}
}

// udpConn is a connected UDP socket of a pod.
type udpConn struct{ *net.UDPConn }

func (n netns) dialUDP(t *testing.T, to netip.Addr) udpConn {
	t.Helper()
	var c *net.UDPConn
	err := n.do(func() (err error) {
		c, err = net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 80)))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := c.Close(); err != nil {
			t.Error(err)
		}
	})
	return udpConn{c}
}

// exchange sends so many bytes and waits for an answer, or an error.
func (c udpConn) exchange(size int) error {
	if _, err := c.Write(make([]byte, size)); err != nil {
		return err
	}
	if err := c.SetReadDeadline(time.Now().Add(time.Second)); err != nil {
		return err
	}
	_, err := c.Read(make([]byte, 256))
	return err
}

func (c udpConn) doNotFragment(t *testing.T) {
	t.Helper()
	raw, err := c.SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	err = raw.Control(func(fd uintptr) {
		// One of the two is of the other family, and fails.
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_DO)       //nolint:errcheck // see above
		unix.SetsockoptInt(int(fd), unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_DO) //nolint:errcheck // see above
	})
	if err != nil {
		t.Fatal(err)
	}
}
