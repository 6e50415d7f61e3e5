// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/nodeagent/nodeagent/cni/netns"
)

// SetMTU gives both ends of a link and the pod's default routes the MTUs of the
// spec. It may be called again.
func (w *Wire) SetMTU(ctx context.Context, pod *netns.NS, index int, s Spec) error {
	err := w.with(ctx, func(h *netlink.Handle) error { return h.LinkSetMTU(byIndex(index), s.MTU) })
	if err != nil {
		return fmt.Errorf("set MTU of %s: %w", s.HostName, err)
	}
	err = inside(pod, func(h *netlink.Handle) error {
		l, err := h.LinkByName(s.IfName)
		if err != nil {
			return err
		}
		if err := h.LinkSetMTU(l, s.MTU); err != nil {
			return err
		}
		for _, a := range s.Addrs {
			if err := setDefaultRoute(h, l.Attrs().Index, a, s); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("set MTU of %s in %s: %w", s.IfName, pod.Path(), err)
	}
	return nil
}
