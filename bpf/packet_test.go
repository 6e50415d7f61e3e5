// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/bits"
	"net/netip"
	"os/exec"
	"runtime"
	"slices"
	"testing"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"
)

const (
	actOK       = 0
	actShot     = 2
	actRedirect = 7
)

// skb is the part of struct __sk_buff that a test run reads.
type skb struct {
	_       [9]uint32
	Ingress uint32 // ingress_ifindex
	Ifindex uint32
	_       [37]uint32
}

// netLab is a network namespace with two pods' links, an uplink, and the programs
// loaded. The goroutine's thread is inside and never leaves.
type netLab struct {
	testing.TB
	objs           *DatapathObjects
	podA, podB, up uint32
}

var (
	podA  = pair{"10.0.1.2", "fd00:10:1::2"}
	podB  = pair{"10.0.1.3", "fd00:10:1::3"}
	node  = pair{"192.0.2.1", "2001:db8:1::1"}
	world = pair{"198.51.100.1", "2001:db8:ffff::1"}
	vip   = pair{"10.96.0.1", "fd00:96::1"}
	empty = pair{"10.96.0.2", "fd00:96::2"}
)

// pair is an address in both families.
type pair [2]string

func (p pair) at(family int) netip.Addr { return netip.MustParseAddr(p[family]) }

func key(a netip.Addr) DatapathAddr { return DatapathAddr{B: a.As16()} }

func swap(p uint16) uint16 { return bits.ReverseBytes16(p) }

func newNetLab(tb testing.TB) *netLab {
	tb.Helper()
	on := func(name string) uint { return 1 << slices.Index(booleans, name) }
	objs := load(tb, on(DatapathVarCfgServices)|on(DatapathVarCfgDsr)|on(DatapathVarCfgTunDirect))
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		tb.Fatal(err)
	}
	n := &netLab{TB: tb, objs: objs}
	out, err := exec.Command("sh", "-ec", `
		ip link set lo up
		for i in a b; do ip link add v$i type veth peer name p$i; ip link set v$i up; done
		ip link add eth0 type veth peer name far
		ip addr add 192.0.2.1/24 dev eth0; ip addr add 2001:db8:1::1/64 dev eth0 nodad
		ip link set far up; ip link set eth0 up
		ip route add default via 192.0.2.254; ip -6 route add default via 2001:db8:1::fe
		echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding`).CombinedOutput()
	if err != nil {
		tb.Fatalf("%v: %s", err, out)
	}
	out, err = exec.Command("sh", "-ec", "for i in va vb eth0; do ip -o link show $i | cut -d: -f1; done").Output()
	if err != nil {
		tb.Fatal(err)
	}
	if _, err := fmt.Sscan(string(out), &n.podA, &n.podB, &n.up); err != nil {
		tb.Fatal(err)
	}
	for f := range 2 {
		n.put(objs.Eps, key(podA.at(f)), DatapathEndpoint{Ifindex: n.podA})
		n.put(objs.Eps, key(podB.at(f)), DatapathEndpoint{Ifindex: n.podB})
		n.put(objs.Eps, key(node.at(f)), DatapathEndpoint{Flags: uint32(DatapathEpFlagsEP_HOST)})
	}
	n.put(objs.Uplinks, n.up, DatapathUplink{Addr4: key(node.at(0)), Addr6: key(node.at(1)), Flags: uint32(DatapathUplinkFlagsUPLINK_MASQ)})
	return n
}

func (n *netLab) put(m *ebpf.Map, k, v any) {
	n.Helper()
	if err := m.Put(k, v); err != nil {
		n.Fatal(err)
	}
}

// service makes a service on port 80 with one backend, or none.
func (n *netLab) service(id uint32, at netip.Addr, backend netip.AddrPort) {
	n.Helper()
	for _, proto := range []uint8{tcp, udp} {
		v := DatapathSvcValue{Id: id, Base: id}
		if backend.IsValid() {
			v.Count = 1
			n.put(n.objs.Be, id, DatapathBackend{Addr: key(backend.Addr()), Port: swap(backend.Port()), Proto: proto})
		}
		n.put(n.objs.Svc, DatapathSvcKey{Addr: key(at), Port: swap(80), Proto: proto}, v)
	}
}

// run sends a packet through a program and returns verdict and packet.
func (n *netLab) run(p *ebpf.Program, ifindex uint32, in []byte) (uint32, []byte) {
	n.Helper()
	out := make([]byte, len(in)+256)
	opts := ebpf.RunOptions{Data: in, DataOut: out, Context: skb{Ifindex: ifindex}}
	ret, err := p.Run(&opts)
	if err != nil {
		n.Fatalf("run with %d bytes: %v", len(in), err)
	}
	return ret, opts.DataOut
}

// reasons are the counters of a hook that are not zero.
func (n *netLab) reasons(hook DatapathHook) map[DatapathReason]uint64 {
	n.Helper()
	out := map[DatapathReason]uint64{}
	for r := range DatapathReasonREASON_MAX {
		var per []DatapathCounter
		if err := n.objs.Counters.Lookup(uint32(hook)*uint32(DatapathReasonREASON_MAX)+uint32(r), &per); err != nil {
			n.Fatal(err)
		}
		for _, c := range per {
			if c.Packets > 0 {
				out[r] += c.Packets
			}
		}
	}
	return out
}

// step is one packet and what has to become of it.
type step struct {
	what    string
	prog    *ebpf.Program
	hook    DatapathHook
	ifindex uint32
	in      wire
	verdict uint32
	reason  DatapathReason
	out     *wire // nil: as it came
}

func (n *netLab) steps(steps []step) {
	n.Helper()
	for _, s := range steps {
		before := n.reasons(s.hook)
		verdict, got := n.run(s.prog, s.ifindex, s.in.bytes())
		after := n.reasons(s.hook)
		if verdict != s.verdict {
			n.Errorf("%s: verdict %d, want %d", s.what, verdict, s.verdict)
		}
		if after[s.reason] != before[s.reason]+1 {
			n.Errorf("%s: counted %v after %v, want one more of reason %d", s.what, after, before, s.reason)
		}
		want := s.in
		if s.out != nil {
			want = *s.out
		}
		if !bytes.Equal(got, want.bytes()) {
			n.Errorf("%s: packet\n%x, want\n%x", s.what, got, want.bytes())
		}
	}
}

func protos(f int) []uint8 { return []uint8{tcp, udp, []uint8{icmp, icmp6}[f]} }

// packet is an ordinary first packet of a protocol.
func packet(src, dst netip.Addr, proto uint8, dport uint16) wire {
	w := wire{src: src, dst: dst, proto: proto, sport: 40000, dport: dport, payload: []byte("hello, world")}
	if proto == tcp {
		w.flags = 0x02
	}
	return w
}

func TestRootLocal(t *testing.T) {
	n := newNetLab(t)
	for f := range 2 {
		for _, proto := range protos(f) {
			p := packet(podA.at(f), podB.at(f), proto, 80)
			n.steps([]step{
				{"to a pod", n.objs.FromPod, DatapathHookHOOK_POD, n.podA, p, actRedirect, DatapathReasonFWD_LOCAL, nil},
				{"its answer", n.objs.FromPod, DatapathHookHOOK_POD, n.podB, p.turned(), actRedirect, DatapathReasonFWD_LOCAL, nil},
			})
			spoofed := packet(podB.at(f), podA.at(f), proto, 80)
			n.steps([]step{
				{"another pod's source", n.objs.FromPod, DatapathHookHOOK_POD, n.podA, spoofed, actShot, DatapathReasonDROP_SPOOFED, nil},
				{"a pod's source from outside", n.objs.FromNet, DatapathHookHOOK_NET, n.up, spoofed, actShot, DatapathReasonDROP_SPOOFED, nil},
				{"to the node", n.objs.FromPod, DatapathHookHOOK_POD, n.podA, packet(podA.at(f), node.at(f), proto, 80), actOK, DatapathReasonPASS_HOST, nil},
				{"to the node from outside", n.objs.FromNet, DatapathHookHOOK_NET, n.up, packet(world.at(f), node.at(f), proto, 80), actOK, DatapathReasonPASS_HOST, nil},
				{"to nobody from outside", n.objs.FromNet, DatapathHookHOOK_NET, n.up, packet(world.at(f), vip.at(f), proto, 99), actOK, DatapathReasonPASS_UNKNOWN, nil},
			})
		}
	}
}

// TestRootEpoch: the short cut is taken only while the owners are the same.
func TestRootEpoch(t *testing.T) {
	n := newNetLab(t)
	p := packet(podA.at(0), podB.at(0), tcp, 80)
	mid := p
	mid.flags = 0x10
	go3 := []step{
		{"syn", n.objs.FromPod, DatapathHookHOOK_POD, n.podA, p, actRedirect, DatapathReasonFWD_LOCAL, nil},
		{"syn ack", n.objs.FromPod, DatapathHookHOOK_POD, n.podB, p.turned(), actRedirect, DatapathReasonFWD_LOCAL, nil},
		{"ack", n.objs.FromPod, DatapathHookHOOK_POD, n.podA, mid, actRedirect, DatapathReasonFWD_LOCAL, nil},
	}
	n.steps(go3)
	// Without the owner in the map only the short cut can still deliver.
	if err := n.objs.Eps.Delete(key(podB.at(0))); err != nil {
		t.Fatal(err)
	}
	n.steps(go3[2:])
	if err := n.objs.Epoch.Set(uint32(7)); err != nil {
		t.Fatal(err)
	}
	verdict, _ := n.run(n.objs.FromPod, n.podA, mid.bytes())
	if verdict == actRedirect && n.reasons(DatapathHookHOOK_POD)[DatapathReasonFWD_LOCAL] != 4 {
		t.Errorf("a packet took the short cut to a pod that is gone")
	}
}

func TestRootService(t *testing.T) {
	n := newNetLab(t)
	for f := range 2 {
		n.service(uint32(f)+1, vip.at(f), netip.AddrPortFrom(podB.at(f), 8080))
		n.service(uint32(f)+3, empty.at(f), netip.AddrPort{})
		for _, proto := range []uint8{tcp, udp} {
			for _, noSum := range []bool{false, true} {
				if noSum && (proto != udp || f == 1) {
					continue
				}
				p := packet(podA.at(f), vip.at(f), proto, 80)
				p.noSum = noSum
				p.sport += uint16(proto)
				to := p
				to.dst, to.dport = podB.at(f), 8080
				answer, back := to.turned(), p.turned()
				self, selfTo := p, p
				self.src = podB.at(f)
				selfTo.src, selfTo.dst, selfTo.dport = vip.at(f), podB.at(f), 8080
				selfAnswer, selfBack := selfTo.turned(), self.turned()
				n.steps([]step{
					{"to a service", n.objs.FromPod, DatapathHookHOOK_POD, n.podA, p, actRedirect, DatapathReasonFWD_LOCAL, &to},
					{"again", n.objs.FromPod, DatapathHookHOOK_POD, n.podA, p, actRedirect, DatapathReasonFWD_LOCAL, &to},
					{"the answer", n.objs.FromPod, DatapathHookHOOK_POD, n.podB, answer, actRedirect, DatapathReasonFWD_LOCAL, &back},
					{"to itself", n.objs.FromPod, DatapathHookHOOK_POD, n.podB, self, actRedirect, DatapathReasonFWD_LOCAL, &selfTo},
					{"its own answer", n.objs.FromPod, DatapathHookHOOK_POD, n.podB, selfAnswer, actRedirect, DatapathReasonFWD_LOCAL, &selfBack},
				})
			}
		}
	}
}

// TestRootReset: TCP to nobody hears a RST that fits its packet, and nothing is
// answered to a RST.
func TestRootReset(t *testing.T) {
	n := newNetLab(t)
	for f := range 2 {
		n.service(uint32(f)+1, empty.at(f), netip.AddrPort{})
		for _, c := range []struct {
			in, out  uint8
			seq, ack byte
		}{
			{0x02, 0x14, 0, 14}, // SYN with 12 bytes of data after number 1
			{0x11, 0x04, 9, 0},  // FIN and ACK of 9
			{0x01, 0x14, 0, 14}, // FIN
		} {
			p := packet(podA.at(f), empty.at(f), tcp, 80)
			p.flags = c.in
			in := p.bytes()
			if c.in&0x10 != 0 {
				l4 := 14 + []int{20, 40}[f]
				in[l4+11] = 9 // the sum is not looked at
			}
			want := wire{src: empty.at(f), dst: podA.at(f), proto: tcp, sport: 80, dport: 40000, raw: make([]byte, 20)}
			binary.BigEndian.PutUint16(want.raw, 80)
			binary.BigEndian.PutUint16(want.raw[2:], 40000)
			want.raw[7], want.raw[11], want.raw[12], want.raw[13] = c.seq, c.ack, 0x50, c.out
			s := sum(want.raw) + sum(want.src.AsSlice()) + sum(want.dst.AsSlice()) + tcp + 20
			binary.BigEndian.PutUint16(want.raw[16:], fold(s))
			frame := want.bytes()
			copy(frame, append(append([]byte{}, frame[6:12]...), frame[:6]...))
			verdict, got := n.run(n.objs.FromPod, n.podA, in)
			if verdict != actRedirect {
				t.Errorf("verdict %d, want %d", verdict, actRedirect)
			}
			if f == 0 { // the identification is not interesting
				copy(frame[18:20], got[18:20])
				copy(frame[24:26], []byte{0, 0})
				binary.BigEndian.PutUint16(frame[24:], fold(sum(frame[14:34])))
			}
			if !bytes.Equal(got, frame) {
				t.Errorf("family %d, flags %#x: answer\n%x, want\n%x", f, c.in, got, frame)
			}
		}
		p := packet(podA.at(f), empty.at(f), tcp, 80)
		p.flags = 0x04
		n.steps([]step{{"a RST", n.objs.FromPod, DatapathHookHOOK_POD, n.podA, p, actShot, DatapathReasonDROP_BACKEND, nil}})
	}
}

// TestRootMasquerade: out with an address and port of the node, and back.
func TestRootMasquerade(t *testing.T) {
	n := newNetLab(t)
	for f := range 2 {
		for _, proto := range protos(f) {
			p := packet(podA.at(f), world.at(f), proto, 443)
			verdict, got := n.run(n.objs.FromPod, n.podA, p.bytes())
			if verdict != actRedirect {
				t.Fatalf("family %d, protocol %d: verdict %d, want %d", f, proto, verdict, actRedirect)
			}
			port := at16(got, f, proto)
			if port < 61000 {
				t.Errorf("family %d, protocol %d: port %d is not in the range", f, proto, port)
			}
			out := p
			out.src, out.sport, out.ttl = node.at(f), port, 63
			if !bytes.Equal(got, out.bytes()) {
				t.Errorf("family %d, protocol %d: went out as\n%x, want\n%x", f, proto, got, out.bytes())
			}
			answer, back := out.turned(), p.turned()
			back.ttl = 63
			n.steps([]step{
				{"the answer", n.objs.FromNet, DatapathHookHOOK_NET, n.up, answer, actRedirect, DatapathReasonFWD_LOCAL, &back},
				{"again", n.objs.FromPod, DatapathHookHOOK_POD, n.podA, p, actRedirect, DatapathReasonFWD_WORLD, &out},
				{"an answer of somebody else's", n.objs.FromNet, DatapathHookHOOK_NET, n.up, wire{
					src: world.at(f), dst: node.at(f), proto: proto, sport: 443, dport: port + 1, flags: 0x12, reply: true,
				}, actOK, DatapathReasonPASS_HOST, nil},
			})
			n.tooBig(f, p, out)
		}
		expired := packet(podA.at(f), world.at(f), udp, 443)
		expired.ttl = 1
		n.steps([]step{{"the last hop", n.objs.FromPod, DatapathHookHOOK_POD, n.podA, expired, actOK, DatapathReasonPASS_TTL, nil}})
	}
}

// at16 is the source port, or the identifier of echo.
func at16(pkt []byte, family int, proto uint8) uint16 {
	l4 := []int{34, 54}[family]
	if proto == icmp || proto == icmp6 {
		l4 += 4
	}
	return binary.BigEndian.Uint16(pkt[l4:])
}

// tooBig: a router's error about a translated packet reaches the pod, and
// quotes what the pod had sent.
func (n *netLab) tooBig(f int, sent, out wire) {
	n.Helper()
	router := netip.MustParseAddr([]string{"203.0.113.9", "2001:db8:9::9"}[f])
	e := wire{
		src: router, dst: node.at(f), proto: []uint8{icmp, icmp6}[f], icmpType: []uint8{3, 2}[f],
		icmpCode: []uint8{4, 0}[f], dport: 1400, payload: quoteOf(out),
	}
	back := e
	// Where a quoted transport sum would be, the original one stays.
	back.dst, back.payload = sent.src, quoteOf(sent)
	back.payload = append([]byte{}, back.payload...)
	ihl := []int{20, 40}[f]
	if sent.proto != tcp {
		at := ihl + 6
		if sent.proto != udp {
			at = ihl + 2
		}
		copy(back.payload[at:at+2], e.payload[at:at+2])
	}
	if f == 0 {
		fixTTL(back.payload, 63)
	} else {
		back.payload[7] = 63
	}
	n.steps([]step{{"too big", n.objs.FromNet, DatapathHookHOOK_NET, n.up, e, actRedirect, DatapathReasonFWD_LOCAL, &back}})
}

// quoteOf is what an error quotes: the IP header and 8 bytes.
func quoteOf(w wire) []byte {
	b := w.ip()
	if w.v4() {
		return b[:28]
	}
	return b[:48]
}

func fixTTL(ip []byte, ttl byte) {
	ip[8] = ttl
	ip[10], ip[11] = 0, 0
	binary.BigEndian.PutUint16(ip[10:], fold(sum(ip[:20])))
}

// TestRootFragments: later fragments follow the first one through a service.
func TestRootFragments(t *testing.T) {
	n := newNetLab(t)
	n.service(1, vip.at(0), netip.AddrPortFrom(podB.at(0), 8080))
	first := packet(podA.at(0), vip.at(0), udp, 80)
	first.frag = 0x2000
	firstTo := first
	firstTo.dst, firstTo.dport = podB.at(0), 8080
	later := wire{src: podA.at(0), dst: vip.at(0), proto: udp, frag: 3, raw: []byte("the rest of it")}
	laterTo := later
	laterTo.dst = podB.at(0)
	n.steps([]step{
		{"first", n.objs.FromPod, DatapathHookHOOK_POD, n.podA, first, actRedirect, DatapathReasonFWD_LOCAL, &firstTo},
		{"later", n.objs.FromPod, DatapathHookHOOK_POD, n.podA, later, actRedirect, DatapathReasonFWD_LOCAL, &laterTo},
	})
}

// TestRootMalformed: whatever is cut off or contradicts itself is dropped and
// counted, or left to the kernel; never sent on.
func TestRootMalformed(t *testing.T) {
	n := newNetLab(t)
	for f := range 2 {
		for _, proto := range protos(f) {
			whole := packet(podA.at(f), podB.at(f), proto, 80).bytes()
			// The kernel itself refuses to run with less than an IP header.
			for size := 14 + []int{20, 40}[f]; size < len(whole); size++ {
				verdict, _ := n.run(n.objs.FromPod, n.podA, whole[:size])
				if verdict != actShot {
					t.Errorf("family %d, protocol %d, first %d of %d bytes: verdict %d, want %d", f, proto, size, len(whole), verdict, actShot)
				}
			}
		}
	}
	v4 := packet(podA.at(0), podB.at(0), tcp, 80).bytes()
	for what, change := range map[string]func([]byte){
		"version 5":           func(b []byte) { b[14] = 0x55 },
		"header of 16 bytes":  func(b []byte) { b[14] = 0x44 },
		"length of 10":        func(b []byte) { b[16], b[17] = 0, 10 },
		"tcp offset of 4":     func(b []byte) { b[34+12] = 0x10 },
		"multicast":           func(b []byte) { b[30] = 224 },
		"options past length": func(b []byte) { b[14] = 0x4f; b[16], b[17] = 0, 60 },
	} {
		b := append([]byte{}, v4...)
		change(b)
		if verdict, _ := n.run(n.objs.FromPod, n.podA, b); verdict != actShot {
			t.Errorf("%s: verdict %d, want %d", what, verdict, actShot)
		}
	}
}
