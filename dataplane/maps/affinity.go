// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
)

// Affinity says which backend a client was given last.
type Affinity struct{ m *ebpf.Map }

// NewAffinity wraps the map "aff".
func NewAffinity(m *ebpf.Map) Affinity { return Affinity{m} }

// Sweep deletes what is older than its service says, and what is of none, and
// returns how many entries stay.
func (a Affinity) Sweep(timeouts map[uint32]time.Duration) (uint32, error) {
	now, err := Now()
	if err != nil {
		return 0, err
	}
	keys := make([]bpf.DatapathAffKey, batch)
	values := make([]bpf.DatapathAffValue, batch)
	var cursor ebpf.MapBatchCursor
	var gone []bpf.DatapathAffKey
	used := uint32(0)
	for {
		n, err := a.m.BatchLookup(&cursor, keys, values, nil)
		if err != nil && !errors.Is(err, ebpf.ErrKeyNotExist) {
			return used, fmt.Errorf("read affinity: %w", err)
		}
		for i := range n {
			if timeout, ok := timeouts[keys[i].Svc]; ok && now.Since(Ticks(values[i].Seen)) <= timeout {
				used++
			} else {
				gone = append(gone, keys[i])
			}
		}
		if err != nil {
			break
		}
	}
	var errs []error
	for _, k := range gone {
		errs = append(errs, deleteKey(a.m, k))
	}
	return used, errors.Join(errs...)
}

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
