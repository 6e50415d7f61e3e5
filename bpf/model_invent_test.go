// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"math/rand/v2"
	"net/netip"
)

// next invents a packet: an ordinary one, an answer to the last one, an error
// about it, and any of them mutilated.
func (d *duel) next(r *rand.Rand, last shot) shot {
	f := r.IntN(2)
	targets := []pair{podA, podB, node, world, vip, empty, vipFar, native, tunnel, plain, local}
	s := shot{DatapathHookHOOK_POD, d.podA, nil}
	switch kind := r.IntN(10); {
	case kind < 4 && len(d.got) > 34 && last.in != nil:
		s = d.answer(r, d.got)
	case kind >= 8:
		p := packet(world.at(f), []pair{node, node, podA, podB, world}[r.IntN(5)].at(f), protos(f)[r.IntN(3)], []uint16{80, nodePort, directPort}[r.IntN(3)])
		if p.sport += uint16(r.IntN(2)); p.proto == tcp {
			p.flags = []uint8{0x02, 0x02, 0x10, 0x11, 0x04}[r.IntN(5)]
		}
		s = shot{[]DatapathHook{DatapathHookHOOK_NET, DatapathHookHOOK_NET, DatapathHookHOOK_TUN, DatapathHookHOOK_TOPOD, DatapathHookHOOK_TONET}[r.IntN(5)], d.up, p.bytes()}
	default:
		p := packet(podA.at(f), targets[r.IntN(len(targets))].at(f), protos(f)[r.IntN(3)], []uint16{80, nodePort, directPort}[r.IntN(3)])
		p.sport += uint16(r.IntN(3))
		p.flags = []uint8{0x02, 0x02, 0x10, 0x11, 0x04}[r.IntN(5)]
		p.noSum = f == 0 && p.proto == udp && r.IntN(4) == 0
		p.ttl = []uint8{0, 0, 0, 1, 2}[r.IntN(5)]
		if f == 0 && r.IntN(6) == 0 {
			p.frag = []uint16{0x2000, 0x0003, 0x2002}[r.IntN(3)]
		}
		if p.src = podA.at(f); r.IntN(8) == 0 {
			p.src, s.link = podB.at(f), d.podB
		}
		s.in = p.bytes()
	}
	switch r.IntN(8) {
	case 0:
		s.in = mutate(r, s.in)
	case 1:
		all := seeds()
		s = shot{DatapathHookHOOK_POD, d.podA, mutate(r, all[r.IntN(len(all))])}
	}
	return s
}

// answer turns a packet that the programs sent on, or quotes it in an error.
func (d *duel) answer(r *rand.Rand, out []byte) shot {
	p, why := (&model{frags: map[fragment][2]uint16{}}).parse(out)
	if why != fine || p.related || !p.src.IsValid() {
		return shot{DatapathHookHOOK_POD, d.podA, out}
	}
	w := wire{src: p.dst, dst: p.src, proto: p.proto, sport: p.dport, dport: p.sport, flags: []uint8{0x12, 0x10, 0x11, 0x04}[r.IntN(4)], payload: []byte("yes, indeed")}
	if p.proto == icmp || p.proto == icmp6 {
		w.sport, w.dport, w.reply = p.sport|p.dport, 7, p.sport != 0
	}
	s := shot{DatapathHookHOOK_NET, d.up, nil}
	if link := d.pods[w.src]; link != 0 {
		s.hook, s.link = DatapathHookHOOK_POD, link
	}
	if r.IntN(3) == 0 && len(out) >= 62 {
		w = wire{
			src: []netip.Addr{p.dst, []netip.Addr{netip.MustParseAddr("203.0.113.9"), netip.MustParseAddr("2001:db8:9::9")}[one(!p.v4)]}[r.IntN(2)],
			dst: p.src, proto: []uint8{icmp, icmp6}[one(!p.v4)], icmpType: []uint8{3, 2}[one(!p.v4)], dport: 1400, payload: out[14:62],
		}
	}
	s.in = w.bytes()
	return s
}
