// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
)

// Stat is what a service's port carried since its entry was made.
type Stat struct {
	// Connections that got a backend, and those that were refused because
	// there was none, or their source was not admitted.
	Connections, Refused uint64
	// BytesIn from clients to backends, BytesOut back.
	BytesIn, BytesOut uint64
}

// Others is the entry of all services that found no room.
const Others uint32 = 0

// Stats counts per service; the programs make the entries.
type Stats struct{ m *ebpf.Map }

// NewStats wraps the map "svc_stats".
func NewStats(m *ebpf.Map) Stats { return Stats{m} }

// Init makes the entry of those that find no room.
func (s Stats) Init() error {
	cpus, err := ebpf.PossibleCPU()
	if err != nil {
		return err
	}
	err = s.m.Update(Others, make([]bpf.DatapathSvcStat, cpus), ebpf.UpdateNoExist)
	if err != nil && !errors.Is(err, ebpf.ErrKeyExist) {
		return fmt.Errorf("make statistics of services: %w", err)
	}
	return nil
}

// All returns the entries by the service's number.
func (s Stats) All() (map[uint32]Stat, error) {
	out := map[uint32]Stat{}
	var id uint32
	var per []bpf.DatapathSvcStat
	it := s.m.Iterate()
	for it.Next(&id, &per) {
		out[id] = sumOf(per)
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("read statistics of services: %w", err)
	}
	return out, nil
}

func sumOf(per []bpf.DatapathSvcStat) Stat {
	var sum Stat
	for _, c := range per {
		sum.Connections += c.Connections
		sum.Refused += c.Refused
		sum.BytesIn += c.BytesIn
		sum.BytesOut += c.BytesOut
	}
	return sum
}

// Delete forgets a service.
func (s Stats) Delete(id uint32) error { return deleteKey(s.m, id) }
