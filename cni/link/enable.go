// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// addrGenNone is IN6_ADDR_GEN_MODE_NONE of linux/if_link.h.
const addrGenNone = 1

// Enable opens the link at the host end: up, neighbours and host routes to the
// pod. It may be called again.
func (w *Wire) Enable(ctx context.Context, index int, s Spec) error {
	err := w.with(ctx, func(h *netlink.Handle) error {
		l := byIndex(index)
		// The host end has no address; a link-local one would only cause noise.
		// A kernel without IPv6 refuses, and has no noise either.
		_ = h.LinkSetIP6AddrGenMode(l, addrGenNone)
		if err := h.LinkSetAlias(l, s.Alias); err != nil {
			return fmt.Errorf("set alias: %w", err)
		}
		if err := h.LinkSetUp(l); err != nil {
			return fmt.Errorf("set up: %w", err)
		}
		for _, a := range s.Addrs {
			if err := enableAddr(h, index, a, s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("enable link %s: %w", s.HostName, err)
	}
	return nil
}

func enableAddr(h *netlink.Handle, index int, a netip.Addr, s Spec) error {
	if err := setNeighbour(h, index, a, s.MAC); err != nil {
		return err
	}
	route := &netlink.Route{LinkIndex: index, Dst: hostPrefix(a)}
	if a.Is4() {
		route.Scope = netlink.SCOPE_LINK
	}
	if err := h.RouteReplace(route); err != nil {
		return fmt.Errorf("add route to %s: %w", a, err)
	}
	return nil
}
