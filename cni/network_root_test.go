// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"sync"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/nodeagent/nodeagent/cni/ipam"
	"github.com/nodeagent/nodeagent/cni/netns"
	"github.com/nodeagent/nodeagent/cni/netns/netnstest"
	"github.com/nodeagent/nodeagent/dataplane"
)

func TestRootPodsReachEachOtherAndTheNode(t *testing.T) {
	l := newLab(t, nil)
	a, podA := l.attach("a")
	b, podB := l.attach("b")
	if a.MTU != 1480 {
		t.Errorf("MTU = %d, want that of the uplink", a.MTU)
	}
	for i, node := range []netip.Addr{nodeAddr4, nodeAddr6} {
		addrA, addrB := a.Addrs[i].Addr(), b.Addrs[i].Addr()
		if got := talk(t, podA, podB, addrB); got != addrA {
			t.Errorf("pod b saw %s, want pod a's %s", got, addrA)
		}
		if got := talk(t, podA, l.host, node); got != addrA {
			t.Errorf("the node saw %s, want pod a's %s", got, addrA)
		}
		if got := talk(t, l.host, podB, addrB); got != node {
			t.Errorf("pod b saw %s, want the node's %s", got, node)
		}
	}
}

func TestRootRepeatsAndReplacements(t *testing.T) {
	l := newLab(t, func(c *Config) { c.MTU = 1400 })
	first, pod := l.attach("pod")
	again, err := l.net.Attach(t.Context(), Request{Key: first.Key, NetNS: pod})
	if err != nil || again.HostIfIndex != first.HostIfIndex || again.MTU != 1400 {
		t.Errorf("a repeat = %+v, %v, want the same as %+v", again, err, first)
	}
	// Another namespace under the same key replaces the attachment.
	other := netnstest.New(t)
	moved, err := l.net.Attach(t.Context(), Request{Key: first.Key, NetNS: other})
	if err != nil || moved.HostIfIndex == first.HostIfIndex {
		t.Errorf("in another namespace = %+v, %v", moved, err)
	}
	// So does a repeat for one that is damaged.
	netnstest.Do(t, other, func() error {
		return netlink.AddrDel(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: 2}},
			&netlink.Addr{IPNet: &net.IPNet{IP: moved.Addrs[0].Addr().AsSlice(), Mask: net.CIDRMask(32, 32)}})
	})
	if err := l.net.Check(t.Context(), Request{Key: first.Key, NetNS: other}); !errors.Is(err, ErrBroken) {
		t.Errorf("Check = %v, want ErrBroken", err)
	}
	if _, err := l.net.Attach(t.Context(), Request{Key: first.Key, NetNS: other}); err != nil {
		t.Errorf("a repeat for a damaged one: %v", err)
	}
	if err := l.net.Check(t.Context(), Request{Key: first.Key, NetNS: other}); err != nil {
		t.Errorf("Check after the repair = %v", err)
	}
	if n := len(l.net.Leases()); n != 2 {
		t.Errorf("%d leases, want 2", n)
	}
}

// TestRootSecondInterface: what is added to a pod that has its way out already
// leaves that to the first interface, also when the MTU changes.
func TestRootSecondInterface(t *testing.T) {
	l := newLab(t, func(c *Config) { c.MTU = 1400 })
	first, pod := l.attach("pod")
	req := Request{Key: Key{ContainerID: first.ContainerID, IfName: "net1"}, NetNS: pod}
	if _, err := l.net.Attach(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	ways := func() (out []string) {
		netnstest.Do(t, pod, func() error {
			for _, to := range []string{"192.0.2.99", "2001:db8:99::1"} {
				routes, err := netlink.RouteGet(net.ParseIP(to))
				if err != nil {
					return err
				}
				link, err := netlink.LinkByIndex(routes[0].LinkIndex)
				if err != nil {
					return err
				}
				out = append(out, link.Attrs().Name)
			}
			return nil
		})
		return out
	}
	check := func(when string) {
		t.Helper()
		if got := ways(); !slices.Equal(got, []string{"eth0", "eth0"}) {
			t.Errorf("%s: the ways out are %v, want those of eth0", when, got)
		}
		for _, r := range []Request{{Key: first.Key, NetNS: pod}, req} {
			if err := l.net.Check(t.Context(), r); err != nil {
				t.Errorf("%s: %s: %v", when, r.IfName, err)
			}
		}
	}
	check("after the second")
	l.restart()
	check("after a restart")
}

func TestRootInterfaceOfOthersIsLeftAlone(t *testing.T) {
	l := newLab(t, nil)
	pod := netnstest.New(t)
	netnstest.Do(t, pod, func() error {
		attrs := netlink.NewLinkAttrs()
		attrs.Name = "eth0"
		veth := netlink.NewVeth(attrs)
		veth.PeerName = "peer0"
		return netlink.LinkAdd(veth)
	})
	before := l.world()
	_, err := l.net.Attach(t.Context(), Request{Key: Key{"pod", "eth0"}, NetNS: pod})
	if !errors.Is(err, ErrExists) {
		t.Errorf("Attach = %v, want ErrExists", err)
	}
	if after := l.world(); after != before {
		t.Errorf("before %s\n after %s", before, after)
	}
}

// TestRootUnreachableBeforeItsMaps looks at the host end whenever the data path
// is called: while an endpoint is not known, the link is down.
func TestRootUnreachableBeforeItsMaps(t *testing.T) {
	l := newLab(t, nil)
	up := func() bool {
		links, err := l.net.wire.List(context.Background(), l.cfg.LinkPrefix)
		if err != nil || len(links) != 1 {
			t.Errorf("links %v, %v", links, err)
			return false
		}
		var running bool
		netnstest.Do(t, l.host, func() error {
			i, err := net.InterfaceByIndex(links[0].Index)
			if err == nil {
				running = i.Flags&net.FlagUp != 0
			}
			return err
		})
		return running
	}
	l.dp.probe = func(verb, _ string) {
		if verb == "update" && up() {
			t.Error("the link is up before the endpoint is known")
		}
		if verb == "delete" && !up() {
			t.Error("the link is down before the endpoint is deleted")
		}
	}
	l.attach("pod")
	if !up() {
		t.Error("the link is down after the attach")
	}
	if err := l.net.Detach(t.Context(), Key{"pod", "eth0"}); err != nil {
		t.Fatal(err)
	}
	l.dp.probe = func(string, string) {}
}

func TestRootDetachWithEverythingGone(t *testing.T) {
	l := newLab(t, nil)
	before := l.world()
	res, pod := l.attach("pod")
	if err := netns.Remove(pod); err != nil {
		t.Fatal(err)
	}
	if err := l.net.wire.Remove(t.Context(), res.HostIfName); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if err := l.net.Detach(t.Context(), res.Key); err != nil {
			t.Fatal(err)
		}
	}
	if after := l.world(); after != before {
		t.Errorf("before %s\n after %s", before, after)
	}
}

// TestRootReconcileLooksTwice: an attachment whose pod is gone goes at the
// second look, one whose link alone is gone stays, a stray link goes.
func TestRootReconcileLooksTwice(t *testing.T) {
	l := newLab(t, nil)
	gone, pod := l.attach("gone")
	cut, _ := l.attach("cut")
	if err := errors.Join(netns.Remove(pod), l.net.wire.Remove(t.Context(), gone.HostIfName)); err != nil {
		t.Fatal(err)
	}
	if err := l.net.wire.Remove(t.Context(), cut.HostIfName); err != nil {
		t.Fatal(err)
	}
	stray := netnstest.New(t)
	ns, err := netns.Open(stray)
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close() //nolint:errcheck // a test's read-only descriptor
	spec := l.net.linkSpec(l.net.newRecord(Request{Key: Key{"stray", "eth0"}}, ns))
	if _, err := l.net.wire.Create(t.Context(), ns, spec); err != nil {
		t.Fatal(err)
	}
	for look, want := range []int{2, 1} {
		if err := l.net.Reconcile(t.Context()); err != nil {
			t.Fatal(err)
		}
		if got := len(l.net.List()); got != want {
			t.Errorf("look %d: %d attachments, want %d", look, got, want)
		}
	}
	if err := l.net.wire.Reap(t.Context()); err != nil {
		t.Fatal(err)
	}
	links, err := l.net.wire.List(t.Context(), l.cfg.LinkPrefix)
	if err != nil || len(links) != 0 {
		t.Errorf("links %v, %v, want none", links, err)
	}
}

func TestRootRestartKeepsPodsAndRanges(t *testing.T) {
	l := newLab(t, func(c *Config) { c.PodCIDRs = nil })
	if err := l.net.Status(t.Context()); !errors.Is(err, ErrNotReady) {
		t.Errorf("Status without a range = %v, want ErrNotReady", err)
	}
	cidrs := []netip.Prefix{netip.MustParsePrefix("10.7.0.0/28")}
	if err := l.net.SetPodCIDRs(t.Context(), cidrs); err != nil {
		t.Fatal(err)
	}
	res, pod := l.attach("pod")
	l.dp.eps = map[string]dataplane.Endpoint{"stale": {ID: "stale"}}
	before := l.net.Leases()
	l.restart()
	if err := l.net.Status(t.Context()); err != nil {
		t.Errorf("Status after the restart = %v", err)
	}
	if after := l.net.Leases(); fmt.Sprint(after) != fmt.Sprint(before) {
		t.Errorf("leases %v, want %v", after, before)
	}
	if ids := l.dp.ids(); len(ids) != 1 || ids[0] != "pod/eth0" {
		t.Errorf("endpoints %v, want the pod's alone", ids)
	}
	if got := talk(t, l.host, pod, res.Addrs[0].Addr()); got != nodeAddr4 {
		t.Errorf("the pod saw %s, want %s", got, nodeAddr4)
	}
}

func TestRootHostPorts(t *testing.T) {
	l := newLab(t, nil)
	req := Request{Key: Key{"pod", "eth0"}, NetNS: netnstest.New(t), PortMappings: []PortMapping{
		{HostPort: 80, ContainerPort: 8080, Protocol: "tcp", HostIP: netip.MustParseAddr("0.0.0.0")},
		{HostPort: 80, ContainerPort: 8080, Protocol: "udp", HostIP: netip.MustParseAddr("::ffff:192.0.2.1")},
		{HostPort: 80, ContainerPort: 8080, Protocol: "sctp"},
	}}
	if _, err := l.net.Attach(t.Context(), req); err != nil {
		t.Fatal(err)
	}
	want := "[{6 80 8080 invalid IP} {17 80 8080 192.0.2.1} {132 80 8080 invalid IP}]"
	if got := fmt.Sprint(l.dp.eps["pod/eth0"].HostPorts); got != want {
		t.Errorf("host ports %s, want %s", got, want)
	}
	for _, bad := range []PortMapping{
		{HostPort: 0, ContainerPort: 1, Protocol: "tcp"},
		{HostPort: 1, ContainerPort: 0, Protocol: "tcp"},
		{HostPort: 1, ContainerPort: 1, Protocol: "TCP"},
	} {
		req := Request{Key: Key{"bad", "eth0"}, NetNS: req.NetNS, PortMappings: []PortMapping{bad}}
		if _, err := l.net.Attach(t.Context(), req); !errors.Is(err, ErrInvalid) {
			t.Errorf("%+v: %v, want ErrInvalid", bad, err)
		}
	}
	twice := Request{Key: Key{"bad", "eth0"}, NetNS: req.NetNS, PortMappings: append(req.PortMappings, req.PortMappings[0])}
	if _, err := l.net.Attach(t.Context(), twice); !errors.Is(err, ErrInvalid) {
		t.Errorf("the same port twice: %v, want ErrInvalid", err)
	}
}

// TestRootOneFamilyAlone: nodes with addresses of one family only.
func TestRootOneFamilyAlone(t *testing.T) {
	for _, tc := range []struct {
		cidr string
		node netip.Addr
	}{
		{"10.77.0.0/24", nodeAddr4},
		{"fd77::/64", nodeAddr6},
	} {
		t.Run(tc.cidr, func(t *testing.T) {
			l := newLab(t, func(c *Config) { c.PodCIDRs = []netip.Prefix{netip.MustParsePrefix(tc.cidr)} })
			a, podA := l.attach("a")
			b, podB := l.attach("b")
			if len(a.Addrs) != 1 || len(a.Gateways) != 1 {
				t.Fatalf("result %+v", a)
			}
			if got := talk(t, podA, podB, b.Addrs[0].Addr()); got != a.Addrs[0].Addr() {
				t.Errorf("pod b saw %s", got)
			}
			if got := talk(t, podA, l.host, tc.node); got != a.Addrs[0].Addr() {
				t.Errorf("the node saw %s", got)
			}
			if err := l.net.Check(t.Context(), Request{Key: a.Key, NetNS: podA}); err != nil {
				t.Error(err)
			}
		})
	}
}

// TestRootConcurrentVerbsOnOneKey: attach and detach at the same time end in
// one of the two, whole.
func TestRootConcurrentVerbsOnOneKey(t *testing.T) {
	l := newLab(t, nil)
	before := l.world()
	pod := netnstest.New(t)
	key := Key{"pod", "eth0"}
	var wg sync.WaitGroup
	for i := range 40 {
		wg.Go(func() {
			var err error
			if i%2 == 0 {
				_, err = l.net.Attach(t.Context(), Request{Key: key, NetNS: pod})
			} else {
				err = l.net.Detach(t.Context(), key)
			}
			if err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	if _, err := l.net.Attach(t.Context(), Request{Key: key, NetNS: pod}); err != nil {
		t.Error(err)
	}
	if err := l.net.Check(t.Context(), Request{Key: key, NetNS: pod}); err != nil {
		t.Error(err)
	}
	if err := l.net.Detach(t.Context(), key); err != nil {
		t.Error(err)
	}
	if after := l.world(); after != before {
		t.Errorf("before %s\n after %s", before, after)
	}
}

func TestRootVerifyFindsWhatDisagrees(t *testing.T) {
	l := newLab(t, nil)
	good, _ := l.attach("good")
	if problems, err := l.net.Verify(t.Context()); err != nil || len(problems) != 0 {
		t.Errorf("Verify = %v, %v, want nothing", problems, err)
	}
	l.attach("cut")
	if err := l.net.wire.Remove(t.Context(), l.net.records.all[Key{"cut", "eth0"}].Result.HostIfName); err != nil {
		t.Fatal(err)
	}
	if _, err := l.net.book.Acquire(ipam.Request{Owner: "nobody"}, nil); err != nil {
		t.Fatal(err)
	}
	l.net.records.forget(good.Key)
	problems, err := l.net.Verify(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	var subjects []string
	for _, p := range problems {
		subjects = append(subjects, p.Subject)
	}
	want := "[10.77.0.2 10.77.0.4 fd77::2 fd77::4 " + good.HostIfName + " cut/eth0]"
	if got := fmt.Sprint(subjects); got != want {
		t.Errorf("problems with %s, want %s", got, want)
	}
	l.net.records.remember(record{State: stateReady, Request: Request{Key: good.Key}, Result: *good})
}
