// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"fmt"
	"hash/fnv"
	"maps"
	"math/bits"
	"net/netip"
	"slices"
	"strings"
)

// Compile makes the tables of a state. The cost grows with the kinds of pods
// (of equal labels) times the terms of the policies in use on this node, and
// with the addresses that a term matches.
func Compile(s *State) Tables {
	c := &compiler{
		state: s, terms: map[string]peer{}, names: map[ports]bool{}, profiles: map[string]*profile{},
		identities: map[string]*identity{}, byKind: map[string]*identity{}, taken: map[uint32]string{},
		out: Tables{
			Profiles: map[netip.Addr]Profile{}, Identities: map[netip.Prefix]uint32{}, Rules: map[Rule]struct{}{},
		},
	}
	for _, name := range slices.SortedFunc(maps.Keys(s.locals), compareNames) {
		if pod := s.pods[name]; pod != nil {
			c.isolate(pod)
		}
	}
	if len(c.profiles) > 0 {
		c.identify()
		c.allow()
	}
	return c.out
}

type compiler struct {
	state *State
	// terms are those of all profiles, by key, and names the named ports that
	// their rules look for at the other end.
	terms  map[string]peer
	ranges []peer // those of terms that are ranges
	names  map[ports]bool

	profiles   map[string]*profile
	identities map[string]*identity
	byKind     map[string]*identity
	taken      map[uint32]string // identifiers in use, and for what
	out        Tables
}

// profile is what the rules of one direction come to for a pod.
type profile struct {
	id    uint32
	rules []rule
}

// identity is what one kind of peer is to all terms.
type identity struct {
	id    uint32
	terms map[string]bool
	named map[ports][]ports // of names, their numbers there
}

// isolate gives a pod of this node its profiles.
func (c *compiler) isolate(pod *Pod) {
	var p Profile
	for dir, id := range map[Direction]*uint32{Ingress: &p.Ingress, Egress: &p.Egress} {
		var isolated bool
		var rules []rule
		for _, policy := range c.state.policies {
			if !policy.isolates[dir] || !policy.selects(pod) {
				continue
			}
			isolated = true
			for _, r := range policy.rules[dir] {
				rules = append(rules, r.at(dir, pod))
			}
		}
		if isolated {
			*id = c.profile(dir, rules)
		}
	}
	if p == (Profile{}) {
		return
	}
	for _, a := range c.state.addrs(pod) {
		c.out.Profiles[a] = p
	}
}

// at is the rule for one pod: the named ports of what it serves are its own.
func (r rule) at(dir Direction, pod *Pod) rule {
	if dir == Egress {
		return r
	}
	out := r
	out.ports = nil
	for _, p := range r.ports {
		out.ports = append(out.ports, p.resolve(pod)...)
	}
	return out
}

// signature is the same for rules that allow the same.
func (r rule) signature() string {
	var keys []string
	for _, p := range r.peers {
		keys = append(keys, p.key)
	}
	slices.Sort(keys)
	on := slices.Clone(r.ports)
	slices.SortFunc(on, func(a, b ports) int { return strings.Compare(fmt.Sprint(a), fmt.Sprint(b)) })
	return fmt.Sprint(r.anyPeer, keys, r.anyPort, on)
}

// profile is the identifier of a set of rules.
func (c *compiler) profile(dir Direction, rules []rule) uint32 {
	var parts []string
	for _, r := range rules {
		parts = append(parts, r.signature())
	}
	slices.Sort(parts)
	sig := string(dir) + "\n" + strings.Join(slices.Compact(parts), "\n")
	p := c.profiles[sig]
	if p == nil {
		p = &profile{id: c.identifier(sig), rules: rules}
		c.profiles[sig] = p
		for _, r := range rules {
			for _, peer := range r.peers {
				if _, ok := c.terms[peer.key]; !ok && peer.cidr.IsValid() {
					c.ranges = append(c.ranges, peer)
				}
				c.terms[peer.key] = peer
			}
			for _, on := range r.ports {
				if on.name != "" {
					c.names[on] = true
				}
			}
		}
	}
	return p.id
}

// identifier is made from what it stands for, so that it is the same in the
// next daemon, too. Two that would be the same step aside, in the order of
// compilation, which is fixed.
func (c *compiler) identifier(sig string) uint32 {
	h := fnv.New32a()
	_, _ = h.Write([]byte(sig))
	for id := h.Sum32(); ; id++ {
		if id == 0 {
			continue
		}
		if have, ok := c.taken[id]; !ok || have == sig {
			c.taken[id] = sig
			return id
		}
	}
}

// identify says of every address what it is to the terms.
func (c *compiler) identify() {
	ranges := map[netip.Prefix]bool{}
	for _, t := range c.ranges {
		ranges[t.cidr] = true
		for _, e := range t.except {
			ranges[e] = true
		}
	}
	for _, r := range slices.SortedFunc(maps.Keys(ranges), comparePrefixes) {
		c.out.Identities[r] = c.identity(c.blocks(r), nil).id
	}
	for _, name := range slices.SortedFunc(maps.Keys(c.state.pods), compareNames) {
		pod := c.state.pods[name]
		kind := c.kind(pod)
		if len(kind.terms) == 0 && len(kind.named) == 0 {
			continue // no more than the ranges that it is in
		}
		for _, a := range c.state.addrs(pod) {
			r := netip.PrefixFrom(a, a.BitLen())
			terms := c.blocks(r)
			maps.Copy(terms, kind.terms)
			c.out.Identities[r] = c.identity(terms, kind.named).id
		}
	}
}

// blocks are the terms that a range, or one of no other range in use, is in.
func (c *compiler) blocks(r netip.Prefix) map[string]bool {
	out := map[string]bool{}
	for _, t := range c.ranges {
		if t.covers(r) {
			out[t.key] = true
		}
	}
	return out
}

// kind is what all pods of a kind are, besides their addresses.
func (c *compiler) kind(pod *Pod) *identity {
	k := c.byKind[pod.kind]
	if k != nil {
		return k
	}
	k = &identity{terms: map[string]bool{}, named: map[ports][]ports{}}
	c.byKind[pod.kind] = k
	namespace := c.state.namespace(pod.Name.Namespace)
	for key, t := range c.terms {
		if t.matchesPod(pod, namespace) {
			k.terms[key] = true
		}
	}
	for name := range c.names {
		if on := name.resolve(pod); len(on) > 0 {
			k.named[name] = on
		}
	}
	return k
}

func (c *compiler) identity(terms map[string]bool, named map[ports][]ports) *identity {
	if len(terms) == 0 && len(named) == 0 {
		return &identity{} // everybody else
	}
	sig := "identity\n" + strings.Join(slices.Sorted(maps.Keys(terms)), "\n") + fmt.Sprint(named)
	id := c.identities[sig]
	if id == nil {
		id = &identity{id: c.identifier(sig), terms: terms, named: named}
		c.identities[sig] = id
	}
	return id
}

// allow lists what the profiles allow.
func (c *compiler) allow() {
	for _, p := range c.profiles {
		for _, r := range p.rules {
			if r.anyPeer {
				c.allowPorts(p.id, &identity{}, r)
			}
			for _, id := range c.identities {
				if r.anyPeer || slices.ContainsFunc(r.peers, func(t peer) bool { return id.terms[t.key] }) {
					c.allowPorts(p.id, id, r)
				}
			}
		}
	}
}

func (c *compiler) allowPorts(profile uint32, id *identity, r rule) {
	if r.anyPort {
		if !r.anyPeer || id.id == 0 {
			c.out.Rules[Rule{Profile: profile, Identity: id.id}] = struct{}{}
		}
		return
	}
	for _, on := range r.ports {
		switch {
		case on.name != "":
			for _, n := range id.named[on] {
				c.allowRange(profile, id.id, n)
			}
		case !r.anyPeer || id.id == 0: // identity 0 is asked for everybody
			c.allowRange(profile, id.id, on)
		}
	}
}

// allowRange cuts a range of ports into prefixes.
func (c *compiler) allowRange(profile, id uint32, on ports) {
	for first, last := uint32(on.first), uint32(on.last); first <= last; {
		free := bits.TrailingZeros32(first | 1<<16) // the largest prefix that begins here
		for first+1<<free-1 > last {
			free--
		}
		c.out.Rules[Rule{profile, id, on.protocol, uint8(16 - free), uint16(first)}] = struct{}{}
		first += 1 << free
	}
}

func comparePrefixes(a, b netip.Prefix) int {
	return cmp.Or(a.Addr().Compare(b.Addr()), cmp.Compare(a.Bits(), b.Bits()))
}
