// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
)

// Mode says who carries flows that have no record. It outlives the daemon.
type Mode struct{ m *ebpf.Map }

// NewMode wraps the map "modes".
func NewMode(m *ebpf.Map) Mode { return Mode{m} }

// Get returns the mode.
func (m Mode) Get() (bpf.DatapathMode, error) {
	var v uint32
	if err := m.m.Lookup(uint32(0), &v); err != nil {
		return 0, fmt.Errorf("read mode: %w", err)
	}
	return bpf.DatapathMode(v), nil
}

// Set changes the mode, for the next packet.
func (m Mode) Set(v bpf.DatapathMode) error {
	if err := m.m.Put(uint32(0), uint32(v)); err != nil {
		return fmt.Errorf("set mode: %w", err)
	}
	return nil
}
