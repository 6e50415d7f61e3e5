// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
)

// Route says what lies behind a range of addresses.
type Route struct {
	Kind    bpf.DatapathRouteKind
	IfIndex int
	// Next is the next hop of a native route (invalid: on the link), or the
	// other end of the tunnel.
	Next netip.Addr
	// MAC and SrcMAC are the inner link addresses of a tunnel.
	MAC, SrcMAC net.HardwareAddr
	// DSR is the overlay's device by which the node behind takes flows to
	// answer them itself, and Far that node's end of the overlay; 0: it does not.
	DSR int
	Far netip.Addr
	// Under is what lies below a tunnel.
	Under Under
}

// Routes is the trie from range to route, and the table of their short cuts.
type Routes struct{ m, ways *ebpf.Map }

// NewRoutes wraps the maps "routes" and "ways".
func NewRoutes(m, ways *ebpf.Map) Routes { return Routes{m, ways} }

func routeKey(p netip.Prefix) bpf.DatapathRouteKey {
	return bpf.DatapathRouteKey{Bits: prefixBits(p), Addr: AddrOf(p.Masked().Addr())}
}

func routeValue(r Route) bpf.DatapathRoute {
	v := bpf.DatapathRoute{Kind: uint32(r.Kind), Oif: uint32(r.IfIndex), Next: AddrOf(r.Next), Dsr: uint32(r.DSR), Far: AddrOf(r.Far)}
	copy(v.Mac[:], r.MAC)
	copy(v.Smac[:], r.SrcMAC)
	return v
}

// Sync makes the trie hold what is wanted, and writes only what differs. With
// prune it removes what is not wanted. The epoch has to be raised after it.
func (r Routes) Sync(want map[netip.Prefix]Route, prune bool) error {
	have, err := all[bpf.DatapathRouteKey, bpf.DatapathRoute](r.m)
	if err != nil {
		return err
	}
	ways, err := number(r.ways, have)
	if err != nil {
		return err
	}
	for p, rt := range want {
		k, v := routeKey(p), routeValue(rt)
		if v.Way, err = ways.at(wayOf(rt)); err != nil {
			return err
		}
		old, ok := have[k]
		delete(have, k)
		if ok && old == v {
			continue
		}
		if err := r.m.Put(k, v); err != nil {
			return fmt.Errorf("write route %s: %w", p, err)
		}
	}
	for k := range have {
		if !prune {
			break
		}
		if err := deleteKey(r.m, k); err != nil {
			return err
		}
	}
	return nil
}

// All returns the routes by range.
func (r Routes) All() (map[netip.Prefix]Route, error) {
	raw, err := all[bpf.DatapathRouteKey, bpf.DatapathRoute](r.m)
	if err != nil {
		return nil, err
	}
	out := make(map[netip.Prefix]Route, len(raw))
	for k, v := range raw {
		out[toPrefix(k.Addr, k.Bits)] = Route{
			Kind:    bpf.DatapathRouteKind(v.Kind),
			IfIndex: int(v.Oif),
			Next:    ToAddr(v.Next),
			MAC:     net.HardwareAddr(v.Mac[:]),
			SrcMAC:  net.HardwareAddr(v.Smac[:]),
			DSR:     int(v.Dsr),
			Far:     ToAddr(v.Far),
		}
	}
	return out, nil
}

// Uplink is an interface with a way out.
type Uplink struct {
	// Addr4 and Addr6 are the addresses that translated flows leave with;
	// invalid: there is none of the family.
	Addr4, Addr6 netip.Addr
	// Masquerade: pods' flows are translated too.
	Masquerade bool
	// XDP: it takes frames that XDP sends.
	XDP bool
}

// Uplinks is the map of them by interface index.
type Uplinks struct{ m *ebpf.Map }

// NewUplinks wraps the map "uplinks".
func NewUplinks(m *ebpf.Map) Uplinks { return Uplinks{m} }

// Sync makes the map hold exactly want, and writes only what differs.
func (u Uplinks) Sync(want map[int]Uplink) error {
	have, err := all[uint32, bpf.DatapathUplink](u.m)
	if err != nil {
		return err
	}
	for idx, up := range want {
		k := uint32(idx)
		v := bpf.DatapathUplink{Addr4: AddrOf(up.Addr4), Addr6: AddrOf(up.Addr6)}
		if up.Masquerade {
			v.Flags = uint32(bpf.DatapathUplinkFlagsUPLINK_MASQ)
		}
		if up.XDP {
			v.Flags |= uint32(bpf.DatapathUplinkFlagsUPLINK_XDP)
		}
		old, ok := have[k]
		delete(have, k)
		if ok && old == v {
			continue
		}
		if err := u.m.Put(k, v); err != nil {
			return fmt.Errorf("write uplink %d: %w", idx, err)
		}
	}
	for k := range have {
		if err := deleteKey(u.m, k); err != nil {
			return err
		}
	}
	return nil
}
