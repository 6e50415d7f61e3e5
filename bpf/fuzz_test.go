// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
)

// seeds are ordinary packets of every kind.
func seeds() [][]byte {
	var out [][]byte
	for f := range 2 {
		for _, proto := range protos(f) {
			for _, dst := range []netip.Addr{podB.at(f), vip.at(f), empty.at(f), node.at(f), world.at(f)} {
				p := packet(podA.at(f), dst, proto, 80)
				out = append(out, p.bytes())
				answer := p.turned()
				out = append(out, answer.bytes())
			}
		}
		e := wire{
			src: podA.at(f), dst: world.at(f), proto: []uint8{icmp, icmp6}[f], icmpType: []uint8{3, 1}[f],
			payload: quoteOf(packet(world.at(f), podA.at(f), udp, 80)),
		}
		out = append(out, e.bytes())
	}
	// Extension headers: hop by hop, routing, fragment.
	for _, next := range []byte{0, 43, 44, 60, 51} {
		p := packet(podA.at(1), podB.at(1), udp, 80)
		p.raw = append([]byte{udp, 0, 0, 0, 0, 0, 0, 0}, p.l4()...)
		p.proto = next
		out = append(out, p.bytes())
	}
	return out
}

// TestRootMutations runs ordinary packets with bytes changed or cut off at
// random through all programs. Whatever comes out: the verdict is one of
// three, the packet is counted just once, what is dropped or left to the kernel
// untranslated has not been touched, and nothing of a pod's goes on that has
// not the pod's source.
func TestRootMutations(t *testing.T) {
	n := newNetLab(t)
	for f := range 2 {
		n.service(uint32(f)+1, vip.at(f), netip.AddrPortFrom(podB.at(f), 8080))
		n.service(uint32(f)+3, empty.at(f), netip.AddrPort{})
	}
	r := rand.New(rand.NewPCG(5, 6))
	all := seeds()
	for _, h := range []struct {
		hook    DatapathHook
		prog    *ebpf.Program
		ifindex uint32
	}{
		{DatapathHookHOOK_POD, n.objs.FromPod, n.podA},
		{DatapathHookHOOK_NET, n.objs.FromNet, n.up},
		{DatapathHookHOOK_TUN, n.objs.FromTun, n.up},
		{DatapathHookHOOK_TOPOD, n.objs.ToPod, n.podA},
		{DatapathHookHOOK_TONET, n.objs.ToNet, n.up},
	} {
		ran := uint64(0)
		for range 20000 {
			if n.survives(h.hook, h.prog, h.ifindex, mutate(r, all[r.IntN(len(all))])) {
				ran++
			}
		}
		counted := uint64(0)
		for reason, c := range n.reasons(h.hook) {
			// A refusal that could not be made is counted as such, too.
			if reason != DatapathReasonDROP_NO_REJECT && reason != DatapathReasonDROP_REDIRECT {
				counted += c
			}
		}
		if counted != ran {
			t.Errorf("hook %d: %d packets, %d counted", h.hook, ran, counted)
		}
	}
}

// survives runs one packet; false when the kernel itself refuses to, because it
// is too short for the family that it claims.
func (n *netLab) survives(hook DatapathHook, prog *ebpf.Program, ifindex uint32, in []byte) bool {
	n.Helper()
	out := make([]byte, len(in)+256)
	opts := ebpf.RunOptions{Data: in, DataOut: out, Context: skb{Ifindex: ifindex}}
	verdict, err := prog.Run(&opts)
	if err != nil {
		return false
	}
	if verdict != actOK && verdict != actShot && verdict != actRedirect {
		n.Fatalf("hook %d: verdict %d for\n%x", hook, verdict, in)
	}
	if verdict == actShot && !bytes.Equal(in, opts.DataOut) && len(in) == len(opts.DataOut) {
		n.Fatalf("hook %d: dropped, but changed from\n%x to\n%x", hook, in, opts.DataOut)
	}
	if hook == DatapathHookHOOK_POD && verdict == actRedirect && !fromPodA(in) {
		n.Fatalf("went on with another source:\n%x", in)
	}
	return true
}

func mutate(r *rand.Rand, seed []byte) []byte {
	b := append([]byte{}, seed...)
	for range r.IntN(5) {
		// More often where headers are.
		at := 12 + r.IntN(min(len(b), 70)-12)
		switch r.IntN(3) {
		case 0:
			b[at] ^= 1 << r.IntN(8)
		case 1:
			b[at] = byte(r.IntN(256))
		default:
			b[at] = []byte{0, 1, 0x0f, 0x45, 0x60, 0xff}[r.IntN(6)]
		}
	}
	if r.IntN(4) == 0 {
		b = b[:14+r.IntN(len(b)-14)]
	}
	return b
}

// fromPodA says whether the sender, of an ICMP error too, is the first pod.
func fromPodA(b []byte) bool {
	if b[12] == 0x08 {
		return bytes.Equal(b[26:30], podA.at(0).AsSlice())
	}
	return bytes.Equal(b[22:38], podA.at(1).AsSlice())
}
