// SPDX-License-Identifier: Apache-2.0

package service

import (
	"encoding/binary"
	"hash/fnv"
)

// LoadBalancing is the annotation of a Service that chooses how new connections
// are spread; "maglev" gives a client's connection the same backend at every
// node, and keeps most of them where they are when backends come or go. Without
// it backends are chosen at random.
const LoadBalancing = "nodeagent.dev/load-balancing"

const maglev = "maglev"

// rowsPerBackend makes the shares of backends differ by about a hundredth.
const rowsPerBackend = 100

// MaglevTable spreads backends over the rows of a lookup table as in "Maglev: A
// Fast and Reliable Software Network Load Balancer" (Eisenbud et al., 2016,
// section 3.4): each backend takes rows in an order of its own, in turns. The
// table depends on the set of backends only.
func MaglevTable(backends []Backend) []Backend {
	if len(backends) < 2 {
		return backends
	}
	size := tableSize(len(backends))
	next := make([]uint32, len(backends))
	skip := make([]uint32, len(backends))
	for i, b := range backends {
		h := b.hash()
		next[i] = uint32(h>>32) % size
		skip[i] = uint32(h)%(size-1) + 1
	}
	table := make([]Backend, size)
	taken := make([]bool, size)
	for filled := uint32(0); ; {
		for i := range backends {
			for taken[next[i]] {
				next[i] = (next[i] + skip[i]) % size
			}
			taken[next[i]] = true
			table[next[i]] = backends[i]
			if filled++; filled == size {
				return table
			}
		}
	}
}

// MaglevSize is the number of rows that MaglevTable makes of n backends.
func MaglevSize(n int) uint32 {
	if n < 2 {
		return uint32(n)
	}
	return tableSize(n)
}

// tableSize is a prime: every step through the table visits all rows.
func tableSize(n int) uint32 {
	for _, p := range []uint32{251, 509, 1021, 2039, 4093, 8191} {
		if int(p) >= n*rowsPerBackend {
			return p
		}
	}
	return 16381
}

func (b Backend) hash() uint64 {
	h := fnv.New64a()
	addr := b.Addr.As16()
	h.Write(addr[:])
	h.Write(binary.BigEndian.AppendUint16(nil, b.Port))
	// FNV leaves the upper half of short inputs poor: mix once more.
	x := h.Sum64()
	x = (x ^ x>>33) * 0xff51afd7ed558ccd
	x = (x ^ x>>33) * 0xc4ceb9fe1a85ec53
	return x ^ x>>33
}
