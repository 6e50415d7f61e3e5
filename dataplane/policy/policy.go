// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// Direction is the side of a pod that a rule is about.
type Direction string

// Directions.
const (
	Ingress Direction = "ingress"
	Egress  Direction = "egress"
)

// Policy is a NetworkPolicy, parsed. A part that cannot be parsed allows
// nothing: the API server lets none through.
type Policy struct {
	Name types.NamespacedName
	pods labels.Selector
	// isolates are the directions in which selected pods are isolated.
	isolates map[Direction]bool
	rules    map[Direction][]rule
}

// rule allows what comes from (or goes to) one of the peers at one of the ports.
type rule struct {
	anyPeer bool
	peers   []peer
	anyPort bool
	ports   []ports
}

// peer is a term of rules: pods, or a range of addresses.
type peer struct {
	key string // the same for the same term
	// Pods: those that both selectors match, in namespace if namespaces is nil.
	namespace  string
	namespaces labels.Selector
	pods       labels.Selector
	// A range, where valid.
	cidr   netip.Prefix
	except []netip.Prefix
}

// ports are one protocol's from first to last, or those of a name.
type ports struct {
	protocol    uint8
	first, last uint16
	name        string
}

func newPolicy(np *networkingv1.NetworkPolicy) *Policy {
	p := &Policy{
		Name:     types.NamespacedName{Namespace: np.Namespace, Name: np.Name},
		pods:     selector(&np.Spec.PodSelector),
		isolates: map[Direction]bool{}, rules: map[Direction][]rule{},
	}
	kinds := np.Spec.PolicyTypes
	if len(kinds) == 0 { // what the API server would have filled in
		kinds = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
		if len(np.Spec.Egress) > 0 {
			kinds = append(kinds, networkingv1.PolicyTypeEgress)
		}
	}
	if slices.Contains(kinds, networkingv1.PolicyTypeIngress) {
		p.isolates[Ingress] = true
		for _, r := range np.Spec.Ingress {
			p.rules[Ingress] = append(p.rules[Ingress], newRule(np.Namespace, r.From, r.Ports))
		}
	}
	if slices.Contains(kinds, networkingv1.PolicyTypeEgress) {
		p.isolates[Egress] = true
		for _, r := range np.Spec.Egress {
			p.rules[Egress] = append(p.rules[Egress], newRule(np.Namespace, r.To, r.Ports))
		}
	}
	return p
}

// selects reports whether a pod is isolated by the policy.
func (p *Policy) selects(pod *Pod) bool {
	return p.Name.Namespace == pod.Name.Namespace && p.pods.Matches(pod.Labels)
}

func newRule(namespace string, peers []networkingv1.NetworkPolicyPeer, on []networkingv1.NetworkPolicyPort) rule {
	r := rule{anyPeer: len(peers) == 0, anyPort: len(on) == 0}
	for i := range peers {
		if p, ok := newPeer(namespace, &peers[i]); ok {
			r.peers = append(r.peers, p)
		}
	}
	for i := range on {
		if p, ok := newPorts(&on[i]); ok {
			r.ports = append(r.ports, p)
		}
	}
	return r
}

func newPeer(namespace string, in *networkingv1.NetworkPolicyPeer) (peer, bool) {
	if b := in.IPBlock; b != nil {
		cidr, err := netip.ParsePrefix(b.CIDR)
		if err != nil {
			return peer{}, false
		}
		p := peer{cidr: unmap(cidr)}
		for _, e := range b.Except {
			if x, err := netip.ParsePrefix(e); err == nil {
				p.except = append(p.except, unmap(x))
			}
		}
		p.key = fmt.Sprint("block ", p.cidr, " except ", p.except)
		return p, true
	}
	p := peer{namespace: namespace, pods: labels.Everything()}
	where := "in " + namespace
	if in.NamespaceSelector != nil {
		p.namespaces = selector(in.NamespaceSelector)
		where = "in{" + p.namespaces.String() + "}"
	}
	if in.PodSelector != nil {
		p.pods = selector(in.PodSelector)
	}
	p.key = "pods{" + p.pods.String() + "} " + where
	if p.pods == labels.Nothing() || p.namespaces == labels.Nothing() {
		return peer{}, false
	}
	return p, in.PodSelector != nil || in.NamespaceSelector != nil
}

func unmap(p netip.Prefix) netip.Prefix {
	if p.Addr().Is4In6() && p.Bits() >= 96 {
		p = netip.PrefixFrom(p.Addr().Unmap(), p.Bits()-96)
	}
	return p.Masked()
}

// matchesPod reports whether pods of this kind, in a namespace with these
// labels, are meant.
func (p *peer) matchesPod(pod *Pod, namespace labels.Set) bool {
	if p.cidr.IsValid() {
		return false
	}
	if p.namespaces == nil {
		return pod.Name.Namespace == p.namespace && p.pods.Matches(pod.Labels)
	}
	return p.namespaces.Matches(namespace) && p.pods.Matches(pod.Labels)
}

// covers reports whether all of a range is in the peer's, if it is one.
func (p *peer) covers(r netip.Prefix) bool {
	within := func(outer netip.Prefix) bool { return outer.Bits() <= r.Bits() && outer.Contains(r.Addr()) }
	return p.cidr.IsValid() && within(p.cidr) && !slices.ContainsFunc(p.except, within)
}

func newPorts(in *networkingv1.NetworkPolicyPort) (ports, bool) {
	p := ports{protocol: protocol(in.Protocol), last: 1<<16 - 1}
	switch {
	case p.protocol == 0:
		return p, false
	case in.Port == nil:
		return p, true
	case in.Port.Type == intstr.String:
		p.name = in.Port.StrVal
		return p, p.name != ""
	}
	first, last := in.Port.IntVal, in.Port.IntVal
	if in.EndPort != nil {
		last = *in.EndPort
	}
	if first < 0 || first > last || last >= 1<<16 {
		return p, false
	}
	p.first, p.last = uint16(first), uint16(last)
	return p, true
}

// resolve gives the numbers that a named port has on a pod.
func (p ports) resolve(pod *Pod) []ports {
	if p.name == "" {
		return []ports{p}
	}
	var out []ports
	for _, n := range pod.Ports {
		if n.Name == p.name && n.Protocol == p.protocol {
			out = append(out, ports{protocol: p.protocol, first: n.Port, last: n.Port})
		}
	}
	return out
}

func (p ports) contains(protocol uint8, port uint16) bool {
	return p.name == "" && p.protocol == protocol && p.first <= port && port <= p.last
}

// protocol is an IP protocol's number; TCP is the default, 0 none of policy's.
func protocol(p *corev1.Protocol) uint8 {
	if p == nil || *p == "" {
		return 6
	}
	return map[corev1.Protocol]uint8{corev1.ProtocolTCP: 6, corev1.ProtocolUDP: 17, corev1.ProtocolSCTP: 132}[*p]
}

func selector(s *metav1.LabelSelector) labels.Selector {
	sel, err := metav1.LabelSelectorAsSelector(s)
	if err != nil {
		return labels.Nothing()
	}
	return sel
}

// kindOf has all of a pod that terms look at.
func kindOf(p *Pod) string {
	var b strings.Builder
	fmt.Fprint(&b, p.Name.Namespace, "\n", p.Labels.String(), "\n", p.Ports)
	return b.String()
}
