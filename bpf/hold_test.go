// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"testing"

	"github.com/cilium/ebpf"
)

// TestRootHold: connections that are held stay in a table that far more flows
// than it has room for are recorded in.
func TestRootHold(t *testing.T) {
	const held, flood, every = 64, 8192, 64
	n := newNetLab(t)
	var answers []wire
	for i := range held {
		p := packet(podA.at(0), world.at(0), tcp, uint16(1000+i))
		_, out := n.run(n.objs.FromPod, n.podA, p.bytes())
		p.src, p.sport = node.at(0), binary.BigEndian.Uint16(out[34:]) // as it was translated
		a := p.turned()
		a.flags = 0x12
		answers = append(answers, a)
		if verdict, _ := n.run(n.objs.FromNet, n.up, a.bytes()); verdict != actRedirect {
			t.Fatalf("connection %d: verdict %d", i, verdict)
		}
	}
	for i := range flood {
		p := packet(podA.at(0), world.at(0), tcp, uint16(2000+i))
		n.run(n.objs.FromPod, n.podA, p.bytes())
		if i%every == 0 {
			if _, err := n.objs.CtHold.Run(&ebpf.RunOptions{}); err != nil {
				t.Fatal(err)
			}
		}
	}
	for i, a := range answers {
		a.flags = 0x10
		if verdict, _ := n.run(n.objs.FromNet, n.up, a.bytes()); verdict != actRedirect {
			t.Errorf("connection %d is forgotten: verdict %d", i, verdict)
		}
	}
}
