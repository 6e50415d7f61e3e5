// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"

	"github.com/nodeagent/nodeagent/dataplane/attach"
	"github.com/nodeagent/nodeagent/dataplane/maps"
)

// underOf is the way to the other end of the overlay, for packets that do not
// pass the overlay's device: over IPv4, by an uplink that carries as much as the
// device promises, from the address that the other node expects. Zero where any
// of it is otherwise, a WireGuard device for one: then the device does it.
func (d *Dataplane) underOf(far netip.Addr) maps.Under {
	if !d.cfg.Tunnel.Direct || !far.Is4() {
		return maps.Under{}
	}
	path, err := attach.PathTo(far)
	if err != nil || path.Src != d.underlay || !path.Next.Is4() {
		return maps.Under{}
	}
	if _, up := d.uplinks[path.IfIndex]; !up || d.mtuOf(path.IfIndex) < d.underMTU {
		return maps.Under{}
	}
	return maps.Under{IfIndex: path.IfIndex, Next: path.Next, Src: path.Src}
}

// mtuOf an interface of the host; 0 if there is none.
func (d *Dataplane) mtuOf(index int) int {
	for _, i := range d.host.Interfaces {
		if i.Index == index {
			return i.MTU
		}
	}
	return 0
}

// underChanged says whether the kernel has another way to a peer behind the
// overlay than the one that packets go. The caller holds mu.
func (d *Dataplane) underChanged() bool {
	for far, u := range d.under {
		if d.underOf(far) != u {
			return true
		}
	}
	return false
}
