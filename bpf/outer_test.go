// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"testing"
)

// The ends of the overlay.
var (
	under = netip.MustParseAddr("192.0.2.1") // of pair node
	over  = netip.MustParseAddr("192.0.2.77")
)

const (
	overlayPort = 8472
	outerLen    = 20 + 8 + 8 + 14
)

// outer is a frame of the overlay, with an inner one.
func outer(from, to netip.Addr, sport uint16, vni uint32, inner []byte) []byte {
	vxlan := binary.BigEndian.AppendUint32([]byte{8, 0, 0, 0}, vni<<8)
	return wire{src: from, dst: to, proto: udp, sport: sport, dport: overlayPort, noSum: true, payload: append(vxlan, inner...)}.bytes()
}

// tunnelTo makes a way through the overlay, by which podA has sent something.
func (n *netLab) tunnelTo(f int, first wire) {
	n.Helper()
	way := DatapathWay{Kind: uint32(DatapathRouteKindROUTE_TUNNEL), Oif: n.up, Next: key(over), Under: n.up}
	copy(way.Mac[:], []byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8})
	hop, src := over.As4(), under.As4()
	way.Hop, way.Src = binary.NativeEndian.Uint32(hop[:]), binary.NativeEndian.Uint32(src[:])
	n.put(n.objs.Ways, uint32(1), way)
	n.put(n.objs.Routes, DatapathRouteKey{Bits: []uint32{120, 64}[f], Addr: key(netip.PrefixFrom(tunnel.at(f), []int{24, 64}[f]).Masked().Addr())},
		DatapathRoute{Kind: way.Kind, Oif: n.up, Next: way.Next, Way: 1})
	if verdict, _ := n.run(n.objs.FromPod, n.podA, first.bytes()); verdict != actRedirect {
		n.Fatalf("first packet: verdict %d", verdict)
	}
}

// TestRootOuter: the second packet of a flow through the overlay leaves with the
// outer headers that its device would write.
func TestRootOuter(t *testing.T) {
	n := newNetLab(t)
	for f := range 2 {
		p := packet(podA.at(f), tunnel.at(f), udp, 80)
		n.tunnelTo(f, p)
		for ecn, outerECN := range []byte{0, 1, 2, 2} {
			in := p.bytes()
			inner := p
			inner.ttl = 63
			want := inner.bytes()
			for _, b := range [][]byte{in, want} {
				if f == 1 {
					b[15] |= byte(ecn) << 4
					continue
				}
				b[15] = byte(ecn)
				copy(b[24:26], []byte{0, 0})
				binary.BigEndian.PutUint16(b[24:], fold(sum(b[14:34])))
			}
			copy(want, []byte{2, 0, 0, 0, 0, 9, 2, 0, 0, 0, 0, 8})
			verdict, got := n.run(n.objs.FromPod, n.podA, in)
			if verdict != actRedirect || len(got) != len(in)+outerLen {
				t.Fatalf("family %d: verdict %d, %d bytes, want %d and %d", f, verdict, len(got), actRedirect, len(in)+outerLen)
			}
			sport := binary.BigEndian.Uint16(got[34:])
			if sport < 49152 {
				t.Errorf("family %d: source port %d", f, sport)
			}
			exp := outer(under, over, sport, 1, want)
			exp[15] = outerECN
			copy(exp[18:20], got[18:20]) // the identification may be any
			copy(exp[24:26], []byte{0, 0})
			binary.BigEndian.PutUint16(exp[24:], fold(sum(exp[14:34])))
			// The link addresses are the neighbour's business, and the type the kernel's.
			if !bytes.Equal(got[14:], exp[14:]) {
				t.Errorf("family %d, ecn %d: packet\n%x, want\n%x", f, ecn, got[14:], exp[14:])
			}
		}
	}
}

// answerLane opens the way back through the overlay, as from_tun does it when
// the first answer has come by the device.
func (n *netLab) answerLane(p wire) {
	n.Helper()
	var k DatapathTuple
	var v DatapathCtValue
	for it := n.objs.Ct.Iterate(); it.Next(&k, &v); {
		if p.sport == swap(k.Sport) || p.sport == swap(k.Dport) {
			from := over.As4()
			v.Lane[1].From, v.Lane[1].To = binary.BigEndian.Uint32(from[:]), n.podA
			n.put(n.objs.Ct, k, v)
		}
	}
}

// olderThan says whether the running kernel is older than a version.
func olderThan(t *testing.T, major, minor int) bool {
	t.Helper()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		t.Fatal(err)
	}
	var x, y int
	if _, err := fmt.Sscanf(string(release), "%d.%d", &x, &y); err != nil {
		t.Fatal(err)
	}
	return x < major || x == major && y < minor
}

// TestRootOuterAnswer: what comes in by the overlay for a flow that has the
// short cut is taken out of it at the uplink; anything else, and what is out of
// the ordinary, is left to the device.
func TestRootOuterAnswer(t *testing.T) {
	n := newNetLab(t)
	for f := range 2 {
		for i, proto := range []uint8{tcp, udp} {
			p := packet(podA.at(f), tunnel.at(f), proto, 80)
			p.sport += uint16(2*f + i)
			n.tunnelTo(f, p)
			back := p.turned()
			in := outer(over, under, 50000, 1, back.bytes())
			passed := func(what string, in []byte) {
				t.Helper()
				before := n.reasons(DatapathHookHOOK_NET)[DatapathReasonPASS_HOST]
				verdict, got := n.run(n.objs.FromNet, n.up, in)
				if verdict != actOK || !bytes.Equal(got, in) || n.reasons(DatapathHookHOOK_NET)[DatapathReasonPASS_HOST] != before+1 {
					t.Errorf("family %d, protocol %d, %s: verdict %d, packet\n%x, want\n%x", f, proto, what, verdict, got, in)
				}
			}
			passed("no short cut yet", in)
			n.answerLane(p)
			if f == 1 && olderThan(t, 6, 3) {
				passed("IPv6 out of IPv4", in)
				continue
			}
			before := n.reasons(DatapathHookHOOK_TUN)[DatapathReasonFWD_LOCAL]
			verdict, got := n.run(n.objs.FromNet, n.up, in)
			if verdict != actRedirect || !bytes.Equal(got[14:], back.bytes()[14:]) || n.reasons(DatapathHookHOOK_TUN)[DatapathReasonFWD_LOCAL] != before+1 {
				t.Errorf("family %d, protocol %d: verdict %d, packet\n%x, want\n%x", f, proto, verdict, got[14:], back.bytes()[14:])
			}
			passed("from another node", outer(netip.MustParseAddr("192.0.2.78"), under, 50000, 1, back.bytes()))
			passed("of another network", outer(over, under, 50000, 2, back.bytes()))
			passed("with options inside", outer(over, under, 50000, 1, bytes.Replace(back.bytes(), []byte{0x45, 0}, []byte{0x46, 0}, 1-f)[:14+20+8*f]))
			congested := bytes.Clone(in)
			congested[15] = 3
			passed("congested", congested)
			flags := bytes.Clone(in)
			flags[14+20+8] = 0
			passed("without a network", flags)
			for cut := 14 + 20 + 8; cut < 14+outerLen+28; cut += 7 {
				short := wire{src: over, dst: under, proto: udp, sport: 50000, dport: overlayPort, noSum: true, payload: in[42:cut]}
				passed("cut short", short.bytes())
			}
		}
	}
}
