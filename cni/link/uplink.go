// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// Uplink is the device that leads out of the host namespace.
type Uplink struct {
	Name string
	MTU  int
}

// MTUOf returns the MTU of a device of the host; 0 if there is none of the name.
func (w *Wire) MTUOf(ctx context.Context, name string) (mtu int, err error) {
	err = w.with(ctx, func(h *netlink.Handle) error {
		l, err := h.LinkByName(name)
		if absent(err) {
			return nil
		}
		if err != nil {
			return err
		}
		mtu = l.Attrs().MTU
		return nil
	})
	if err != nil {
		return 0, fmt.Errorf("find device %s: %w", name, err)
	}
	return mtu, nil
}

// Uplinks returns the devices of the default routes, at most one per family;
// none if the host has no way out.
func (w *Wire) Uplinks(ctx context.Context) (out []Uplink, err error) {
	err = w.with(ctx, func(h *netlink.Handle) error {
		for _, zero := range []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()} {
			routes, err := h.RouteGet(outside(zero).AsSlice())
			if err != nil || len(routes) == 0 {
				continue // unreachable: no default route in this family
			}
			l, err := h.LinkByIndex(routes[0].LinkIndex)
			if err != nil {
				return err
			}
			u := Uplink{l.Attrs().Name, l.Attrs().MTU}
			if len(out) == 0 || out[0] != u {
				out = append(out, u)
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("find uplinks: %w", err)
	}
	return out, nil
}
