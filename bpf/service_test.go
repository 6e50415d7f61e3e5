// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
	"testing"
)

// backends writes a slice of pods at the start of the array.
func (n *netLab) backends(addrs ...netip.Addr) {
	n.Helper()
	for i, a := range addrs {
		n.put(n.objs.Be, uint32(i), DatapathBackend{Addr: key(a), Port: swap(8080), Proto: tcp})
	}
}

// chosen is the backend that a new connection gets.
func (n *netLab) chosen(p wire) netip.Addr {
	n.Helper()
	verdict, out := n.run(n.objs.FromPod, n.podA, p.bytes())
	if verdict != actRedirect {
		n.Fatalf("verdict %d, want %d", verdict, actRedirect)
	}
	if p.v4() {
		a, _ := netip.AddrFromSlice(out[30:34])
		return a
	}
	a, _ := netip.AddrFromSlice(out[38:54])
	return a
}

// TestRootAffinity: a client stays with its backend over connections, until
// the slice does not have it any more.
func TestRootAffinity(t *testing.T) {
	n := newNetLab(t)
	for f := range 2 {
		third := netip.MustParseAddr([]string{"10.0.1.4", "fd00:10:1::4"}[f])
		n.put(n.objs.Eps, key(third), DatapathEndpoint{Ifindex: n.podB})
		n.backends(podB.at(f), third)
		at := DatapathSvcKey{Addr: key(vip.at(f)), Port: swap(80), Proto: tcp}
		value := DatapathSvcValue{Id: uint32(f) + 1, Count: 2, Flags: uint16(DatapathSvcFlagsSVC_AFFINITY), Affinity: 1000}
		n.put(n.objs.Svc, at, value)
		p := packet(podA.at(f), vip.at(f), tcp, 80)
		first := n.chosen(p)
		for i := range uint16(64) {
			p.sport = 41000 + i
			if got := n.chosen(p); got != first {
				t.Fatalf("connection %d went to %s, the first to %s", i, got, first)
			}
		}
		other := podB.at(f)
		if first == other {
			other = third
		}
		n.backends(other, other)
		p.sport = 42000
		if got := n.chosen(p); got != other {
			t.Errorf("a connection went to %s, which is gone", got)
		}
		// Without affinity both get connections.
		n.backends(podB.at(f), third)
		value.Flags = 0
		n.put(n.objs.Svc, at, value)
		seen := map[netip.Addr]bool{}
		for i := range uint16(64) {
			p.sport = 43000 + i
			seen[n.chosen(p)] = true
		}
		if len(seen) != 2 {
			t.Errorf("64 connections went to %v only", seen)
		}
	}
}

// TestRootMaglev: which row a connection takes depends on the connection only.
func TestRootMaglev(t *testing.T) {
	n := newNetLab(t)
	for f := range 2 {
		third := netip.MustParseAddr([]string{"10.0.1.4", "fd00:10:1::4"}[f])
		n.put(n.objs.Eps, key(third), DatapathEndpoint{Ifindex: n.podB})
		n.backends(podB.at(f), third, podB.at(f), third, third)
		at := DatapathSvcKey{Addr: key(vip.at(f)), Port: swap(80), Proto: tcp}
		n.put(n.objs.Svc, at, DatapathSvcValue{Id: uint32(f) + 1, Count: 5, Flags: uint16(DatapathSvcFlagsSVC_MAGLEV)})
		took := map[netip.Addr]int{}
		for i := range uint16(256) {
			p := packet(podA.at(f), vip.at(f), tcp, 80)
			p.sport = 41000 + i
			first := n.chosen(p)
			took[first]++
			n.forget()
			if again := n.chosen(p); again != first {
				t.Fatalf("connection %d went to %s, and then to %s", i, first, again)
			}
		}
		if share := took[podB.at(f)]; share < 60 || share > 145 {
			t.Errorf("%d of 256 connections took two rows of five", share)
		}
	}
}

// forget empties the table of flows.
func (n *netLab) forget() {
	n.Helper()
	var k DatapathTuple
	var v DatapathCtValue
	var all []DatapathTuple
	for it := n.objs.Ct.Iterate(); it.Next(&k, &v); {
		all = append(all, k)
	}
	for _, k := range all {
		if err := n.objs.Ct.Delete(k); err != nil {
			n.Fatal(err)
		}
	}
}

// TestRootRanges: only the sources that a service names may enter.
func TestRootRanges(t *testing.T) {
	n := newNetLab(t)
	for f := range 2 {
		n.service(uint32(f)+1, vip.at(f), netip.AddrPortFrom(podB.at(f), 8080))
		at := DatapathSvcKey{Addr: key(vip.at(f)), Port: swap(80), Proto: tcp, Scope: uint8(DatapathScopeSCOPE_OUTSIDE)}
		n.put(n.objs.Svc, at, DatapathSvcValue{Id: uint32(f) + 1, Base: uint32(f) + 1, Count: 1, Flags: uint16(DatapathSvcFlagsSVC_RANGES)})
		n.put(n.objs.Ranges, DatapathRangeKey{Bits: 32 + []uint32{96 + 24, 48}[f], Svc: uint32(f) + 1, Addr: key(world.at(f))}, uint32(1))
		n.put(n.objs.Be, uint32(f)+1, DatapathBackend{Addr: key(podB.at(f)), Port: swap(8080), Proto: tcp})
		in := packet(world.at(f), vip.at(f), tcp, 80)
		to := in
		to.dst, to.dport = podB.at(f), 8080
		stranger := in
		stranger.src = netip.MustParseAddr([]string{"203.0.113.1", "2001:db8:aaaa::1"}[f])
		n.steps([]step{
			{"a source in the range", n.objs.FromNet, DatapathHookHOOK_NET, n.up, in, actRedirect, DatapathReasonFWD_LOCAL, &to},
			{"another one", n.objs.FromNet, DatapathHookHOOK_NET, n.up, stranger, actShot, DatapathReasonDROP_SOURCE, nil},
		})
		// The answer goes out as the service, by the uplink, one hop older.
		answer, back := to.turned(), in.turned()
		back.ttl = 63
		n.steps([]step{{"the answer", n.objs.FromPod, DatapathHookHOOK_POD, n.podB, answer, actRedirect, DatapathReasonFWD_WORLD, &back}})
		// Without a backend here, but with some elsewhere: drop, do not refuse.
		n.put(n.objs.Svc, at, DatapathSvcValue{Id: 9, Flags: uint16(DatapathSvcFlagsSVC_DROP)})
		in.sport++
		n.steps([]step{{"nobody here", n.objs.FromNet, DatapathHookHOOK_NET, n.up, in, actShot, DatapathReasonDROP_BACKEND, nil}})
	}
}

// TestRootSCTP: a service over SCTP changes addresses and leaves the ports, and
// so the CRC over them, alone.
func TestRootSCTP(t *testing.T) {
	n := newNetLab(t)
	for f := range 2 {
		n.put(n.objs.Be, uint32(0), DatapathBackend{Addr: key(podB.at(f)), Port: swap(80), Proto: sctp})
		n.put(n.objs.Svc, DatapathSvcKey{Addr: key(vip.at(f)), Port: swap(80), Proto: sctp}, DatapathSvcValue{Id: uint32(f) + 1, Count: 1})
		header := func(sport, dport uint16) []byte {
			h := binary.BigEndian.AppendUint16(nil, sport)
			h = binary.BigEndian.AppendUint16(h, dport)
			return append(h, 1, 2, 3, 4, 0xde, 0xad, 0xbe, 0xef, 1, 0, 0, 4) // tag, CRC, an INIT
		}
		p := wire{src: podA.at(f), dst: vip.at(f), proto: sctp, raw: header(40000, 80)}
		to := p
		to.dst = podB.at(f)
		answer := wire{src: to.dst, dst: to.src, proto: sctp, raw: header(80, 40000)}
		back := answer
		back.src = vip.at(f)
		n.steps([]step{
			{"to a service", n.objs.FromPod, DatapathHookHOOK_POD, n.podA, p, actRedirect, DatapathReasonFWD_LOCAL, &to},
			{"the answer", n.objs.FromPod, DatapathHookHOOK_POD, n.podB, answer, actRedirect, DatapathReasonFWD_LOCAL, &back},
		})
	}
}

const sctp = 132
