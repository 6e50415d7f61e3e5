// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"slices"

	"github.com/nodeagent/nodeagent/dataplane/maps"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// lostBackend is a backend that a service does not have any more. UDP flows
// leave it at once: nobody would tell the client that it is gone. TCP
// connections stay, a pod that ends may want to finish them.
type lostBackend struct {
	service uint32
	at      netip.AddrPort
}

// lost are the backends of UDP frontends that an owner has and will not have.
func (t *table) lost(old *owned, owner string, entries []service.Entry) []lostBackend {
	want := map[maps.ServiceKey][]service.Backend{}
	for _, e := range entries {
		want[keyOf(e.Frontend)] = e.Backends
	}
	var out []lostBackend
	for _, key := range old.fronts {
		f := t.fronts[key]
		if key.Proto != service.UDP || f == nil || f.owner != owner || f.value.Count == 0 {
			continue
		}
		i := slices.IndexFunc(old.slices, func(s *slice) bool { return s.base == f.value.Base })
		if i < 0 {
			continue
		}
		for _, b := range old.slices[i].backends {
			if !slices.Contains(want[key], b) {
				out = append(out, lostBackend{f.value.Id, netip.AddrPortFrom(b.Addr, b.Port)})
			}
		}
	}
	return out
}

// stranded says whether a flow goes to a backend that its service has lost.
func stranded(f maps.Flow, lost map[lostBackend]bool) bool {
	if len(lost) == 0 || f.Service == 0 || f.Orig.Proto != protoUDP {
		return false
	}
	return lost[lostBackend{f.Service, f.Other.Dst}] || lost[lostBackend{f.Service, f.Orig.Dst}]
}
