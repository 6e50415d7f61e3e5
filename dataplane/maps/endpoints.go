// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
)

// Endpoint is what the data path knows of the owner of an address.
type Endpoint struct {
	// Host says that the address is the node's own; the rest is then unset.
	Host         bool
	IfIndex      int
	MAC, HostMAC net.HardwareAddr
	// Rate is the endpoint's slot of the bandwidth map; 0: unlimited.
	Rate uint32
}

// Endpoints is the map from address to owner, and that from an address's number
// to the address.
type Endpoints struct{ m, ids *ebpf.Map }

// NewEndpoints wraps the maps "eps" and "dsr_ids".
func NewEndpoints(m, ids *ebpf.Map) Endpoints { return Endpoints{m, ids} }

// addrID is dsr_id of bpf/lib/dsr.h.
func addrID(a bpf.DatapathAddr) uint64 {
	h := uint64(0xcbf29ce484222325)
	for i := 0; i < len(a.B); i += 4 {
		h = (h ^ uint64(binary.LittleEndian.Uint32(a.B[i:]))) * 0x9e3779b97f4a7c15
		h ^= h >> 32
	}
	return h >> 8
}

// Index makes the numbers be those of the addresses that have an owner.
func (e Endpoints) Index() error {
	have, err := all[uint64, bpf.DatapathAddr](e.ids)
	if err != nil {
		return err
	}
	owned, err := all[bpf.DatapathAddr, bpf.DatapathEndpoint](e.m)
	if err != nil {
		return err
	}
	for a := range owned {
		id := addrID(a)
		if have[id] != a {
			if err := e.ids.Put(id, a); err != nil {
				return fmt.Errorf("write number of %s: %w", ToAddr(a), err)
			}
		}
		delete(have, id)
	}
	for id := range have {
		if err := deleteKey(e.ids, id); err != nil {
			return err
		}
	}
	return nil
}

// Put makes an endpoint the owner of an address.
func (e Endpoints) Put(a netip.Addr, ep Endpoint) error {
	v := bpf.DatapathEndpoint{Ifindex: uint32(ep.IfIndex), Rate: ep.Rate}
	if ep.Host {
		v.Flags = uint32(bpf.DatapathEpFlagsEP_HOST)
	}
	copy(v.Mac[:], ep.MAC)
	copy(v.Hmac[:], ep.HostMAC)
	if err := e.m.Put(AddrOf(a), v); err != nil {
		return fmt.Errorf("write endpoint %s: %w", a, err)
	}
	if err := e.ids.Put(addrID(AddrOf(a)), AddrOf(a)); err != nil {
		return fmt.Errorf("write number of %s: %w", a, err)
	}
	return nil
}

// Get is the owner of an address; false: it is nobody's.
func (e Endpoints) Get(a netip.Addr) (Endpoint, bool, error) {
	var v bpf.DatapathEndpoint
	err := e.m.Lookup(AddrOf(a), &v)
	if errors.Is(err, ebpf.ErrKeyNotExist) {
		return Endpoint{}, false, nil
	}
	if err != nil {
		return Endpoint{}, false, fmt.Errorf("read endpoint %s: %w", a, err)
	}
	return toEndpoint(v), true, nil
}

func toEndpoint(v bpf.DatapathEndpoint) Endpoint {
	return Endpoint{
		Host:    v.Flags&uint32(bpf.DatapathEpFlagsEP_HOST) != 0,
		IfIndex: int(v.Ifindex),
		MAC:     net.HardwareAddr(v.Mac[:]),
		HostMAC: net.HardwareAddr(v.Hmac[:]),
		Rate:    v.Rate,
	}
}

// Delete makes an address nobody's.
func (e Endpoints) Delete(a netip.Addr) error {
	return errors.Join(deleteKey(e.m, AddrOf(a)), deleteKey(e.ids, addrID(AddrOf(a))))
}

// All returns the owners of all addresses.
func (e Endpoints) All() (map[netip.Addr]Endpoint, error) {
	raw, err := all[bpf.DatapathAddr, bpf.DatapathEndpoint](e.m)
	if err != nil {
		return nil, err
	}
	out := make(map[netip.Addr]Endpoint, len(raw))
	for k, v := range raw {
		out[ToAddr(k)] = toEndpoint(v)
	}
	return out, nil
}
