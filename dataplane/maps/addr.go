// SPDX-License-Identifier: Apache-2.0

// Package maps gives each BPF map of the data path its verbs and its types. It
// knows the layout that bpf/lib declares and nothing of why an entry is there.
package maps

import (
	"errors"
	"fmt"
	"math/bits"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
)

// batch is how many entries a batched system call carries.
const batch = 4096

// AddrOf returns the 16 bytes that stand for an address in every map; IPv4 is
// mapped. An invalid address becomes zero.
func AddrOf(a netip.Addr) bpf.DatapathAddr {
	if !a.IsValid() {
		return bpf.DatapathAddr{}
	}
	return bpf.DatapathAddr{B: a.As16()}
}

// ToAddr is the reverse of AddrOf; zero becomes invalid.
func ToAddr(a bpf.DatapathAddr) netip.Addr {
	if a.B == [16]byte{} {
		return netip.Addr{}
	}
	return netip.AddrFrom16(a.B).Unmap()
}

// Port turns a port to or from the byte order of the wire.
func Port(p uint16) uint16 { return bits.ReverseBytes16(p) }

// prefixBits is the length of a prefix of the 16 byte form.
func prefixBits(p netip.Prefix) uint32 {
	if p.Addr().Is4() {
		return uint32(96 + p.Bits())
	}
	return uint32(p.Bits())
}

// toPrefix is the reverse of AddrOf and prefixBits.
func toPrefix(a bpf.DatapathAddr, n uint32) netip.Prefix {
	addr := netip.AddrFrom16(a.B)
	if addr.Is4In6() && n >= 96 {
		return netip.PrefixFrom(addr.Unmap(), int(n)-96)
	}
	return netip.PrefixFrom(addr, int(n))
}

// deleteKey deletes an entry; one that is absent is no fault.
func deleteKey(m *ebpf.Map, key any) error {
	err := m.Delete(key)
	if err == nil || errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return fmt.Errorf("delete from map %s: %w", name(m), err)
}

// name of a map, for messages.
func name(m *ebpf.Map) string {
	info, err := m.Info()
	if err != nil {
		return "?"
	}
	return info.Name
}

// all reads a whole map. Entries that change meanwhile may be missed or seen
// twice; callers compare and write, and see the rest the next time.
func all[K comparable, V any](m *ebpf.Map) (map[K]V, error) {
	out := map[K]V{}
	var k K
	var v V
	it := m.Iterate()
	for it.Next(&k, &v) {
		out[k] = v
	}
	if err := it.Err(); err != nil && !errors.Is(err, ebpf.ErrIterationAborted) {
		return nil, fmt.Errorf("read map %s: %w", name(m), err)
	}
	return out, nil
}
