// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
)

// Under is the way to the other end of a tunnel, below the tunnel's device; zero
// leaves it to the device.
type Under struct {
	IfIndex int
	// Next is the next hop, Src the node's own address; both IPv4.
	Next, Src netip.Addr
}

// wayOf is what the short cut has to know of a route; zero when there is none.
func wayOf(r Route) (v bpf.DatapathWay) {
	if r.Kind != bpf.DatapathRouteKindROUTE_NATIVE && r.Kind != bpf.DatapathRouteKindROUTE_TUNNEL {
		return v
	}
	v.Kind, v.Oif, v.Next = uint32(r.Kind), uint32(r.IfIndex), AddrOf(r.Next)
	copy(v.Mac[:6], r.MAC)
	copy(v.Mac[6:], r.SrcMAC)
	if u := r.Under; u.IfIndex != 0 {
		v.Under, v.Hop, v.Src = uint32(u.IfIndex), wire4(u.Next), wire4(u.Src)
	}
	return v
}

// wire4 is an IPv4 address as it is on the wire.
func wire4(a netip.Addr) uint32 {
	b := a.As4()
	return binary.NativeEndian.Uint32(b[:])
}

// numbering gives ways their numbers. One that a route had before is not given
// to another way: flows go by it until the epoch changes.
type numbering struct {
	m    *ebpf.Map
	of   map[bpf.DatapathWay]uint32
	had  map[uint32]bool
	next uint32
}

// number begins with the numbers of the routes that are in force.
func number(m *ebpf.Map, have map[bpf.DatapathRouteKey]bpf.DatapathRoute) (*numbering, error) {
	n := &numbering{m: m, of: map[bpf.DatapathWay]uint32{}, had: map[uint32]bool{0: true}}
	for _, r := range have {
		if n.had[r.Way] {
			continue
		}
		var v bpf.DatapathWay
		if err := m.Lookup(r.Way, &v); err != nil {
			return nil, fmt.Errorf("read way %d: %w", r.Way, err)
		}
		n.of[v], n.had[r.Way] = r.Way, true
	}
	return n, nil
}

// at is the number of a way, which is written if it has none yet; 0 when it has
// no short cut, or there are too many.
func (n *numbering) at(v bpf.DatapathWay) (uint32, error) {
	if v == (bpf.DatapathWay{}) {
		return 0, nil
	}
	if num, ok := n.of[v]; ok {
		return num, nil
	}
	for n.had[n.next] {
		n.next++
	}
	if n.next >= n.m.MaxEntries() {
		return 0, nil
	}
	if err := n.m.Put(n.next, v); err != nil {
		return 0, fmt.Errorf("write way %d: %w", n.next, err)
	}
	n.of[v], n.had[n.next] = n.next, true
	return n.next, nil
}
