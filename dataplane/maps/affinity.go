// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
)

// Affinity says which backend a client was given last.
type Affinity struct{ m *ebpf.Map }

// NewAffinity wraps the map "aff".
func NewAffinity(m *ebpf.Map) Affinity { return Affinity{m} }

// Kept is what a client has.
type Kept struct {
	Backend netip.AddrPort
	Seen    Ticks
}

// Of is the backend of a client whose packets are translated, by its address;
// false when it has none. Clients at the socket are known by their namespace.
func (a Affinity) Of(svc uint32, client netip.Addr) (Kept, bool, error) {
	var v bpf.DatapathAffValue
	err := a.m.Lookup(bpf.DatapathAffKey{Svc: svc, Client: AddrOf(client)}, &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return Kept{}, false, nil
	}
	if err != nil {
		return Kept{}, false, fmt.Errorf("look up affinity: %w", err)
	}
	return Kept{Backend: netip.AddrPortFrom(ToAddr(v.Addr), Port(v.Port)), Seen: Ticks(v.Seen)}, true, nil
}
