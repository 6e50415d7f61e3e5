// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"bytes"
	"maps"
	"math/rand/v2"
	"os/exec"
	"testing"

	"github.com/cilium/ebpf"
)

const (
	xdpPass = 2
	xdpTX   = 3
)

// xdpMD is the context of a test run of XDP.
type xdpMD struct {
	_       uint32
	End     uint32
	_       uint32
	Ifindex uint32
	_, _    uint32
}

// restore makes the table of flows what it was.
func (d *duel) restore(was map[DatapathTuple]DatapathCtValue) {
	d.Helper()
	var k DatapathTuple
	var v DatapathCtValue
	var all []DatapathTuple
	for it := d.objs.Ct.Iterate(); it.Next(&k, &v); {
		all = append(all, k)
	}
	for _, k := range all {
		if err := d.objs.Ct.Delete(k); err != nil {
			d.Fatal(err)
		}
	}
	for k, v := range was {
		d.put(d.objs.Ct, k, v)
	}
}

func (d *duel) raw() map[DatapathTuple]DatapathCtValue {
	d.Helper()
	var k DatapathTuple
	var v DatapathCtValue
	out := map[DatapathTuple]DatapathCtValue{}
	for it := d.objs.Ct.Iterate(); it.Next(&k, &v); {
		out[k] = v
	}
	return out
}

// early runs a packet through XDP, and says whether that sent it on, and what
// is recorded then.
func (d *duel) early(s shot) (sent bool, out []byte, flows map[tuple]record) {
	d.Helper()
	was := d.raw()
	buf := make([]byte, len(s.in)+256)
	opts := ebpf.RunOptions{Data: s.in, DataOut: buf, Context: xdpMD{End: uint32(len(s.in)), Ifindex: s.link}}
	verdict, err := d.objs.XdpNet.Run(&opts)
	if err != nil {
		return false, nil, nil
	}
	flows = d.recorded()
	if verdict == xdpPass {
		if !bytes.Equal(opts.DataOut, s.in) {
			d.Fatalf("XDP changed what it passes on:\n%x for\n%x", opts.DataOut, s.in)
		}
		return false, nil, nil
	}
	if verdict != xdpTX {
		d.Fatalf("XDP says %d, for\n%x", verdict, s.in)
	}
	d.restore(was)
	return true, opts.DataOut, flows
}

// TestRootXDPAgrees plays packets from outside against XDP and the stages: what
// XDP sends on has the bytes that the stages make of it, and leaves the records
// that they leave.
func TestRootXDPAgrees(t *testing.T) {
	d := newDuel(t)
	out, err := exec.Command("sh", "-ec", `
		for a in 192.0.2.254 192.0.2.2 2001:db8:1::fe 2001:db8:1::2; do
			ip neigh add $a lladdr 02:00:00:00:00:01 dev eth0 nud permanent
		done`).CombinedOutput()
	if err != nil {
		t.Fatalf("%v: %s", err, out)
	}
	d.put(d.objs.Uplinks, d.up, DatapathUplink{
		Addr4: key(node.at(0)), Addr6: key(node.at(1)), Flags: uint32(DatapathUplinkFlagsUPLINK_MASQ | DatapathUplinkFlagsUPLINK_XDP),
	})
	if err := d.objs.Underlay.Set(key(node.at(0))); err != nil {
		t.Fatal(err)
	}
	r := rand.New(rand.NewPCG(9, 10))
	sent := map[DatapathReason]int{}
	for range 1500 {
		d.forget()
		var last shot
		for range 8 {
			last = d.outside(r, last)
			early, got, flows := d.early(last)
			if !d.meet(last) || !early {
				continue
			}
			sent[d.act]++
			d.sameAsStages(last, got, flows)
		}
	}
	for _, act := range []DatapathReason{DatapathReasonFWD_DSR, DatapathReasonFWD_WORLD, DatapathReasonFWD_NATIVE} {
		if sent[act] < 20 {
			t.Errorf("XDP sent %v, by what the stages would have done", sent)
		}
	}
}

// sameAsStages compares what XDP sent with what the stages made.
func (d *duel) sameAsStages(s shot, got []byte, flows map[tuple]record) {
	d.Helper()
	from := 12 // link addresses are the kernel's to find, for the stages
	if d.act == DatapathReasonFWD_DSR {
		got, from = d.unwrap(got), 0
	}
	if !bytes.Equal(got[from:], d.got[from:]) {
		d.Fatalf("XDP made\n%x, the stages\n%x, for\n%x", got, d.got, s.in)
	}
	if now := d.recorded(); !maps.Equal(flows, now) {
		d.Fatalf("XDP left\n%+v, the stages\n%+v, after\n%x", flows, now, s.in)
	}
}

// unwrap checks the overlay's headers and takes them off.
func (d *duel) unwrap(b []byte) []byte {
	d.Helper()
	if len(b) < 50 || !bytes.Equal(b[12:14], []byte{8, 0}) || b[23] != udp || len(b) != int(b[16])<<8|int(b[17])+14 {
		d.Fatalf("no overlay: %x", b)
	}
	if !bytes.Equal(b[26:34], append(node.at(0).AsSlice(), 192, 0, 2, 2)) || sum(b[14:34])%0xffff != 0 {
		d.Fatalf("outer addresses or sum: %x", b[14:34])
	}
	if !bytes.Equal(b[36:38], []byte{0x21, 0x18}) || !bytes.Equal(b[40:50], []byte{0, 0, 8, 0, 0, 0, 0x80, 0, 1, 0}) {
		d.Fatalf("outer UDP or VXLAN: %x", b[34:50])
	}
	return b[50:]
}

// outside invents packets from outside to the node's ports, and answers.
func (d *duel) outside(r *rand.Rand, last shot) shot {
	f := r.IntN(2)
	if r.IntN(3) == 0 && len(d.got) > 34 && last.in != nil && d.act != DatapathReasonFWD_DSR {
		if s := d.answer(r, d.got); s.hook == DatapathHookHOOK_NET {
			return s
		}
	}
	p := packet(world.at(f), node.at(f), []uint8{tcp, udp}[r.IntN(2)], []uint16{nodePort, directPort, directPort, nativePort}[r.IntN(4)])
	if p.sport += uint16(r.IntN(2)); p.proto == tcp {
		p.flags = []uint8{0x02, 0x10, 0x10, 0x18, 0x11, 0x04}[r.IntN(6)]
	}
	p.payload = make([]byte, r.IntN(60)+12)
	for i := range p.payload {
		p.payload[i] = byte(r.Uint32())
	}
	p.noSum = f == 0 && p.proto == udp && r.IntN(4) == 0
	p.ttl = []uint8{0, 0, 0, 1, 2}[r.IntN(5)]
	return shot{DatapathHookHOOK_NET, d.up, p.bytes()}
}
