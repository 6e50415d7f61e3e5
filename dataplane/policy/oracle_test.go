// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// oracle judges flows by the words of the API, object by object, and shares
// nothing with the compiler.
type oracle struct {
	objects Objects
}

func (o oracle) pod(a netip.Addr) *corev1.Pod {
	for _, p := range o.objects.Pods {
		for _, ip := range p.Status.PodIPs {
			if ip.IP == a.String() {
				return p
			}
		}
	}
	return nil
}

func (o oracle) allowed(src, dst netip.Addr, proto corev1.Protocol, port int32, local func(*corev1.Pod) bool) bool {
	if src == dst {
		return true
	}
	from, to := o.pod(src), o.pod(dst)
	out, in := true, true
	at := door{to, proto, port}
	if from != nil && local(from) {
		out = o.side(networkingv1.PolicyTypeEgress, from, to, dst, at)
	}
	if to != nil && local(to) {
		in = o.side(networkingv1.PolicyTypeIngress, to, from, src, at)
	}
	return out && in
}

// door is what is spoken to.
type door struct {
	pod   *corev1.Pod
	proto corev1.Protocol
	port  int32
}

func (o oracle) side(dir networkingv1.PolicyType, self, other *corev1.Pod, addr netip.Addr, at door) bool {
	isolated := false
	for _, np := range o.objects.Policies {
		if np.Namespace != self.Namespace || !matches(&np.Spec.PodSelector, self.Labels) {
			continue
		}
		types := np.Spec.PolicyTypes
		if types == nil {
			types = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
			if len(np.Spec.Egress) > 0 {
				types = append(types, networkingv1.PolicyTypeEgress)
			}
		}
		if !slices.Contains(types, dir) {
			continue
		}
		isolated = true
		if dir == networkingv1.PolicyTypeIngress {
			for _, r := range np.Spec.Ingress {
				if o.peers(np.Namespace, r.From, other, addr) && on(r.Ports, at) {
					return true
				}
			}
			continue
		}
		for _, r := range np.Spec.Egress {
			if o.peers(np.Namespace, r.To, other, addr) && on(r.Ports, at) {
				return true
			}
		}
	}
	return !isolated
}

func (o oracle) peers(ns string, peers []networkingv1.NetworkPolicyPeer, other *corev1.Pod, addr netip.Addr) bool {
	if len(peers) == 0 {
		return true
	}
	for _, p := range peers {
		if p.IPBlock != nil {
			if inside(p.IPBlock.CIDR, addr) && !slices.ContainsFunc(p.IPBlock.Except, func(e string) bool { return inside(e, addr) }) {
				return true
			}
			continue
		}
		if other == nil {
			continue
		}
		nsOK := other.Namespace == ns
		if p.NamespaceSelector != nil {
			nsOK = false
			for _, n := range o.objects.Namespaces {
				nsOK = nsOK || n.Name == other.Namespace && matches(p.NamespaceSelector, n.Labels)
			}
		}
		if nsOK && (p.PodSelector == nil || matches(p.PodSelector, other.Labels)) {
			return true
		}
	}
	return false
}

func on(ports []networkingv1.NetworkPolicyPort, at door) bool {
	if len(ports) == 0 {
		return true
	}
	for _, p := range ports {
		want := corev1.ProtocolTCP
		if p.Protocol != nil {
			want = *p.Protocol
		}
		if want != at.proto {
			continue
		}
		switch {
		case p.Port == nil:
			return true
		case p.Port.Type == intstr.Int && p.EndPort == nil && p.Port.IntVal == at.port:
			return true
		case p.Port.Type == intstr.Int && p.EndPort != nil && p.Port.IntVal <= at.port && at.port <= *p.EndPort:
			return true
		case p.Port.Type == intstr.String && at.isNamed(p.Port.StrVal):
			return true
		}
	}
	return false
}

func (d door) isNamed(name string) bool {
	if d.pod == nil {
		return false
	}
	for _, c := range d.pod.Spec.Containers {
		for _, n := range c.Ports {
			if n.Name == name && n.Protocol == d.proto && n.ContainerPort == d.port {
				return true
			}
		}
	}
	return false
}

func inside(cidr string, a netip.Addr) bool { return netip.MustParsePrefix(cidr).Contains(a) }

func matches(s *metav1.LabelSelector, set map[string]string) bool {
	for k, v := range s.MatchLabels {
		if set[k] != v {
			return false
		}
	}
	for _, e := range s.MatchExpressions {
		v, ok := set[e.Key]
		var good bool
		switch e.Operator {
		case metav1.LabelSelectorOpIn:
			good = ok && slices.Contains(e.Values, v)
		case metav1.LabelSelectorOpNotIn:
			good = !ok || !slices.Contains(e.Values, v)
		case metav1.LabelSelectorOpExists:
			good = ok
		case metav1.LabelSelectorOpDoesNotExist:
			good = !ok
		}
		if !good {
			return false
		}
	}
	return true
}
