// SPDX-License-Identifier: Apache-2.0

package ipam

import (
	"fmt"
	"net/netip"
	"time"
)

// maxFreed bounds the memory of a range for addresses that were given back: a
// /64 never runs out of fresh ones, so beyond this many the oldest is reused.
const maxFreed = 4096

// freed is an address that was given back, in the order of giving back.
type freed struct {
	addr netip.Addr
	at   time.Time
}

// addrRange is one CIDR: a cursor over addresses that were never used, and a
// queue of those that were given back, oldest first.
type addrRange struct {
	prefix      netip.Prefix
	first, last netip.Addr
	// next is the next address that may never have been used; invalid: none left.
	next netip.Addr
	used map[netip.Addr]struct{}
	// free says when an address was given back; an entry of queue counts only
	// if free has the same time.
	free  map[netip.Addr]time.Time
	queue []freed
}

// newRange returns the range of a CIDR without the addresses that no pod may
// have: network and broadcast address (IPv4) or the subnet-router anycast
// address (IPv6), and the first host address, which belongs to the node. Ranges
// too small for that distinction (/31, /32, /127, /128) are used whole.
func newRange(p netip.Prefix) (*addrRange, error) {
	if err := checkPrefix(p); err != nil {
		return nil, err
	}
	r := &addrRange{prefix: p, used: map[netip.Addr]struct{}{}, free: map[netip.Addr]time.Time{}}
	r.first, r.last = p.Addr(), lastAddr(p)
	if p.Addr().BitLen()-p.Bits() >= 2 {
		r.first = r.first.Next().Next()
		if p.Addr().Is4() {
			r.last = r.last.Prev()
		}
	}
	r.next = r.first
	return r, nil
}

// checkPrefix says why pods cannot have their addresses from p.
func checkPrefix(p netip.Prefix) error {
	a := p.Addr()
	switch {
	case !p.IsValid():
		return fmt.Errorf("%w: not a CIDR", ErrInvalid)
	case a.Is4In6():
		return fmt.Errorf("%w: %s is an IPv4-mapped IPv6 range, write it as IPv4", ErrInvalid, p)
	case p != p.Masked():
		return fmt.Errorf("%w: %s has host bits set, the range is %s", ErrInvalid, p, p.Masked())
	case a.IsMulticast(), a.IsLoopback(), a.IsLinkLocalUnicast(), p.Bits() == 0:
		return fmt.Errorf("%w: %s is no range for pods", ErrInvalid, p)
	}
	return nil
}

// lastAddr returns the address of p with all host bits set.
func lastAddr(p netip.Prefix) netip.Addr {
	b := p.Addr().AsSlice()
	for i := p.Bits(); i < len(b)*8; i++ {
		b[i/8] |= 0x80 >> (i % 8)
	}
	a, _ := netip.AddrFromSlice(b) // the length is right by construction
	return a
}

// StretchOf returns all addresses of a CIDR.
func StretchOf(p netip.Prefix) Stretch {
	return Stretch{First: p.Masked().Addr(), Last: lastAddr(p)}
}

// contains says if pods may have a.
func (r *addrRange) contains(a netip.Addr) bool {
	return a.BitLen() == r.first.BitLen() && r.first.Compare(a) <= 0 && a.Compare(r.last) <= 0
}

// total is the number of addresses pods may have, capped at 1<<62.
func (r *addrRange) total() uint64 {
	bits := r.first.BitLen() - r.prefix.Bits()
	if bits >= 62 {
		return 1 << 62
	}
	n := uint64(1) << bits
	if bits >= 2 {
		n -= 2
		if r.first.Is4() {
			n--
		}
	}
	return n
}

// pick returns the address that was free for longest, and false if all are
// used or were given back less than quarantine ago.
func (r *addrRange) pick(now time.Time, quarantine time.Duration) (netip.Addr, bool) {
	if len(r.free) < maxFreed {
		if a, ok := r.fresh(); ok {
			return a, true
		}
	}
	if a, ok := r.oldest(); ok && !now.Before(r.free[a].Add(quarantine)) {
		return a, true
	}
	return r.fresh()
}

// pickIn returns the first address of a stretch that is free and does not rest;
// overlaps says if the range has any address of the stretch at all.
func (r *addrRange) pickIn(s Stretch, now time.Time, quarantine time.Duration) (_ netip.Addr, overlaps, ok bool) {
	first, last := s.First, s.Last
	if first.BitLen() != r.first.BitLen() || last.BitLen() != r.first.BitLen() {
		return netip.Addr{}, false, false
	}
	if first.Compare(r.first) < 0 {
		first = r.first
	}
	if last.Compare(r.last) > 0 {
		last = r.last
	}
	for a := first; a.IsValid() && a.Compare(last) <= 0; a = a.Next() {
		overlaps = true
		_, used := r.used[a]
		if at, free := r.free[a]; !used && (!free || !now.Before(at.Add(quarantine))) {
			return a, true, true
		}
	}
	return netip.Addr{}, overlaps, false
}

// fresh moves the cursor to the next address that was never used.
func (r *addrRange) fresh() (netip.Addr, bool) {
	for ; r.next.IsValid() && r.next.Compare(r.last) <= 0; r.next = r.next.Next() {
		_, used := r.used[r.next]
		_, free := r.free[r.next]
		if !used && !free {
			return r.next, true
		}
	}
	return netip.Addr{}, false
}

// oldest returns the head of the queue, after dropping entries that no longer count.
func (r *addrRange) oldest() (netip.Addr, bool) {
	for len(r.queue) > 0 {
		head := r.queue[0]
		if at, ok := r.free[head.addr]; ok && at.Equal(head.at) {
			return head.addr, true
		}
		r.queue = r.queue[1:]
	}
	return netip.Addr{}, false
}

func (r *addrRange) take(a netip.Addr) {
	r.used[a] = struct{}{}
	delete(r.free, a)
}

func (r *addrRange) giveBack(a netip.Addr, at time.Time) {
	delete(r.used, a)
	r.free[a] = at
	r.queue = append(r.queue, freed{a, at})
}

// forget makes a look as if it had never been used.
func (r *addrRange) forget(a netip.Addr) {
	delete(r.used, a)
	delete(r.free, a)
	if a.Compare(r.next) < 0 || !r.next.IsValid() {
		r.next = a
	}
}

// resting counts the addresses that are free but in quarantine, and says when
// the first of them may be used.
func (r *addrRange) resting(now time.Time, quarantine time.Duration) (n uint64, until time.Time) {
	for _, at := range r.free {
		if ends := at.Add(quarantine); now.Before(ends) {
			n++
			if until.IsZero() || ends.Before(until) {
				until = ends
			}
		}
	}
	return n, until
}
