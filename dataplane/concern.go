// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"maps"
	"net/netip"
	"slices"
	"sync/atomic"

	"github.com/nodeagent/nodeagent/dataplane/attach"
)

// concerns is what lookAtHost may find changed, so that the coming and going of
// pods, some ten notifications each, does not have all links and routes of the
// node read again: that costs more the more pods there are.
type concerns struct{ now atomic.Pointer[concern] }

type concern struct {
	links map[int]bool
	names []string // of interfaces that matter as soon as they are there
	peers map[netip.Addr]bool
}

var _ attach.Concern = (*concerns)(nil)

// Link says whether a change of an interface matters; see relevant. One gets to
// matter by an address or a default route, which are told of by themselves.
func (c *concerns) Link(index int, name string) bool {
	now := c.now.Load()
	return now == nil || now.links[index] || slices.Contains(now.names, name)
}

// Host says whether a change of the route to one address alone matters.
func (c *concerns) Host(addr netip.Addr) bool {
	now := c.now.Load()
	return now == nil || now.peers[addr]
}

// watchFor brings the concern up to date. What is new in it may have changed
// before it was known: then the host is looked at once more. The caller holds mu.
func (d *Dataplane) watchFor() {
	names := d.cfg.Uplinks
	if len(names) == 0 {
		names = d.node.Uplinks
	}
	next := &concern{
		links: map[int]bool{}, peers: map[netip.Addr]bool{},
		names: append(slices.Clone(names), d.cfg.Tunnel.Device),
	}
	for _, i := range d.host.Interfaces {
		next.links[i.Index] = true
	}
	for far := range d.under {
		next.peers[far] = true
	}
	old := d.concerns.now.Swap(next)
	if old == nil || maps.Equal(old.links, next.links) && maps.Equal(old.peers, next.peers) && slices.Equal(old.names, next.names) {
		return
	}
	select {
	case d.hostChanged <- struct{}{}:
	default:
	}
}
