// SPDX-License-Identifier: Apache-2.0

// Package ipam gives addresses to owners. The allocator is pure: state in
// memory, time passed in. The Book is the allocator with its leases recorded in
// the daemon's database. It promises that no address has two owners, that an
// address given back rests for the quarantine and that the one free for longest
// comes next.
package ipam

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"time"
)

// DefaultPool is the pool of the node's own pod CIDRs.
const DefaultPool = "default"

// Errors of the allocator.
var (
	// ErrExhausted: no free address is left; the error is an *ExhaustedError.
	ErrExhausted = errors.New("address range exhausted")
	// ErrInvalid: the request or the range can never be served.
	ErrInvalid = errors.New("invalid address request")
	// ErrTaken: a requested address has another owner.
	ErrTaken = errors.New("address is taken")
	// ErrNoRange: the pool is unknown or has no range yet.
	ErrNoRange = errors.New("no address range")
)

// ExhaustedError says which pool and family is exhausted, and how.
type ExhaustedError struct {
	Pool   string
	Family int
	// Used of Total addresses have an owner, Resting were given back lately.
	Used, Resting, Total uint64
	// Until is when the first resting address may be used; zero if none rests.
	Until time.Time
}

// Error implements error.
func (e *ExhaustedError) Error() string {
	s := fmt.Sprintf("pool %q has no free IPv%d address: %d of %d in use, %d resting after release",
		e.Pool, e.Family, e.Used, e.Total, e.Resting)
	if !e.Until.IsZero() {
		s += " until " + e.Until.UTC().Format(time.RFC3339)
	}
	return s
}

// Is makes errors.Is(err, ErrExhausted) true.
func (e *ExhaustedError) Is(target error) bool { return target == ErrExhausted }

// Lease is one address with its owner.
type Lease struct {
	Addr  netip.Addr `json:"addr"`
	Owner string     `json:"owner"`
	Pool  string     `json:"pool"`
	Since time.Time  `json:"since"`
}

// Usage is the state of one range of a pool.
type Usage struct {
	Pool   string       `json:"pool"`
	Prefix netip.Prefix `json:"prefix"`
	Used   uint64       `json:"used"`
	// Resting addresses are free but in quarantine.
	Resting uint64 `json:"resting"`
	// Total is capped at 1<<62.
	Total uint64 `json:"total"`
}

// Request asks for addresses.
type Request struct {
	// Owner is the id the addresses are recorded under.
	Owner string
	// Pool is the pool to allocate from; empty means DefaultPool.
	Pool string
	// Want are addresses to have exactly, at most one per family, from any
	// pool. A family that the pool has and Want lacks is allocated.
	Want []netip.Addr
	// Within has, per address, the stretches to choose it from, in any pool, at
	// most one list per family. Families of Want are not chosen again.
	Within [][]Stretch
}

// Stretch is a run of addresses, both ends included.
type Stretch struct {
	First netip.Addr `json:"first"`
	Last  netip.Addr `json:"last"`
}

// Allocator is the pure allocator. It is not safe for concurrent use.
type Allocator struct {
	quarantine time.Duration
	pools      map[string][]*addrRange
	leases     map[netip.Addr]Lease
	owners     map[string][]netip.Addr
}

// NewAllocator returns an allocator without pools.
func NewAllocator(quarantine time.Duration) *Allocator {
	return &Allocator{
		quarantine: quarantine,
		pools:      map[string][]*addrRange{},
		leases:     map[netip.Addr]Lease{},
		owners:     map[string][]netip.Addr{},
	}
}

// CheckPools reports every fault of a set of pools: ranges pods cannot have,
// and ranges that overlap one another.
func CheckPools(pools map[string][]netip.Prefix) error {
	type named struct {
		name string
		p    netip.Prefix
	}
	var all []named
	var errs []error
	for name, prefixes := range pools {
		for i, p := range prefixes {
			all = append(all, named{fmt.Sprintf("%s[%d]", name, i), p})
		}
	}
	slices.SortFunc(all, func(a, b named) int { return cmp.Compare(a.name, b.name) })
	for i, a := range all {
		if err := checkPrefix(a.p); err != nil {
			errs = append(errs, fmt.Errorf("%s: %w", a.name, err))
			continue
		}
		for _, b := range all[:i] {
			if a.p.Overlaps(b.p) {
				errs = append(errs, fmt.Errorf("%s: %w: %s overlaps %s of %s", a.name, ErrInvalid, a.p, b.p, b.name))
			}
		}
	}
	return errors.Join(errs...)
}

// SetPool replaces the ranges of a pool. Leases in ranges that are gone stay
// valid until they are released; ranges that stay keep their state. No
// prefixes removes the pool. After an error nothing is changed.
func (a *Allocator) SetPool(name string, prefixes []netip.Prefix) error {
	all := map[string][]netip.Prefix{name: prefixes}
	for other, ranges := range a.pools {
		for _, r := range ranges {
			if other != name {
				all[other] = append(all[other], r.prefix)
			}
		}
	}
	if err := CheckPools(all); err != nil {
		return err
	}
	ranges := make([]*addrRange, 0, len(prefixes))
	for _, p := range prefixes {
		r, err := a.rangeFor(name, p)
		if err != nil {
			return err
		}
		ranges = append(ranges, r)
	}
	if len(ranges) == 0 {
		delete(a.pools, name)
		return nil
	}
	a.pools[name] = ranges
	return nil
}

// rangeFor returns the pool's existing range of p, or a new one in which the
// addresses that have an owner already are taken.
func (a *Allocator) rangeFor(pool string, p netip.Prefix) (*addrRange, error) {
	for _, r := range a.pools[pool] {
		if r.prefix == p {
			return r, nil
		}
	}
	r, err := newRange(p)
	if err != nil {
		return nil, err
	}
	for addr := range a.leases {
		if r.contains(addr) {
			r.take(addr)
		}
	}
	return r, nil
}

// Allocate gives the owner its addresses, IPv4 first. An owner that has some
// already gets the same ones again. After an error nothing is changed.
func (a *Allocator) Allocate(now time.Time, req Request) ([]Lease, error) {
	if req.Owner == "" {
		return nil, fmt.Errorf("%w: no owner", ErrInvalid)
	}
	if have := a.Owned(req.Owner); len(have) > 0 {
		return have, wantsOnly(have, req.Want)
	}
	pool := cmp.Or(req.Pool, DefaultPool)
	ranges := a.pools[pool]
	if len(ranges) == 0 {
		return nil, fmt.Errorf("pool %q: %w", pool, ErrNoRange)
	}
	var got []Lease
	for _, family := range []int{4, 6} {
		lease, ok, err := a.pickFamily(now, req, pool, family)
		if err != nil {
			return nil, err
		}
		if ok {
			got = append(got, lease)
		}
	}
	if len(got) == 0 {
		return nil, fmt.Errorf("pool %q: %w", pool, ErrNoRange)
	}
	for _, l := range got {
		a.take(l)
	}
	return got, nil
}

// wantsOnly says if an owner that has leases asks for other addresses now.
func wantsOnly(have []Lease, want []netip.Addr) error {
	for _, w := range want {
		if !slices.ContainsFunc(have, func(l Lease) bool { return l.Addr == w }) {
			return fmt.Errorf("%w: %s already has %s, not %s", ErrInvalid, have[0].Owner, have[0].Addr, w)
		}
	}
	return nil
}

// pickFamily chooses the address of one family; ok is false if neither the
// request nor the pool knows the family.
func (a *Allocator) pickFamily(now time.Time, req Request, pool string, family int) (l Lease, ok bool, err error) {
	l = Lease{Owner: req.Owner, Pool: pool, Since: now}
	for _, w := range req.Want {
		if familyOf(w) != family {
			continue
		}
		if l.Addr.IsValid() {
			return l, false, fmt.Errorf("%w: two IPv%d addresses, %s and %s", ErrInvalid, family, l.Addr, w)
		}
		l.Addr = w
	}
	if l.Addr.IsValid() {
		l.Pool, err = a.checkStatic(l.Addr)
		return l, err == nil, err
	}
	for _, list := range req.Within {
		if len(list) > 0 && familyOf(list[0].First) == family {
			l.Addr, l.Pool, err = a.pickWithin(now, list)
			return l, err == nil, err
		}
	}
	exhausted := ExhaustedError{Pool: pool, Family: family}
	for _, r := range a.pools[pool] {
		if familyOf(r.first) != family {
			continue
		}
		if l.Addr, ok = r.pick(now, a.quarantine); ok {
			return l, true, nil
		}
		exhausted.add(r, now, a.quarantine)
	}
	if exhausted.Total == 0 {
		return l, false, nil
	}
	return l, false, &exhausted
}

// pickWithin chooses the first address of some stretches that is free and does
// not rest.
func (a *Allocator) pickWithin(now time.Time, list []Stretch) (netip.Addr, string, error) {
	known := false
	for _, s := range list {
		for _, pool := range slices.Sorted(maps.Keys(a.pools)) {
			for _, r := range a.pools[pool] {
				addr, overlaps, ok := r.pickIn(s, now, a.quarantine)
				if ok {
					return addr, pool, nil
				}
				known = known || overlaps
			}
		}
	}
	if !known {
		return netip.Addr{}, "", fmt.Errorf("%w: %s to %s is in no pool of this node", ErrInvalid, list[0].First, list[0].Last)
	}
	return netip.Addr{}, "", fmt.Errorf("%w: none is free from %s to %s", ErrExhausted, list[0].First, list[0].Last)
}

func (e *ExhaustedError) add(r *addrRange, now time.Time, quarantine time.Duration) {
	resting, until := r.resting(now, quarantine)
	e.Used += uint64(len(r.used))
	e.Total += r.total()
	e.Resting += resting
	if !until.IsZero() && (e.Until.IsZero() || until.Before(e.Until)) {
		e.Until = until
	}
}

// checkStatic says which pool has a, and why a cannot be had.
func (a *Allocator) checkStatic(addr netip.Addr) (pool string, err error) {
	if l, taken := a.leases[addr]; taken {
		return "", fmt.Errorf("%w: %s belongs to %s", ErrTaken, addr, l.Owner)
	}
	for name, ranges := range a.pools {
		for _, r := range ranges {
			if r.contains(addr) {
				return name, nil
			}
			if r.prefix.Contains(addr) {
				return "", fmt.Errorf("%w: %s is reserved in %s", ErrInvalid, addr, r.prefix)
			}
		}
	}
	return "", fmt.Errorf("%w: %s is in no pool of this node", ErrInvalid, addr)
}

// Restore records a lease that exists already, as after a restart; pools may
// be set before or after.
func (a *Allocator) Restore(l Lease) error {
	if old, ok := a.leases[l.Addr]; ok && old.Owner != l.Owner {
		return fmt.Errorf("%w: %s belongs to %s and to %s", ErrTaken, l.Addr, old.Owner, l.Owner)
	}
	if _, ok := a.leases[l.Addr]; !ok {
		a.take(l)
	}
	return nil
}

// RestoreFreed records that addr was given back at a time; it counts only for
// an address that has no owner, in a range that is set.
func (a *Allocator) RestoreFreed(addr netip.Addr, at time.Time) {
	if _, used := a.leases[addr]; used {
		return
	}
	a.eachRange(addr, func(r *addrRange) {
		if _, ok := r.free[addr]; !ok {
			r.giveBack(addr, at)
		}
	})
}

func (a *Allocator) take(l Lease) {
	a.leases[l.Addr] = l
	a.owners[l.Owner] = append(a.owners[l.Owner], l.Addr)
	a.eachRange(l.Addr, func(r *addrRange) { r.take(l.Addr) })
}

func (a *Allocator) eachRange(addr netip.Addr, f func(*addrRange)) {
	for _, ranges := range a.pools {
		for _, r := range ranges {
			if r.contains(addr) {
				f(r)
			}
		}
	}
}

// Release takes all addresses of an owner back; they rest from now on. It
// returns them; none if the owner is unknown.
func (a *Allocator) Release(now time.Time, owner string) []netip.Addr {
	addrs := a.owners[owner]
	delete(a.owners, owner)
	for _, addr := range addrs {
		delete(a.leases, addr)
		a.eachRange(addr, func(r *addrRange) { r.giveBack(addr, now) })
	}
	return addrs
}

// Undo takes back an allocation that nobody ever used: no quarantine.
func (a *Allocator) Undo(owner string) {
	addrs := a.owners[owner]
	delete(a.owners, owner)
	for _, addr := range addrs {
		delete(a.leases, addr)
		a.eachRange(addr, func(r *addrRange) { r.forget(addr) })
	}
}

// Rename gives all addresses of one owner to another, who must have none.
func (a *Allocator) Rename(from, to string) error {
	if len(a.owners[to]) > 0 {
		return fmt.Errorf("%w: %s already has addresses", ErrTaken, to)
	}
	addrs := a.owners[from]
	if len(addrs) == 0 {
		return fmt.Errorf("%w: %s has no addresses", ErrInvalid, from)
	}
	delete(a.owners, from)
	a.owners[to] = addrs
	for _, addr := range addrs {
		l := a.leases[addr]
		l.Owner = to
		a.leases[addr] = l
	}
	return nil
}

// Owned returns the leases of an owner, IPv4 first.
func (a *Allocator) Owned(owner string) []Lease {
	var out []Lease
	for _, addr := range a.owners[owner] {
		out = append(out, a.leases[addr])
	}
	slices.SortFunc(out, func(x, y Lease) int { return x.Addr.Compare(y.Addr) })
	return out
}

// Leases returns all leases, sorted by address.
func (a *Allocator) Leases() []Lease {
	out := make([]Lease, 0, len(a.leases))
	for _, l := range a.leases {
		out = append(out, l)
	}
	slices.SortFunc(out, func(x, y Lease) int { return x.Addr.Compare(y.Addr) })
	return out
}

// Usage returns the state of every range, sorted by pool, ranges in their order.
func (a *Allocator) Usage(now time.Time) []Usage {
	var out []Usage
	for name, ranges := range a.pools {
		for _, r := range ranges {
			resting, _ := r.resting(now, a.quarantine)
			out = append(out, Usage{name, r.prefix, uint64(len(r.used)), resting, r.total()})
		}
	}
	slices.SortStableFunc(out, func(x, y Usage) int { return cmp.Compare(x.Pool, y.Pool) })
	return out
}

func familyOf(a netip.Addr) int {
	if a.Is4() {
		return 4
	}
	return 6
}
