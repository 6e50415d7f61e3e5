// SPDX-License-Identifier: Apache-2.0

package link

import (
	"fmt"

	"github.com/vishvananda/netlink"

	"github.com/nodeagent/nodeagent/cni/netns"
)

// LoopbackUp sets lo up in a pod whose link somebody else makes; Create does it
// for our own.
func LoopbackUp(pod *netns.NS) error {
	err := inside(pod, func(h *netlink.Handle) error { return h.LinkSetUp(byIndex(loIndex)) })
	if err != nil {
		return fmt.Errorf("set lo up in %s: %w", pod.Path(), err)
	}
	return nil
}
