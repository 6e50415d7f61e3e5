// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"cmp"
	"maps"
	"net/netip"
	"slices"

	"k8s.io/apimachinery/pkg/types"
)

// Explanation says what policies make of a new flow, and why.
type Explanation struct {
	// Allowed is the verdict of both ends.
	Allowed bool `json:"allowed"`
	// Egress is what the sender's policies say, Ingress what the receiver's do.
	Egress  Side `json:"egress"`
	Ingress Side `json:"ingress"`
}

// Side is one end's part.
type Side struct {
	// Pod is whose policies these are; empty: no pod that is known.
	Pod string `json:"pod,omitempty"`
	// Allowed: one of the policies allows it, or none isolates the pod.
	Allowed bool `json:"allowed"`
	// Isolating are the policies that isolate the pod in this direction.
	Isolating []string `json:"isolating,omitempty"`
	// Allowing are those of them that allow the flow.
	Allowing []string `json:"allowing,omitempty"`
}

// Explain judges a flow as the objects say, without tables: rule by rule.
func (s *State) Explain(src, dst netip.Addr, protocol uint8, port uint16) Explanation {
	from, to := s.at(src), s.at(dst)
	f := flow{protocol: protocol, port: port, serving: to}
	out := Explanation{Egress: s.side(Egress, f, from, end{to, dst}), Ingress: s.side(Ingress, f, to, end{from, src})}
	if src == dst { // a pod always reaches itself
		out.Egress.Allowed, out.Ingress.Allowed = true, true
	}
	out.Allowed = out.Egress.Allowed && out.Ingress.Allowed
	return out
}

// flow is what is asked about; serving is the pod that is spoken to.
type flow struct {
	protocol uint8
	port     uint16
	serving  *Pod
}

// end is one end of a flow; a nil pod is no pod that is known.
type end struct {
	pod  *Pod
	addr netip.Addr
}

// side judges for the policies of one pod.
func (s *State) side(dir Direction, f flow, self *Pod, other end) Side {
	if self == nil {
		return Side{Allowed: true}
	}
	out := Side{Pod: self.Name.String()}
	for _, name := range slices.SortedFunc(maps.Keys(s.policies), compareNames) {
		p := s.policies[name]
		if !p.isolates[dir] || !p.selects(self) {
			continue
		}
		out.Isolating = append(out.Isolating, name.String())
		if slices.ContainsFunc(p.rules[dir], func(r rule) bool {
			return s.meets(r, other) && r.serves(f)
		}) {
			out.Allowing = append(out.Allowing, name.String())
		}
	}
	out.Allowed = len(out.Isolating) == 0 || len(out.Allowing) > 0
	return out
}

// meets reports whether the other end is one of a rule's peers.
func (s *State) meets(r rule, other end) bool {
	return r.anyPeer || slices.ContainsFunc(r.peers, func(p peer) bool {
		if p.cidr.IsValid() {
			return p.cidr.Contains(other.addr) &&
				!slices.ContainsFunc(p.except, func(e netip.Prefix) bool { return e.Contains(other.addr) })
		}
		return other.pod != nil && p.matchesPod(other.pod, s.namespace(other.pod.Name.Namespace))
	})
}

// serves reports whether a port of the serving pod is one of a rule's.
func (r rule) serves(f flow) bool {
	return r.anyPort || slices.ContainsFunc(r.ports, func(p ports) bool {
		if p.name == "" {
			return p.contains(f.protocol, f.port)
		}
		return f.serving != nil &&
			slices.ContainsFunc(p.resolve(f.serving), func(n ports) bool { return n.contains(f.protocol, f.port) })
	})
}

// at is the pod with an address; nil: none is known.
func (s *State) at(a netip.Addr) *Pod {
	var found *Pod
	for _, p := range s.pods {
		if slices.Contains(s.addrs(p), a) && (found == nil || compareNames(p.Name, found.Name) < 0) {
			found = p
		}
	}
	return found
}

// EachAddr calls fn for every address of every pod that is known.
func (s *State) EachAddr(fn func(netip.Addr, types.NamespacedName)) {
	for name, p := range s.pods {
		for _, a := range s.addrs(p) {
			fn(a, name)
		}
	}
}

// PodAddrs are the addresses of a pod; nil: it is not known.
func (s *State) PodAddrs(name types.NamespacedName) []netip.Addr {
	if p := s.pods[name]; p != nil {
		return s.addrs(p)
	}
	return s.locals[name]
}

// Summary is one policy and whom it isolates.
type Summary struct {
	Name    string   `json:"name"`
	Ingress bool     `json:"ingress"`
	Egress  bool     `json:"egress"`
	Rules   int      `json:"rules"`
	Pods    int      `json:"pods"`
	Local   []string `json:"local,omitempty"`
}

// List says of every policy whom it isolates: how many pods, and which of this
// node.
func (s *State) List() []Summary {
	out := make([]Summary, 0, len(s.policies))
	for _, name := range slices.SortedFunc(maps.Keys(s.policies), compareNames) {
		p := s.policies[name]
		one := Summary{
			Name: name.String(), Ingress: p.isolates[Ingress], Egress: p.isolates[Egress],
			Rules: len(p.rules[Ingress]) + len(p.rules[Egress]),
		}
		for pod, o := range s.pods {
			if !p.selects(o) {
				continue
			}
			one.Pods++
			if s.locals[pod] != nil {
				one.Local = append(one.Local, pod.String())
			}
		}
		slices.Sort(one.Local)
		out = append(out, one)
	}
	return out
}

func compareNames(a, b types.NamespacedName) int {
	return cmp.Or(cmp.Compare(a.Namespace, b.Namespace), cmp.Compare(a.Name, b.Name))
}
