// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/types"
)

// Directory names what packets carry: addresses and numbers of services, as of
// the moment that it was made.
type Directory struct {
	addrs    map[netip.Addr]string
	ranges   map[netip.Prefix]string
	services map[uint32]string
	// Policies: there are network policies that may have a say.
	Policies bool
}

// Directory is what the data path knows by name now.
func (d *Dataplane) Directory() Directory {
	out := Directory{addrs: map[netip.Addr]string{}, ranges: map[netip.Prefix]string{}, services: map[uint32]string{}}
	d.policies.mu.Lock()
	out.Policies = d.policies.state.Policies() > 0
	d.policies.state.EachAddr(func(a netip.Addr, pod types.NamespacedName) { out.addrs[a] = pod.String() })
	d.policies.mu.Unlock()
	d.mu.Lock()
	defer d.mu.Unlock()
	for _, p := range d.peers {
		for _, a := range p.Addrs {
			out.addrs[a] = "node " + p.Name
		}
		for _, c := range p.PodCIDRs {
			out.ranges[c] = "a pod of node " + p.Name
		}
	}
	for _, a := range slices.Concat(d.host.Addrs(), d.node.Addrs) {
		out.addrs[a] = "this node"
	}
	for _, ep := range d.endpoints {
		for _, a := range ep.Addrs {
			if out.addrs[a] = podOf(ep).String(); ep.Name == "" {
				out.addrs[a] = ep.ID
			}
		}
	}
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	if d.table == nil {
		return out
	}
	for owner, o := range d.table.owners {
		for _, id := range o.ids {
			out.services[id] = strings.TrimPrefix(owner, "service ")
		}
	}
	return out
}

// Addr names the owner of an address, a pod by NAMESPACE/NAME; empty: unknown.
func (x Directory) Addr(a netip.Addr) string {
	if name, ok := x.addrs[a]; ok {
		return name
	}
	for p, name := range x.ranges {
		if p.Contains(a) {
			return name
		}
	}
	return ""
}

// Service names a service by the number that events carry; empty: unknown.
func (x Directory) Service(id uint32) string { return x.services[id] }
