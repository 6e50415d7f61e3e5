// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
)

// TestRootReject: the refusal quotes the packet, and its sums are right.
func TestRootReject(t *testing.T) {
	n := newNetLab(t)
	for f := range 2 {
		n.service(uint32(f)+1, empty.at(f), netip.AddrPort{})
		p := packet(podA.at(f), empty.at(f), udp, 80)
		verdict, got := n.run(n.objs.FromPod, n.podA, p.bytes())
		if verdict != actRedirect {
			t.Errorf("verdict %d, want %d", verdict, actRedirect)
		}
		if want := refusal(p, wire{icmpType: []uint8{3, 1}[f], icmpCode: []uint8{3, 4}[f]}, got); !bytes.Equal(got, want) {
			t.Errorf("family %d: refusal\n%x, want\n%x", f, got, want)
		}
	}
}

// refusal is the ICMP error about a packet, with a type and a code, and what
// got has where it does not matter.
func refusal(p, e wire, got []byte) []byte {
	f := one(!p.v4())
	quote := p.ip()
	e.src, e.dst, e.proto = p.dst, p.src, []uint8{icmp, icmp6}[f]
	e.payload = quote[:min(len(quote), []int{40, 60}[f])&^3]
	want := e.bytes()
	copy(want, append(append([]byte{}, want[6:12]...), want[:6]...))
	if p.v4() { // the identification is not interesting
		copy(want[18:20], got[18:20])
		copy(want[24:26], []byte{0, 0})
		binary.BigEndian.PutUint16(want[24:], fold(sum(want[14:34])))
	}
	return want
}

// TestRootTooBig: who sends what the way ahead cannot carry is told how much it
// carries, and hears it whatever its policies say; what may be cut into
// fragments is left to the kernel.
func TestRootTooBig(t *testing.T) {
	n := newNetLab(t)
	for f := range 2 {
		bits := []uint32{96 + 24, 64}[f]
		n.put(n.objs.Routes, DatapathRouteKey{Bits: bits, Addr: key(native.at(f))},
			DatapathRoute{Kind: uint32(DatapathRouteKindROUTE_NATIVE), Oif: n.up, Next: key(world.at(f))})
		n.service(uint32(f)+1, vip.at(f), netip.AddrPortFrom(native.at(f), 80))
		n.isolate(podB.at(f), isolatedIn, 0)
		for _, proto := range []uint8{tcp, udp} {
			for _, to := range []netip.Addr{native.at(f), vip.at(f), world.at(f)} {
				p := packet(podB.at(f), to, proto, 80)
				p.payload, p.frag = make([]byte, 1600), 0x4000
				e := wire{icmpType: []uint8{3, 2}[f], icmpCode: []uint8{4, 0}[f], dport: 1500}
				before := n.reasons(DatapathHookHOOK_POD)[DatapathReasonFWD_TOO_BIG]
				verdict, got := n.run(n.objs.FromPod, n.podB, p.bytes())
				if verdict != actRedirect || n.reasons(DatapathHookHOOK_POD)[DatapathReasonFWD_TOO_BIG] != before+1 {
					t.Errorf("protocol %d to %s: verdict %d, counted %v", proto, to, verdict, n.reasons(DatapathHookHOOK_POD))
				}
				if want := refusal(p, e, got); !bytes.Equal(got, want) {
					t.Errorf("protocol %d to %s: error\n%x, want\n%x", proto, to, got, want)
				}
				back := &ebpf.RunOptions{Data: got, DataOut: make([]byte, 512), Context: skb{Ifindex: n.podB, Ingress: n.podB}}
				if verdict, err := n.objs.ToPod.Run(back); err != nil || verdict != actOK {
					t.Errorf("protocol %d to %s: the error on its way to the pod: verdict %d, %v", proto, to, verdict, err)
				}
			}
		}
	}
	may := packet(podA.at(0), native.at(0), udp, 80)
	may.payload = make([]byte, 1600)
	n.steps([]step{{"may be cut", n.objs.FromPod, DatapathHookHOOK_POD, n.podA, may, actOK, DatapathReasonPASS_TOO_BIG, nil}})
}
