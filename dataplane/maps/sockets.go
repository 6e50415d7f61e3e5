// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
)

// Sockets are the sockets of the node that were given a backend.
type Sockets struct{ m *ebpf.Map }

// NewSockets wraps the map "sk_udp".
func NewSockets(m *ebpf.Map) Sockets { return Sockets{m} }

// ServiceOf is the number of the service that gave a socket its backend; 0 when
// no service did, or it is forgotten.
func (s Sockets) ServiceOf(cookie uint64, backend netip.AddrPort) (uint32, error) {
	key := bpf.DatapathSkKey{Cookie: cookie, Addr: AddrOf(backend.Addr()), Port: Port(backend.Port())}
	var asked bpf.DatapathPeer
	err := s.m.Lookup(key, &asked)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return 0, nil
	}
	if err != nil {
		return 0, fmt.Errorf("look up socket: %w", err)
	}
	return asked.Svc, nil
}
