// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

var (
	vipFar = pair{"10.96.0.3", "fd00:96::3"}
	far    = pair{"203.0.113.7", "2001:db8:7::7"} // where a service leads out of the cluster
	native = pair{"10.0.2.9", "fd00:10:2::9"}     // a pod of another node
	tunnel = pair{"10.0.3.9", "fd00:10:3::9"}     // and one behind the overlay
	plain  = pair{"10.0.4.9", "fd00:10:4::9"}     // not masqueraded
	direct = pair{"10.0.5.9", "fd00:10:5::9"}     // a pod of a node that answers what is led to it
	local  = pair{"10.0.1.77", "fd00:10:1::77"}   // nobody has this address of the node's range
)

const (
	nodePort   = 30080
	directPort = 30090 // leads to direct
	nativePort = 30070 // leads to native
)

// duel runs packets through the programs and through the model.
type duel struct {
	*netLab
	*model
	got  []byte         // what the programs made of the packet
	act  DatapathReason // and what became of it
	seen map[[2]int]uint64
	all  []DatapathReason
}

func newDuel(tb testing.TB) *duel {
	tb.Helper()
	n := newNetLab(tb)
	m := &model{
		led:  map[netip.Prefix]bool{},
		pods: map[netip.Addr]uint32{}, host: map[netip.Addr]bool{}, uplink: n.up,
		routes: map[netip.Prefix]DatapathReason{}, ways: map[netip.Prefix]uint32{}, vips: map[netip.AddrPort]frontend{}, ports: map[uint16]frontend{},
	}
	d := &duel{netLab: n, model: m, seen: map[[2]int]uint64{}}
	for r := range DatapathReasonREASON_MAX {
		d.all = append(d.all, r)
	}
	d.took = func(w *walk) uint16 {
		for t, r := range d.recorded() {
			if r.is(DatapathCtFlagsCT_SECONDARY) && r.other == w.tuple && d.flows[t] == nil {
				return t.sport
			}
		}
		return 0
	}
	for f := range 2 {
		m.pods[podA.at(f)], m.pods[podB.at(f)], m.host[node.at(f)] = n.podA, n.podB, true
		m.masq[f] = node.at(f)
		for a, kind := range map[netip.Addr]DatapathRouteKind{
			native.at(f): DatapathRouteKindROUTE_NATIVE, tunnel.at(f): DatapathRouteKindROUTE_TUNNEL,
			direct.at(f): DatapathRouteKindROUTE_NATIVE,
			plain.at(f):  DatapathRouteKindROUTE_PLAIN, local.at(f): DatapathRouteKindROUTE_LOCAL,
		} {
			d.addRoute(a, kind)
		}
		for i, b := range []netip.AddrPort{
			netip.AddrPortFrom(podB.at(f), 8080), {}, netip.AddrPortFrom(far.at(f), 8080),
		} {
			v := []pair{vip, empty, vipFar}[i].at(f)
			id := uint32(1 + 3*f + i)
			n.service(id, v, b)
			m.vips[netip.AddrPortFrom(v, 80)] = frontend{id: id, backend: b}
		}
		d.addNodePort(nodePort, frontend{id: 7, backend: netip.AddrPortFrom(far.at(0), 8080)}, far, f)
		d.addNodePort(directPort, frontend{id: 8, backend: netip.AddrPortFrom(direct.at(0), 8080), direct: true}, direct, f)
		d.addNodePort(nativePort, frontend{id: 9, backend: netip.AddrPortFrom(native.at(0), 8080)}, native, f)
	}
	d.forget()
	return d
}

func (d *duel) addRoute(a netip.Addr, kind DatapathRouteKind) {
	d.Helper()
	v := DatapathRoute{Kind: uint32(kind), Oif: d.up, Next: key(netip.MustParseAddr("192.0.2.2"))}
	p, bits := netip.PrefixFrom(a, 24).Masked(), uint32(96+24)
	if a.Is6() {
		v.Next = key(netip.MustParseAddr("2001:db8:1::2"))
		p, bits = netip.PrefixFrom(a, 64).Masked(), 64
	}
	if a == direct.at(one(a.Is6())) {
		v.Dsr, v.Far, d.led[p] = d.up, key(netip.MustParseAddr("192.0.2.2")), true
	}
	acts := map[DatapathRouteKind]DatapathReason{
		DatapathRouteKindROUTE_NATIVE: DatapathReasonFWD_NATIVE, DatapathRouteKindROUTE_TUNNEL: DatapathReasonFWD_TUNNEL,
	}
	if d.routes[p] = DatapathReasonPASS_ROUTE; acts[kind] != 0 {
		d.routes[p] = acts[kind]
		v.Way = uint32(len(d.ways) + 1)
		d.ways[p] = v.Way
		d.put(d.objs.Ways, v.Way, DatapathWay{Kind: v.Kind, Oif: v.Oif, Next: v.Next})
	}
	d.put(d.objs.Routes, DatapathRouteKey{Bits: bits, Addr: key(p.Addr())}, v)
}

// addNodePort leads a port of the node to a backend elsewhere.
func (d *duel) addNodePort(port uint16, front frontend, to pair, f int) {
	d.Helper()
	id := front.id + 10*uint32(f)
	flags := uint16(0)
	if front.direct {
		flags = uint16(DatapathSvcFlagsSVC_DSR)
	}
	everywhere := []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}[f]
	d.put(d.objs.Be, id, DatapathBackend{Addr: key(to.at(f)), Port: swap(8080), Proto: tcp})
	for _, proto := range []uint8{tcp, udp} {
		for scope := range uint8(2) {
			d.put(d.objs.Svc, DatapathSvcKey{Addr: key(everywhere), Port: swap(port), Proto: proto, Scope: scope},
				DatapathSvcValue{Id: front.id, Base: id, Count: 1, Flags: flags})
		}
	}
	d.ports[port] = front
}

// forget empties the tables of flows and fragments, the model's too.
func (d *duel) forget() {
	d.Helper()
	for _, m := range []*ebpf.Map{d.objs.Ct, d.objs.Frags} {
		var k, v []byte
		for it := m.Iterate(); it.Next(&k, &v); {
			if err := m.Delete(k); err != nil {
				d.Fatal(err)
			}
		}
	}
	d.flows, d.frags = map[tuple]*record{}, map[fragment][2]uint16{}
}

func (d *duel) program(hook DatapathHook) *ebpf.Program {
	return map[DatapathHook]*ebpf.Program{
		DatapathHookHOOK_POD: d.objs.FromPod, DatapathHookHOOK_NET: d.objs.FromNet, DatapathHookHOOK_TUN: d.objs.FromTun,
		DatapathHookHOOK_TOPOD: d.objs.ToPod, DatapathHookHOOK_TONET: d.objs.ToNet,
	}[hook]
}

// shot is a packet, and where it comes in.
type shot struct {
	hook DatapathHook
	link uint32
	in   []byte
}

// meet runs a packet through both; false when the kernel refuses to run it.
func (d *duel) meet(s shot) bool {
	d.Helper()
	out := make([]byte, len(s.in)+256)
	opts := ebpf.RunOptions{Data: s.in, DataOut: out, Context: skb{Ifindex: s.link}}
	verdict, err := d.program(s.hook).Run(&opts)
	if err != nil {
		return false
	}
	d.got = opts.DataOut
	want := d.model.run(s.hook, s.link, s.in)
	reason := d.reasonOf(s.hook, want.reason)
	d.act = reason
	if !agree(want.reason, reason) {
		d.Fatalf("hook %d: reason %d, the model says %d, for\n%x", s.hook, reason, want.reason, s.in)
	}
	if v := verdictOf(reason); verdict != v {
		d.Fatalf("hook %d: verdict %d, want %d, for\n%x", s.hook, verdict, v, s.in)
	}
	if want.out != nil && reason == want.reason && verdict != actShot && want.reason != DatapathReasonFWD_REJECT {
		d.sameBytes(s, want)
	}
	d.sameFlows(s)
	return true
}

// agree: how a refusal is made is looked at elsewhere; here it may also be
// impossible, or the packet one that must not be answered.
func agree(want, got DatapathReason) bool {
	if want == DatapathReasonFWD_REJECT {
		return got == want || got == DatapathReasonDROP_NO_REJECT || got == DatapathReasonDROP_BACKEND
	}
	return got == want
}

func verdictOf(r DatapathReason) uint32 {
	switch {
	case r <= DatapathReasonFWD_DSR:
		return actRedirect
	case r < DatapathReasonDROP_TRUNCATED:
		return actOK
	default:
		return actShot
	}
}

// counted is a counter, all processors together.
func (d *duel) counted(hook DatapathHook, r DatapathReason) (sum uint64) {
	d.Helper()
	var per []DatapathCounter
	if err := d.objs.Counters.Lookup(uint32(hook)*uint32(DatapathReasonREASON_MAX)+uint32(r), &per); err != nil {
		d.Fatal(err)
	}
	for _, c := range per {
		sum += c.Packets
	}
	return sum
}

// reasonOf is the reason that was counted for the last packet; the guess is
// looked at first.
func (d *duel) reasonOf(hook DatapathHook, guess DatapathReason) DatapathReason {
	d.Helper()
	for _, r := range append([]DatapathReason{guess}, d.all...) {
		i := [2]int{int(hook), int(r)}
		if n := d.counted(hook, r); n > d.seen[i] {
			d.seen[i] = n
			return r
		}
	}
	return DatapathReasonREASON_NONE
}

// sameBytes compares packets, but for their sums: one that was right has to
// stay right, and one that was wrong as wrong as it was.
func (d *duel) sameBytes(s shot, want outcome) {
	d.Helper()
	got, exp, in := bytes.Clone(d.got), bytes.Clone(want.out), s.in
	if len(got) != len(exp) {
		d.Fatalf("hook %d: %d bytes, want %d, for\n%x", s.hook, len(got), len(exp), in)
	}
	for _, c := range want.w.sums(in) {
		if in, out := c.rest(in), c.rest(d.got); in != out {
			d.Fatalf("hook %d: the sum at %d was off by %#x, and is by %#x, in\n%x for\n%x", s.hook, c.at, in, out, got, s.in)
		}
		copy(got[c.at:], []byte{0, 0})
		copy(exp[c.at:], []byte{0, 0})
	}
	if !bytes.Equal(got, exp) {
		d.Fatalf("hook %d: packet\n%x, the model says\n%x, for\n%x", s.hook, got, exp, in)
	}
}

// recorded is the programs' table of flows.
func (d *duel) recorded() map[tuple]record {
	d.Helper()
	var k DatapathTuple
	var v DatapathCtValue
	out := map[tuple]record{}
	for it := d.objs.Ct.Iterate(); it.Next(&k, &v); {
		r := record{orig: tupleOf(k), other: tupleOf(v.Other), flags: DatapathCtFlags(v.Flags), oif: v.Oif, svc: v.Svc}
		if r.is(DatapathCtFlagsCT_SWAPPED) {
			r.orig = r.orig.turned()
			r.flags &^= DatapathCtFlagsCT_SWAPPED
		}
		for i, l := range v.Lane {
			if l.To != 0 {
				r.lanes[i] = lane{l.From, l.To}
			}
		}
		if !r.is(DatapathCtFlagsCT_XLAT) {
			r.other = tuple{}
		}
		out[r.orig] = r
	}
	return out
}

// sameFlows compares what is recorded.
func (d *duel) sameFlows(s shot) {
	d.Helper()
	have, want := d.recorded(), map[tuple]record{}
	for t, r := range d.flows {
		want[t] = *r
	}
	if !maps.Equal(have, want) {
		d.Fatalf("hook %d: records\n%+v, the model has\n%+v, after\n%x", s.hook, have, want, s.in)
	}
}

func tupleOf(t DatapathTuple) tuple {
	return tuple{netip.AddrFrom16(t.Src.B).Unmap(), netip.AddrFrom16(t.Dst.B).Unmap(), swap(t.Sport), swap(t.Dport), t.Proto}
}

// TestRootModel plays packets of every kind against the model, a few at a time
// in one world.
func TestRootModel(t *testing.T) {
	d := newDuel(t)
	r := rand.New(rand.NewPCG(7, 8))
	ran, rounds := 0, 2000
	if testing.Short() { // an emulated machine
		rounds = 100
	}
	for range rounds {
		d.forget()
		var last shot
		for range 12 {
			last = d.next(r, last)
			if d.meet(last) {
				ran++
			}
		}
	}
	if ran < rounds*10 {
		t.Errorf("only %d packets ran", ran)
	}
	if n := d.counted(DatapathHookHOOK_NET, DatapathReasonFWD_DSR); int(n) < rounds/40 {
		t.Errorf("only %d packets were led to another node", n)
	}
}

// FuzzRootModel plays packets that the fuzzer invents: each begins with a byte
// for the hook, bit 7 for the second pod, and two for its length.
func FuzzRootModel(f *testing.F) {
	hooks := []DatapathHook{DatapathHookHOOK_POD, DatapathHookHOOK_NET, DatapathHookHOOK_TUN, DatapathHookHOOK_TOPOD, DatapathHookHOOK_TONET}
	for i, b := range seeds() {
		f.Add(append([]byte{byte(i % 2), byte(len(b) >> 8), byte(len(b))}, b...))
	}
	d := newDuel(f)
	lab, err := os.Open("/proc/thread-self/ns/net")
	if err != nil {
		f.Fatal(err)
	}
	defer lab.Close() //nolint:errcheck // only read
	f.Fuzz(func(t *testing.T, in []byte) {
		d.TB = t
		// The thread stays in the laboratory, so it ends with its goroutine.
		runtime.LockOSThread()
		if err := unix.Setns(int(lab.Fd()), unix.CLONE_NEWNET); err != nil {
			t.Fatal(err)
		}
		d.forget()
		for range 16 {
			if len(in) < 3+14 {
				return
			}
			hook := hooks[int(in[0]&0x7f)%len(hooks)]
			n := min(int(in[1])<<8|int(in[2]), len(in)-3)
			link := d.up
			if hook == DatapathHookHOOK_POD {
				link = []uint32{d.podA, d.podB}[in[0]>>7]
			}
			if n >= 14 {
				d.meet(shot{hook, link, in[3 : 3+n]})
			}
			in = in[3+n:]
		}
	})
}
