// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"github.com/nodeagent/nodeagent/cni/netns/netnstest"
)

// TestRootMTUFollowsTheUplink: of pods that run and of those to come.
func TestRootMTUFollowsTheUplink(t *testing.T) {
	l := newLab(t, nil)
	res, pod := l.attach("pod")
	uplink := func(mtu int) {
		netnstest.Do(t, l.host, func() error {
			up, err := netlink.LinkByName("up0") //nolint:forbidigo // by name: no dump
			if err != nil {
				return err
			}
			return netlink.LinkSetMTU(up, mtu)
		})
	}
	check := func(device, route int) {
		t.Helper()
		netnstest.Do(t, pod, func() error {
			i, err := net.InterfaceByName("eth0")
			if err != nil {
				return err
			}
			routes, err := netlink.RouteGet(net.IPv4(192, 0, 2, 1))
			if err != nil {
				return err
			}
			if i.MTU != device || routes[0].MTU != route {
				t.Errorf("device %d, route %d, want %d and %d", i.MTU, routes[0].MTU, device, route)
			}
			return nil
		})
		if err := l.net.Check(t.Context(), Request{Key: res.Key, NetNS: pod}); err != nil {
			t.Error(err)
		}
		if got, err := l.net.Lookup(res.Key); err != nil || got.MTU != device {
			t.Errorf("Lookup = %+v, %v, want MTU %d", got, err, device)
		}
	}
	// Nobody is asked to look.
	follows := func(device, route int) {
		t.Helper()
		deadline := time.After(20 * time.Second)
		for {
			if rec, _ := l.net.records.get(res.Key); rec.mtu() == (mtus{device, route}) {
				return
			}
			select {
			case <-time.After(5 * time.Millisecond):
			case <-deadline:
				t.Fatalf("the pod has %+v, want %d and %d", l.net.currentMTU(), device, route)
			}
		}
	}
	check(1480, 0)
	tunnel := netlink.NewVeth(netlink.NewLinkAttrs())
	tunnel.Name, tunnel.PeerName, tunnel.MTU = "tun0", "tun1", 1430
	netnstest.Do(t, l.host, func() error { return netlink.LinkAdd(tunnel) })
	follows(1480, 1430)
	check(1480, 1430)
	netnstest.Do(t, l.host, func() error { return netlink.LinkDel(tunnel) })
	uplink(1400)
	follows(1400, 0)
	check(1400, 0)
	if err := l.net.SetMTU(t.Context(), 0, 1350); err != nil {
		t.Fatal(err)
	}
	check(1400, 1350)
	uplink(1300)
	l.restart()
	if err := l.net.SetMTU(t.Context(), 9000, 0); err != nil {
		t.Fatal(err)
	}
	check(9000, 0)
}
