// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
	"github.com/nodeagent/nodeagent/dataplane/policy"
)

// Policies are the maps of network policy.
type Policies struct {
	guard, profiles, identities, rules *ebpf.Map
}

// NewPolicies wraps the maps "guard", "profiles", "identities" and "rules".
func NewPolicies(m bpf.DatapathMaps) Policies {
	return Policies{m.Guard, m.Profiles, m.Identities, m.Rules}
}

// Guard says whether any endpoint is isolated: without one, nobody is judged.
func (p Policies) Guard(on bool) error {
	v := uint32(0)
	if on {
		v = 1
	}
	if err := p.guard.Put(uint32(0), v); err != nil {
		return fmt.Errorf("write whether there are policies: %w", err)
	}
	return nil
}

// ruleBits are those of a rule's key before its protocol.
const ruleBits = 64

func ruleKey(r policy.Rule) bpf.DatapathPolKey {
	k := bpf.DatapathPolKey{Bits: ruleBits, Profile: r.Profile, Identity: r.Identity}
	if r.Protocol != 0 {
		k.Bits, k.Proto, k.Port = ruleBits+16+uint32(r.Bits), r.Protocol, Port(r.Port)
	}
	return k
}

func toRule(k bpf.DatapathPolKey) policy.Rule {
	r := policy.Rule{Profile: k.Profile, Identity: k.Identity}
	if k.Bits > ruleBits {
		r.Protocol, r.Bits, r.Port = k.Proto, uint8(k.Bits-ruleBits-16), Port(k.Port)
	}
	return r
}

// All reads the tables.
func (p Policies) All() (policy.Tables, error) {
	profiles, err1 := all[bpf.DatapathAddr, bpf.DatapathProfile](p.profiles)
	identities, err2 := all[bpf.DatapathRouteKey, uint32](p.identities)
	rules, err3 := all[bpf.DatapathPolKey, uint32](p.rules)
	t := policy.Tables{
		Profiles: map[netip.Addr]policy.Profile{}, Identities: map[netip.Prefix]uint32{}, Rules: map[policy.Rule]struct{}{},
	}
	for k, v := range profiles {
		t.Profiles[ToAddr(k)] = policy.Profile{Ingress: v.Ingress, Egress: v.Egress}
	}
	for k, v := range identities {
		t.Identities[toPrefix(k.Addr, k.Bits)] = v
	}
	for k := range rules {
		t.Rules[toRule(k)] = struct{}{}
	}
	return t, errors.Join(err1, err2, err3)
}

// PutRules allows.
func (p Policies) PutRules(rules []policy.Rule) error {
	keys := make([]bpf.DatapathPolKey, 0, len(rules))
	for _, r := range rules {
		keys = append(keys, ruleKey(r))
	}
	if err := putBatch(p.rules, keys, make([]uint32, len(keys))); err != nil {
		return fmt.Errorf("write %d rules of policies: %w", len(rules), err)
	}
	return nil
}

// PutIdentities says what ranges are to the rules.
func (p Policies) PutIdentities(ids map[netip.Prefix]uint32) error {
	keys, values := make([]bpf.DatapathRouteKey, 0, len(ids)), make([]uint32, 0, len(ids))
	for r, id := range ids {
		keys, values = append(keys, routeKey(r)), append(values, id)
	}
	if err := putBatch(p.identities, keys, values); err != nil {
		return fmt.Errorf("write %d identities: %w", len(ids), err)
	}
	return nil
}

// LinkAddr stands for the owner of a link whose packets carry an address of the
// node's: link_addr of bpf/lib/policy.h. One for each family of the packets.
func LinkAddr(ifindex int, v4 bool) netip.Addr {
	a := [16]byte{0: 1, 11: 6}
	if v4 {
		a[11] = 4
	}
	binary.BigEndian.PutUint32(a[12:], uint32(ifindex))
	return netip.AddrFrom16(a)
}

// PutProfiles isolates endpoints.
func (p Policies) PutProfiles(profiles map[netip.Addr]policy.Profile) error {
	for a, v := range profiles {
		if err := p.profiles.Put(AddrOf(a), bpf.DatapathProfile{Ingress: v.Ingress, Egress: v.Egress}); err != nil {
			return fmt.Errorf("write profile of %s: %w", a, err)
		}
	}
	return nil
}

// DeleteRule is the reverse of PutRules.
func (p Policies) DeleteRule(r policy.Rule) error { return deleteKey(p.rules, ruleKey(r)) }

// DeleteIdentity is the reverse of PutIdentities.
func (p Policies) DeleteIdentity(r netip.Prefix) error { return deleteKey(p.identities, routeKey(r)) }

// DeleteProfile ends an endpoint's isolation.
func (p Policies) DeleteProfile(a netip.Addr) error { return deleteKey(p.profiles, AddrOf(a)) }
