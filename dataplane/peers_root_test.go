// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"strings"
	"testing"
)

// TestRootPeersOverlap: peers that claim ranges of others, or ours, are refused
// those by name, whatever theirs is; all the rest is in place, and no connection
// of a peer that was there before notices.
func TestRootPeersOverlap(t *testing.T) {
	l := newLab(t, 2)
	x, y := l.hosts[0], l.hosts[1]
	a, b := x.addPod(t, "a"), y.addPod(t, "b")
	l.join(t, "auto")
	b.serve(t, "b", 80, b.addrs...)
	var streams []*stream
	for i := range 2 {
		s := a.stream(t, netip.AddrPortFrom(b.addrs[i], 80))
		s.progress(t)
		streams = append(streams, s)
	}
	routes := func() string { return x.run(t, "ip route show table 28257; ip -6 route show table 28257") }
	before := routes()
	good := Peer{Name: y.name, Addrs: y.node.Addrs, PodCIDRs: y.node.PodCIDRs, Mode: "auto"}
	ranges := func(list ...string) (out []netip.Prefix) {
		for _, s := range list {
			out = append(out, netip.MustParsePrefix(s))
		}
		return out
	}
	greedy := Peer{Name: "greedy", Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.99")}, PodCIDRs: ranges("10.0.2.128/25", "fd00:10::/32", "10.0.1.7/32")}
	err := x.agent.call("UpdatePeers", []Peer{greedy, good})
	if err == nil {
		t.Fatal("overlapping ranges are accepted")
	}
	for _, want := range []string{
		"peer greedy: its range 10.0.2.128/25 overlaps with 10.0.2.0/24 of peer host1",
		"peer greedy: its range 10.0.1.7/32 overlaps with 10.0.1.0/24 of this node",
		"peer greedy: its range fd00:10::/32 overlaps with fd00:10:1::/64 of this node",
	} {
		if !strings.Contains(err.Error(), want) {
			t.Errorf("the error does not say %q: %v", want, err)
		}
	}
	if after := routes(); after != before {
		t.Errorf("routes were\n%s, are\n%s", before, after)
	}
	greedy.PodCIDRs = append(greedy.PodCIDRs, ranges("10.0.77.0/24", "10.0.77.0/24")...)
	if err := x.agent.call("UpdatePeers", []Peer{greedy, good}); err == nil {
		t.Error("they are accepted the second time")
	}
	if after := routes(); !strings.Contains(after, "10.0.77.0/24 via 192.0.2.99") || strings.Contains(after, "10.0.2.128") {
		t.Errorf("the range that is free, and no other, is the peer's: %s", after)
	}
	for _, s := range streams {
		s.progress(t)
		s.finish(t)
	}
	x.agent.must(t, "UpdatePeers", []Peer{good})
	if after := routes(); after != before {
		t.Errorf("routes were\n%s, are\n%s", before, after)
	}
}
