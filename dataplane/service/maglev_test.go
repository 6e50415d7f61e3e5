// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"slices"
	"testing"
)

func someBackends(n int) []Backend {
	var out []Backend
	for i := range n {
		out = append(out, Backend{Addr: netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}), Port: 8080})
	}
	return out
}

// TestMaglevTable: shares are even, and few rows move when a backend goes.
func TestMaglevTable(t *testing.T) {
	for _, n := range []int{1, 2, 3, 7, 10, 50} {
		all := someBackends(n)
		table := MaglevTable(all)
		share := map[Backend]int{}
		for _, b := range table {
			share[b]++
		}
		even := len(table) / n
		for _, b := range all {
			if share[b] < even-1-even/20 || share[b] > even+1+even/20 {
				t.Errorf("%d backends: %v has %d of %d rows", n, b, share[b], len(table))
			}
		}
		if n < 3 {
			continue
		}
		fewer := MaglevTable(slices.Delete(slices.Clone(all), 1, 2))
		if len(fewer) != len(table) {
			continue
		}
		moved := 0
		for i, b := range table {
			if b != all[1] && fewer[i] != b {
				moved++
			}
		}
		if moved > len(table)/4 {
			t.Errorf("%d backends: %d of %d rows moved needlessly", n, moved, len(table))
		}
	}
}
