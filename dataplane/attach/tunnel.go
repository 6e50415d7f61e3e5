// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"encoding/binary"
	"errors"
	"fmt"
	"hash/fnv"
	"net"
	"net/netip"
	"os"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Table is the routing table that routes to other nodes are in, so that a
// routing daemon can export them, and Protocol marks them as ours.
const (
	Table    = 0x6e61
	Protocol = 0x6e
)

// rulePriority of the rule that looks the table up: before the main table.
const rulePriority = 1000

// overhead of VXLAN: outer IP, UDP, VXLAN and inner Ethernet headers.
const (
	overhead4 = 50
	overhead6 = 70
)

// TunnelMAC is the link address of a node's overlay device: every other node
// derives it from the address that it sends the overlay's packets to.
func TunnelMAC(node netip.Addr) net.HardwareAddr {
	h := fnv.New64a()
	h.Write(node.AsSlice())
	var sum [8]byte
	binary.BigEndian.PutUint64(sum[:], h.Sum64())
	mac := net.HardwareAddr(sum[:6])
	mac[0] = mac[0]&^1 | 2 // unicast, locally administered
	return mac
}

// TunnelDevice describes the overlay's device.
type TunnelDevice struct {
	Name string
	Port uint16
	// Node is the address that other nodes send to.
	Node netip.Addr
	// MTU of the link below.
	MTU int
}

// EnsureTunnel makes the device, or changes the one that is there, and returns
// its index. A device with another port is made anew.
func EnsureTunnel(t TunnelDevice) (int, error) {
	over := overhead4
	if t.Node.Is6() {
		over = overhead6
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = t.Name
	attrs.MTU = t.MTU - over
	attrs.HardwareAddr = TunnelMAC(t.Node)
	want := &netlink.Vxlan{
		LinkAttrs: attrs, FlowBased: true, Port: int(t.Port),
		UDP6ZeroCSumTx: true, UDP6ZeroCSumRx: true,
	}
	h := &netlink.Handle{}
	have, err := h.LinkByName(t.Name)
	if err == nil {
		if v, ok := have.(*netlink.Vxlan); !ok || v.Port != want.Port || !v.FlowBased {
			if err := h.LinkDel(have); err != nil {
				return 0, fmt.Errorf("delete overlay device %s: %w", t.Name, err)
			}
			have = nil
		}
	}
	if have == nil || err != nil {
		if err := h.LinkAdd(want); err != nil {
			return 0, fmt.Errorf("make overlay device %s: %w", t.Name, err)
		}
		if have, err = h.LinkByName(t.Name); err != nil {
			return 0, fmt.Errorf("find overlay device %s: %w", t.Name, err)
		}
	}
	return have.Attrs().Index, configureTunnel(h, have, attrs)
}

func configureTunnel(h *netlink.Handle, have netlink.Link, want netlink.LinkAttrs) error {
	a := have.Attrs()
	var errs []error
	if a.MTU != want.MTU {
		errs = append(errs, h.LinkSetMTU(have, want.MTU))
	}
	if a.HardwareAddr.String() != want.HardwareAddr.String() {
		errs = append(errs, h.LinkSetHardwareAddr(have, want.HardwareAddr))
	}
	// Replies to the node come from pods behind it, by a route with an encap.
	path := "/proc/sys/net/ipv4/conf/" + want.Name + "/rp_filter"
	if err := os.WriteFile(path, []byte("0"), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, err)
	}
	if a.Flags&net.FlagUp == 0 {
		errs = append(errs, h.LinkSetUp(have))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("configure overlay device %s: %w", want.Name, err)
	}
	return nil
}

// DeleteTunnel removes the device; success when there is none.
func DeleteTunnel(name string) error {
	h := &netlink.Handle{}
	l, err := h.LinkByName(name)
	if _, missing := errors.AsType[netlink.LinkNotFoundError](err); missing {
		return nil
	}
	if err != nil {
		return fmt.Errorf("find overlay device %s: %w", name, err)
	}
	if _, ok := l.(*netlink.Vxlan); !ok {
		return nil
	}
	if err := h.LinkDel(l); err != nil {
		return fmt.Errorf("delete overlay device %s: %w", name, err)
	}
	return nil
}

// ipEncap is a route's encapsulation in an IP tunnel, which the netlink library
// knows for IPv6 underlays only.
type ipEncap struct {
	vni uint32
	dst netip.Addr
}

var _ netlink.Encap = ipEncap{}

// Attributes of LWTUNNEL_ENCAP_IP and LWTUNNEL_ENCAP_IP6: the same numbers.
const (
	lwtunnelIPID  = 1
	lwtunnelIPDst = 2
	lwtunnelIPTTL = 4
)

func (e ipEncap) Type() int {
	if e.dst.Is4() {
		return nl.LWTUNNEL_ENCAP_IP
	}
	return nl.LWTUNNEL_ENCAP_IP6
}

func (e ipEncap) Decode([]byte) error { return nil }

func (e ipEncap) Encode() ([]byte, error) {
	id := binary.BigEndian.AppendUint64(nil, uint64(e.vni))
	out := nl.NewRtAttr(lwtunnelIPID, id).Serialize()
	out = append(out, nl.NewRtAttr(lwtunnelIPDst, e.dst.AsSlice()).Serialize()...)
	return append(out, nl.NewRtAttr(lwtunnelIPTTL, []byte{64}).Serialize()...), nil
}

func (e ipEncap) String() string { return fmt.Sprintf("id %d dst %s", e.vni, e.dst) }

func (e ipEncap) Equal(o netlink.Encap) bool {
	other, ok := o.(ipEncap)
	return ok && other == e
}

// PeerRoute is how the node's own packets reach pods of another node.
type PeerRoute struct {
	Dst     netip.Prefix
	IfIndex int
	// Via is the next hop of a native route.
	Via netip.Addr
	// Tunnel is the other end of a tunnel; invalid for a native route.
	Tunnel netip.Addr
	VNI    uint32
	// Src is the address that the node's own packets leave with.
	Src netip.Addr
}

// PeerRoutes are the routes of our table that this process wrote.
type PeerRoutes struct{ have map[netip.Prefix]PeerRoute }

// Sync makes the table hold exactly want. What an earlier daemon left there is
// replaced where it is wanted, and removed by the first Sync with prune.
func (p *PeerRoutes) Sync(want map[netip.Prefix]PeerRoute, prune bool) error {
	var errs []error
	if len(want) > 0 {
		errs = append(errs, ensureRules())
	}
	if p.have == nil {
		p.have = map[netip.Prefix]PeerRoute{}
	}
	for dst, r := range want {
		if have, ok := p.have[dst]; ok && have == r {
			continue
		}
		if err := r.replace(); err != nil {
			errs = append(errs, err)
			continue
		}
		p.have[dst] = r
	}
	left, err := tableRoutes()
	errs = append(errs, err)
	for _, r := range left {
		dst := prefixOf(r.Dst)
		if _, ok := want[dst]; ok {
			continue
		}
		if _, ours := p.have[dst]; !ours && !prune {
			continue
		}
		if err := netlink.RouteDel(&netlink.Route{Dst: r.Dst, Table: Table, Family: r.Family}); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, fmt.Errorf("delete route to %s: %w", dst, err))
			continue
		}
		delete(p.have, dst)
	}
	return errors.Join(errs...)
}

func prefixOf(n *net.IPNet) netip.Prefix {
	if n == nil {
		return netip.Prefix{}
	}
	a, _ := netip.AddrFromSlice(n.IP)
	ones, _ := n.Mask.Size()
	return netip.PrefixFrom(a.Unmap(), ones)
}

func netOf(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}

func tableRoutes() ([]netlink.Route, error) {
	h := &netlink.Handle{}
	routes, err := retry(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: Table, Protocol: Protocol},
			netlink.RT_FILTER_TABLE|netlink.RT_FILTER_PROTOCOL)
	})
	if err != nil {
		return nil, fmt.Errorf("list routes to nodes: %w", err)
	}
	return routes, nil
}

func (r PeerRoute) replace() error {
	route := &netlink.Route{
		Dst:       netOf(r.Dst),
		LinkIndex: r.IfIndex,
		Table:     Table,
		Protocol:  Protocol,
		Src:       r.Src.AsSlice(),
	}
	switch {
	case r.Tunnel.IsValid():
		route.Encap = ipEncap{r.VNI, r.Tunnel}
		via := r.Dst.Addr()
		route.Gw = via.AsSlice()
		route.Flags = int(netlink.FLAG_ONLINK)
		// The other node's device, whatever address is asked for.
		err := netlink.NeighSet(&netlink.Neigh{
			LinkIndex:    r.IfIndex,
			State:        netlink.NUD_PERMANENT,
			IP:           via.AsSlice(),
			HardwareAddr: TunnelMAC(r.Tunnel),
		})
		if err != nil {
			return fmt.Errorf("set neighbour %s: %w", via, err)
		}
	case r.Via.Is4() == r.Dst.Addr().Is4():
		route.Gw = r.Via.AsSlice()
		route.Flags = int(netlink.FLAG_ONLINK)
	default:
		family := netlink.FAMILY_V4
		if r.Via.Is6() {
			family = netlink.FAMILY_V6
		}
		route.Via = &netlink.Via{AddrFamily: family, Addr: r.Via.AsSlice()}
	}
	if err := netlink.RouteReplace(route); err != nil {
		return fmt.Errorf("set route to %s: %w", r.Dst, err)
	}
	return nil
}

// ensureRules makes our table be looked up before the main one.
func ensureRules() error {
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		r := netlink.NewRule()
		r.Family, r.Table, r.Priority = family, Table, rulePriority
		if err := netlink.RuleAdd(r); err != nil && !errors.Is(err, unix.EEXIST) && !errors.Is(err, unix.EAFNOSUPPORT) {
			return fmt.Errorf("add rule for routes to nodes: %w", err)
		}
	}
	return nil
}

// forgetRoutes removes our table and the rules that lead to it.
func forgetRoutes() error {
	var errs []error
	routes, err := tableRoutes()
	errs = append(errs, err)
	for _, r := range routes {
		if err := netlink.RouteDel(&netlink.Route{Dst: r.Dst, Table: Table, Family: r.Family}); err != nil && !errors.Is(err, unix.ESRCH) {
			errs = append(errs, err)
		}
	}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		r := netlink.NewRule()
		r.Family, r.Table, r.Priority = family, Table, rulePriority
		for err = nil; err == nil; {
			err = netlink.RuleDel(r)
		}
		if !errors.Is(err, unix.ENOENT) && !errors.Is(err, unix.EAFNOSUPPORT) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}
