// SPDX-License-Identifier: Apache-2.0

package policy

import "net/netip"

// Tables are the entries of the maps.
type Tables struct {
	// Profiles are the isolated endpoints of this node, by address.
	Profiles map[netip.Addr]Profile
	// Identities are what addresses are to rules; the longest range counts. An
	// address that is in none has identity 0.
	Identities map[netip.Prefix]uint32
	// Rules are what is allowed.
	Rules map[Rule]struct{}
}

// Alias gives one more address to an endpoint: to rules it is what the other is.
// It has a profile even when nobody isolates the endpoint, so that the data path
// finds it.
func (t Tables) Alias(of, alias netip.Addr) {
	t.Profiles[alias] = t.Profiles[of]
	t.Identities[netip.PrefixFrom(alias, alias.BitLen())] = t.identity(of)
}

// Profile of an endpoint; 0: not isolated in that direction.
type Profile struct{ Ingress, Egress uint32 }

// Rule allows a profile's endpoints to hear from, or to speak to, an identity;
// identity 0 is everybody. Protocol 0 is every protocol, and then Port is 0. Of
// Port the first Bits bits count.
type Rule struct {
	Profile, Identity uint32
	Protocol          uint8
	Bits              uint8
	Port              uint16
}

// Verdict is what the data path would say of a new flow from src to dst: nil,
// or in which direction it is denied.
func (t Tables) Verdict(src, dst netip.Addr, protocol uint8, port uint16) (denied Direction) {
	if src == dst {
		return ""
	}
	if p := t.Profiles[src].Egress; p != 0 && !t.allows(p, t.identity(dst), protocol, port) {
		return Egress
	}
	if p := t.Profiles[dst].Ingress; p != 0 && !t.allows(p, t.identity(src), protocol, port) {
		return Ingress
	}
	return ""
}

func (t Tables) identity(a netip.Addr) uint32 {
	for bits := a.BitLen(); bits >= 0; bits-- {
		p, err := a.Prefix(bits)
		if err != nil {
			return 0
		}
		if id, ok := t.Identities[p]; ok {
			return id
		}
	}
	return 0
}

func (t Tables) allows(profile, identity uint32, protocol uint8, port uint16) bool {
	for _, id := range []uint32{identity, 0} {
		if _, ok := t.Rules[Rule{Profile: profile, Identity: id}]; ok {
			return true
		}
		for bits := range uint8(17) {
			masked := uint16(uint32(port) >> (16 - bits) << (16 - bits))
			if _, ok := t.Rules[Rule{profile, id, protocol, bits, masked}]; ok {
				return true
			}
		}
	}
	return false
}
