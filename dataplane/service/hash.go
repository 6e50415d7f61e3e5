// SPDX-License-Identifier: Apache-2.0

package service

import (
	"encoding/binary"
	"math/bits"
	"net/netip"
)

// MaglevRow is the row of a table of n rows that a connection takes. It
// computes what tuple_hash of bpf/lib/service.h does, which a test compares.
func MaglevRow(src, dst netip.AddrPort, proto uint8, n uint32) uint32 {
	mix := func(h, word uint32) uint32 {
		h = (h ^ word) * 0x85ebca6b
		return h ^ h>>15
	}
	words := func(a netip.Addr) (w [4]uint32) {
		b := a.As16()
		for i := range w {
			w[i] = binary.LittleEndian.Uint32(b[4*i:])
		}
		return w
	}
	s, d := words(src.Addr()), words(dst.Addr())
	h := uint32(0x9e3779b9)
	h = mix(mix(h, s[0]^s[1]), s[2]^s[3])
	h = mix(mix(h, d[0]^d[1]), d[2]^d[3])
	ports := uint32(bits.ReverseBytes16(src.Port()))<<16 | uint32(bits.ReverseBytes16(dst.Port()))
	return mix(mix(h, ports), uint32(proto)) % n
}
