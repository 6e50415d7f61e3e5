// SPDX-License-Identifier: Apache-2.0

// Package policy compiles network policies (networking.k8s.io/v1) for one node:
// objects in, map entries out. It is pure. The same state always gives the same
// entries, identifiers included, so a daemon that starts anew writes nothing.
//
// Pods of this node that are selected by the same rules share a profile, one
// for each direction. Peers that match the same terms of all rules share an
// identity, whatever else they are. A profile lists the identities, protocols
// and ports that are allowed; what is not listed is not.
package policy

import (
	"maps"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/labels"
	"k8s.io/apimachinery/pkg/types"
)

// Objects are what network policy depends on. Pods on the host network and
// finished pods are not among them: they have no address of their own.
type Objects struct {
	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
	Policies   []*networkingv1.NetworkPolicy
}

// Names are the names of Objects.
type Names struct {
	Namespaces []string
	Pods       []types.NamespacedName
	Policies   []types.NamespacedName
}

// Pod is what is known of one pod of the cluster.
type Pod struct {
	Name   types.NamespacedName
	Labels labels.Set
	Addrs  []netip.Addr
	Ports  []NamedPort
	// kind stands for everything but name and addresses: pods of a kind match
	// the same terms.
	kind string
}

// NamedPort is a port that policies can refer to by name.
type NamedPort struct {
	Name     string
	Protocol uint8
	Port     uint16
}

// State is the newest state of all objects, and of this node's endpoints.
type State struct {
	namespaces map[string]labels.Set
	pods       map[types.NamespacedName]*Pod
	policies   map[types.NamespacedName]*Policy
	// locals are the addresses of this node's pods, which are known before the
	// API server is told of them.
	locals map[types.NamespacedName][]netip.Addr
}

// NewState knows nothing.
func NewState() *State {
	s := &State{locals: map[types.NamespacedName][]netip.Addr{}}
	s.clear()
	return s
}

func (s *State) clear() {
	s.namespaces = map[string]labels.Set{}
	s.pods = map[types.NamespacedName]*Pod{}
	s.policies = map[types.NamespacedName]*Policy{}
}

// Replace forgets all objects but those given; endpoints stay.
func (s *State) Replace(all Objects) {
	s.clear()
	s.Update(all, Names{})
}

// Update takes over what changed and forgets what is gone.
func (s *State) Update(changed Objects, gone Names) {
	for _, n := range gone.Namespaces {
		delete(s.namespaces, n)
	}
	for _, n := range gone.Pods {
		delete(s.pods, n)
	}
	for _, n := range gone.Policies {
		delete(s.policies, n)
	}
	for _, n := range changed.Namespaces {
		s.namespaces[n.Name] = namespaceLabels(n)
	}
	for _, p := range changed.Pods {
		s.pods[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}] = newPod(p)
	}
	for _, p := range changed.Policies {
		s.policies[types.NamespacedName{Namespace: p.Namespace, Name: p.Name}] = newPolicy(p)
	}
}

// SetLocals says which pods this node has, and their addresses.
func (s *State) SetLocals(locals map[types.NamespacedName][]netip.Addr) { s.locals = locals }

// Known reports whether all is known that a pod's isolation depends on: the pod
// itself, if its namespace has any policy.
func (s *State) Known(pod types.NamespacedName) bool {
	if s.pods[pod] != nil || pod.Namespace == "" {
		return true
	}
	for name := range s.policies {
		if name.Namespace == pod.Namespace {
			return false
		}
	}
	return true
}

// Policies is how many policies there are.
func (s *State) Policies() int { return len(s.policies) }

// namespaceLabels has the name too, which the API server adds since 1.21 and a
// directory of manifests may lack.
func namespaceLabels(n *corev1.Namespace) labels.Set {
	out := labels.Set(maps.Clone(n.Labels))
	if out == nil {
		out = labels.Set{}
	}
	out[corev1.LabelMetadataName] = n.Name
	return out
}

func newPod(p *corev1.Pod) *Pod {
	out := &Pod{Name: types.NamespacedName{Namespace: p.Namespace, Name: p.Name}, Labels: p.Labels}
	for _, ip := range p.Status.PodIPs {
		if a, err := netip.ParseAddr(ip.IP); err == nil {
			out.Addrs = append(out.Addrs, a.Unmap())
		}
	}
	for i := range p.Spec.Containers {
		for _, port := range p.Spec.Containers[i].Ports {
			if port.Name != "" && port.ContainerPort > 0 && port.ContainerPort < 1<<16 {
				out.Ports = append(out.Ports, NamedPort{port.Name, protocol(&port.Protocol), uint16(port.ContainerPort)})
			}
		}
	}
	out.kind = kindOf(out)
	return out
}

// addrs are a pod's addresses: what this node gave it counts.
func (s *State) addrs(p *Pod) []netip.Addr {
	if a := s.locals[p.Name]; a != nil {
		return a
	}
	return p.Addrs
}

// namespace are the labels of a namespace; one that is not known has its name.
func (s *State) namespace(name string) labels.Set {
	if l, ok := s.namespaces[name]; ok {
		return l
	}
	return labels.Set{corev1.LabelMetadataName: name}
}
