// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"slices"
)

// slots hands out slices of the kernel's array of backends. Slices come in
// classes of capacity, so that what is freed fits what is asked for next; at
// most a fifth of a slice is unused. It is not safe for concurrent use.
type slots struct {
	size uint32
	next uint32
	free map[uint32][]uint32 // capacity to bases
	used uint32
}

func newSlots(size uint32) *slots {
	return &slots{size: size, free: map[uint32][]uint32{}}
}

// classOf is the capacity for n backends: exact up to 8, then steps of at most
// a fifth.
func classOf(n uint32) uint32 {
	if n <= 8 {
		return max(n, 1)
	}
	step := uint32(1)
	for n/step >= 16 {
		step *= 2
	}
	step = max(step/2, 1) * 2
	return (n + step - 1) / step * step
}

// alloc returns the base of a slice for n backends.
func (s *slots) alloc(n uint32) (uint32, error) {
	class := classOf(n)
	if list := s.free[class]; len(list) > 0 {
		s.free[class] = list[:len(list)-1]
		s.used += class
		return list[len(list)-1], nil
	}
	if s.size-s.next < class {
		return s.split(class)
	}
	base := s.next
	s.next += class
	s.used += class
	return base, nil
}

// split takes a slice from a larger free one when the array is at its end.
func (s *slots) split(class uint32) (uint32, error) {
	best := uint32(0)
	for have, list := range s.free {
		if len(list) > 0 && have > class && (best == 0 || have < best) {
			best = have
		}
	}
	if best == 0 {
		return 0, fmt.Errorf("%w: %d of %d backends in use, no room for %d more", ErrFull, s.used, s.size, class)
	}
	list := s.free[best]
	base := list[len(list)-1]
	s.free[best] = list[:len(list)-1]
	for rest, at := best-class, base+class; rest > 0; {
		// Pieces must be capacities that are asked for.
		piece := rest
		for classOf(piece) != piece {
			piece--
		}
		s.free[piece] = append(s.free[piece], at)
		at, rest = at+piece, rest-piece
	}
	s.used += class
	return base, nil
}

// fits says whether slices of these capacities can be had, without cutting up
// larger ones.
func (s *slots) fits(wanted map[uint32]uint32) bool {
	room := uint64(0)
	for class, n := range wanted {
		if free := uint32(len(s.free[class])); n > free {
			room += uint64(class) * uint64(n-free)
		}
	}
	return room <= uint64(s.size-s.next)
}

// release takes a slice back.
func (s *slots) release(base, n uint32) {
	class := classOf(n)
	s.free[class] = append(s.free[class], base)
	s.used -= class
}

// span is a slice that an earlier daemon left in the array.
type span struct{ base, count uint32 }

// adopt marks what an earlier daemon left as used; the gaps are free. It is
// called once, before anything is handed out.
func (s *slots) adopt(spans []span) {
	slices.SortFunc(spans, func(a, b span) int { return int(a.base) - int(b.base) })
	at := uint32(0)
	for _, sp := range spans {
		if sp.base < at {
			continue
		}
		for at < sp.base {
			piece := sp.base - at
			for classOf(piece) != piece {
				piece--
			}
			s.free[piece] = append(s.free[piece], at)
			at += piece
		}
		at += classOf(sp.count)
		s.used += classOf(sp.count)
	}
	s.next = min(at, s.size)
}
