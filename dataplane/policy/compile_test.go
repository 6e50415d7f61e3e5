// SPDX-License-Identifier: Apache-2.0

package policy

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"reflect"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// dice makes random clusters, small enough that terms meet.
type dice struct{ *rand.Rand }

func (d dice) one(of ...string) string { return of[d.IntN(len(of))] }

func (d dice) labels() map[string]string {
	out := map[string]string{}
	for _, k := range []string{"a", "b"} {
		if d.IntN(3) > 0 {
			out[k] = d.one("1", "2", "3")
		}
	}
	return out
}

func (d dice) selector() *metav1.LabelSelector {
	s := &metav1.LabelSelector{}
	switch d.IntN(4) {
	case 0:
	case 1:
		s.MatchLabels = map[string]string{d.one("a", "b"): d.one("1", "2", "3")}
	default:
		op := metav1.LabelSelectorOperator(d.one("In", "NotIn", "Exists", "DoesNotExist"))
		e := metav1.LabelSelectorRequirement{Key: d.one("a", "b"), Operator: op}
		if op == metav1.LabelSelectorOpIn || op == metav1.LabelSelectorOpNotIn {
			e.Values = []string{d.one("1", "2"), d.one("2", "3")}
		}
		s.MatchExpressions = append(s.MatchExpressions, e)
	}
	return s
}

func (d dice) peers() []networkingv1.NetworkPolicyPeer {
	var out []networkingv1.NetworkPolicyPeer
	for range d.IntN(4) {
		var p networkingv1.NetworkPolicyPeer
		switch d.IntN(4) {
		case 0:
			p.PodSelector = d.selector()
		case 1:
			p.NamespaceSelector = d.selector()
		case 2:
			p.PodSelector, p.NamespaceSelector = d.selector(), d.selector()
		default:
			if d.IntN(2) == 0 {
				p.IPBlock = &networkingv1.IPBlock{CIDR: d.one("10.0.0.0/8", "10.0.0.0/29", "0.0.0.0/0", "192.0.2.0/24", "10.0.0.3/32")}
				if d.IntN(2) == 0 {
					p.IPBlock.Except = []string{d.one("10.0.0.4/30", "10.0.0.2/32", "10.0.0.8/29", "192.0.2.128/25")}
				}
			} else {
				p.IPBlock = &networkingv1.IPBlock{CIDR: d.one("fd00::/16", "fd00::/125", "::/0")}
				if d.IntN(2) == 0 {
					p.IPBlock.Except = []string{d.one("fd00::4/126", "fd00::2/128")}
				}
			}
		}
		out = append(out, p)
	}
	return out
}

func (d dice) ports() []networkingv1.NetworkPolicyPort {
	var out []networkingv1.NetworkPolicyPort
	for range d.IntN(3) {
		var p networkingv1.NetworkPolicyPort
		if d.IntN(3) > 0 {
			p.Protocol = new(corev1.Protocol(d.one("TCP", "UDP", "SCTP")))
		}
		switch d.IntN(4) {
		case 0:
		case 1:
			p.Port = new(intstr.FromString(d.one("web", "dns")))
		case 2:
			p.Port = new(intstr.FromInt32(d.Int32N(4) + 80))
		default:
			first := d.Int32N(65000)
			p.Port, p.EndPort = new(intstr.FromInt32(first)), new(first+d.Int32N(65536-first))
		}
		out = append(out, p)
	}
	return out
}

func (d dice) policy(i int) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{ObjectMeta: metav1.ObjectMeta{Namespace: d.one("n0", "n1", "n2"), Name: fmt.Sprint("p", i)}}
	np.Spec.PodSelector = *d.selector()
	for range d.IntN(3) {
		np.Spec.Ingress = append(np.Spec.Ingress, networkingv1.NetworkPolicyIngressRule{From: d.peers(), Ports: d.ports()})
	}
	for range d.IntN(3) {
		np.Spec.Egress = append(np.Spec.Egress, networkingv1.NetworkPolicyEgressRule{To: d.peers(), Ports: d.ports()})
	}
	switch d.IntN(4) {
	case 0:
		np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeIngress}
	case 1:
		np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress}
	case 2:
		np.Spec.PolicyTypes = []networkingv1.PolicyType{networkingv1.PolicyTypeEgress, networkingv1.PolicyTypeIngress}
	}
	return np
}

func (d dice) cluster() Objects {
	var out Objects
	for i := range 3 {
		out.Namespaces = append(out.Namespaces, &corev1.Namespace{ObjectMeta: metav1.ObjectMeta{Name: fmt.Sprint("n", i), Labels: d.labels()}})
	}
	for i := range 8 {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: d.one("n0", "n1", "n2"), Name: fmt.Sprint("pod", i), Labels: d.labels()}}
		p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprint("10.0.0.", i+1)}, {IP: fmt.Sprint("fd00::", i+1)}}
		c := corev1.Container{}
		for range d.IntN(3) {
			c.Ports = append(c.Ports, corev1.ContainerPort{
				Name: d.one("web", "dns"), ContainerPort: 80 + d.Int32N(4), Protocol: corev1.Protocol(d.one("TCP", "UDP")),
			})
		}
		p.Spec.Containers = []corev1.Container{c}
		out.Pods = append(out.Pods, p)
	}
	for i := range d.IntN(6) {
		out.Policies = append(out.Policies, d.policy(i))
	}
	return out
}

// TestRandomClusters compares tables and explanations with the oracle.
func TestRandomClusters(t *testing.T) {
	clusters := 400
	if testing.Short() {
		clusters = 50
	}
	denied, allowed := 0, 0
	for seed := range uint64(clusters) {
		d := dice{rand.New(rand.NewPCG(seed, 1))}
		o := oracle{d.cluster()}
		s := NewState()
		s.Replace(o.objects)
		local := func(p *corev1.Pod) bool { return p.Name <= "pod5" }
		locals := map[types.NamespacedName][]netip.Addr{}
		for _, p := range o.objects.Pods {
			if name := (types.NamespacedName{Namespace: p.Namespace, Name: p.Name}); local(p) {
				locals[name] = s.PodAddrs(name)
			}
		}
		s.SetLocals(locals)
		tables := Compile(s)
		for v, all := range map[string][]netip.Addr{"v4": addrs("10.0.0.", "192.0.2.7", "192.0.2.200"), "v6": addrs("fd00::", "2001:db8::1", "fd00:1::1")} {
			for range 150 {
				src, dst := all[d.IntN(len(all))], all[d.IntN(len(all))]
				proto, port := d.one("TCP", "UDP", "SCTP"), 80+d.Int32N(4)
				if d.IntN(3) == 0 {
					port = d.Int32N(65536)
				}
				number := protocol(new(corev1.Protocol(proto)))
				want := o.allowed(src, dst, corev1.Protocol(proto), port, local)
				if got := tables.Verdict(src, dst, number, uint16(port)) == ""; got != want {
					t.Fatalf("seed %d %s: %s -> %s %s %d: tables say %v, the oracle %v", seed, v, src, dst, proto, port, got, want)
				}
				whole := o.allowed(src, dst, corev1.Protocol(proto), port, func(*corev1.Pod) bool { return true })
				if got := s.Explain(src, dst, number, uint16(port)).Allowed; got != whole {
					t.Fatalf("seed %d %s: %s -> %s %s %d: explained %v, the oracle %v", seed, v, src, dst, proto, port, got, whole)
				}
				if want {
					allowed++
				} else {
					denied++
				}
			}
		}
		if again := Compile(s); !reflect.DeepEqual(again, tables) {
			t.Fatalf("seed %d: compiled twice, and not the same", seed)
		}
	}
	if denied*20 < allowed || allowed*20 < denied {
		t.Errorf("the dice are loaded: %d denied, %d allowed", denied, allowed)
	}
}

func addrs(prefix string, more ...string) []netip.Addr {
	var out []netip.Addr
	for i := range 8 {
		out = append(out, netip.MustParseAddr(fmt.Sprint(prefix, i+1)))
	}
	for _, m := range more {
		out = append(out, netip.MustParseAddr(m))
	}
	return out
}

// BenchmarkCompile is a node of 100 pods in a cluster of 10,000 with 200 policies.
func BenchmarkCompile(b *testing.B) {
	s := NewState()
	var all Objects
	for i := range 10000 {
		p := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{
			Namespace: fmt.Sprint("n", i%50), Name: fmt.Sprint("p", i), Labels: map[string]string{"app": fmt.Sprint("a", i%500)},
		}}
		p.Status.PodIPs = []corev1.PodIP{{IP: fmt.Sprintf("10.%d.%d.1", i/250, i%250)}}
		all.Pods = append(all.Pods, p)
	}
	for i := range 200 {
		all.Policies = append(all.Policies, &networkingv1.NetworkPolicy{
			ObjectMeta: metav1.ObjectMeta{Namespace: fmt.Sprint("n", i%50), Name: fmt.Sprint("np", i)},
			Spec: networkingv1.NetworkPolicySpec{Ingress: []networkingv1.NetworkPolicyIngressRule{{
				From: []networkingv1.NetworkPolicyPeer{{
					PodSelector:       &metav1.LabelSelector{MatchLabels: map[string]string{"app": fmt.Sprint("a", i)}},
					NamespaceSelector: &metav1.LabelSelector{},
				}},
				Ports: []networkingv1.NetworkPolicyPort{{Port: new(intstr.FromInt32(80))}},
			}}},
		})
	}
	s.Replace(all)
	locals := map[types.NamespacedName][]netip.Addr{}
	for i := range 100 {
		name := types.NamespacedName{Namespace: fmt.Sprint("n", i%50), Name: fmt.Sprint("p", i)}
		locals[name] = s.PodAddrs(name)
	}
	s.SetLocals(locals)
	var t Tables
	for b.Loop() {
		t = Compile(s)
	}
	b.ReportMetric(float64(len(t.Rules)), "rules")
	b.ReportMetric(float64(len(t.Identities)), "identities")
}
