// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Path is how the kernel sends to an address.
type Path struct {
	IfIndex int
	// Next is the next hop, the address itself on a link; Src is what the node
	// sends from.
	Next, Src netip.Addr
}

// PathTo asks the kernel how it sends to an address.
func PathTo(to netip.Addr) (Path, error) {
	h := &netlink.Handle{}
	routes, err := h.RouteGet(to.AsSlice())
	if err != nil {
		return Path{}, fmt.Errorf("find the way to %s: %w", to, err)
	}
	if len(routes) != 1 || routes[0].Encap != nil || routes[0].Via != nil {
		return Path{}, fmt.Errorf("the way to %s is not an ordinary one", to)
	}
	p := Path{IfIndex: routes[0].LinkIndex, Next: to}
	if gw, ok := netip.AddrFromSlice(routes[0].Gw); ok {
		p.Next = gw.Unmap()
	}
	src, _ := netip.AddrFromSlice(routes[0].Src)
	p.Src = src.Unmap()
	return p, nil
}
