// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"net/netip"
	"sync"
	"testing"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"

	"github.com/nodeagent/nodeagent/dataplane/policy"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// TestRootPolicyBesideKubeProxy: while a real kube-proxy translates, policies
// judge what it made of a packet, in both directions, and answers get through.
func TestRootPolicyBesideKubeProxy(t *testing.T) {
	for _, mode := range []string{"nftables", "iptables"} {
		t.Run(mode, func(t *testing.T) { policyBesideKubeProxy(t, mode) })
	}
}

// proxiedLab is a node that kube-proxy serves, with pods under policies.
type proxiedLab struct {
	*lab
	h        *host
	pods     map[string]*pod
	services []service.Object
}

func newProxiedLab(t *testing.T) *proxiedLab {
	t.Helper()
	l := &proxiedLab{lab: newLabWith(t, 2, func(c *Config) { c.Services = false }), pods: map[string]*pod{}}
	l.h = l.hosts[0]
	far := l.hosts[1].addPod(t, "far")
	for _, name := range []string{"server", "friend", "stranger", "clerk"} {
		l.pods[name] = l.h.addPod(t, name)
	}
	server := l.pods["server"]
	l.pods["far"] = far
	l.join(t, "auto")
	server.serve(t, "server", 8080, server.addrs...)
	far.serve(t, "far", 8080, far.addrs...)
	l.world.serve(t, "world", 8080, worldAddrs...)
	l.services = []service.Object{
		external(newService("server", vips(1), 8080, server.target()), 30080, nil, false),
		external(newService("far", vips(2), 8080, far.target()), 30081, nil, false),
		newService("world", vips(3), 8080, target{worldAddrs, "", true}),
	}
	for _, o := range l.services {
		for i := range o.Service.Spec.Ports {
			o.Service.Spec.Ports[i].TargetPort.IntVal = 8080
		}
		if o.Service.Spec.Type != corev1.ServiceTypeClusterIP {
			o.Service.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyCluster
		}
		o.Service.Spec.IPFamilies = []corev1.IPFamily{corev1.IPv4Protocol, corev1.IPv6Protocol}
	}
	return l
}

// isolate lets friend and clerk alone reach the server, and the clerk nobody else.
func (l *proxiedLab) isolate(t *testing.T) {
	t.Helper()
	var objects policy.Objects
	for name, p := range l.pods {
		objects.Pods = append(objects.Pods, labPod(p, name))
		p.ep.Namespace, p.ep.Name = "default", name
		p.host.agent.must(t, "UpdateEndpoint", p.ep)
	}
	friends := metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
		{Key: "name", Operator: metav1.LabelSelectorOpIn, Values: []string{"friend", "clerk"}},
	}}
	clerk := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "clerk"},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: named("clerk"),
			PolicyTypes: []networkingv1.PolicyType{networkingv1.PolicyTypeEgress},
			Egress:      []networkingv1.NetworkPolicyEgressRule{{To: []networkingv1.NetworkPolicyPeer{{PodSelector: new(named("server"))}}}},
		},
	}
	objects.Policies = []*networkingv1.NetworkPolicy{clerk, onlyFrom("server", networkingv1.NetworkPolicyPeer{PodSelector: &friends})}
	l.h.agent.must(t, "ReplacePolicyObjects", objects)
}

// ways are the addresses of a server: its own, the service's, and a port of the node.
func (l *proxiedLab) ways(to string, family int) []netip.AddrPort {
	vip := func(n byte) netip.AddrPort { return netip.AddrPortFrom(vips(n)[family], 80) }
	port := func(n uint16) netip.AddrPort { return netip.AddrPortFrom(l.h.node.Addrs[family], n) }
	switch to {
	case "world":
		return []netip.AddrPort{netip.AddrPortFrom(worldAddrs[family], 8080), vip(3)}
	case "far":
		return []netip.AddrPort{netip.AddrPortFrom(l.pods["far"].addrs[family], 8080), vip(2), port(30081)}
	default:
		return []netip.AddrPort{netip.AddrPortFrom(l.pods["server"].addrs[family], 8080), vip(1), port(30080)}
	}
}

// ask asks everybody at once, each way to each server, in both families.
func (l *proxiedLab) ask(t *testing.T) {
	t.Helper()
	var all sync.WaitGroup
	ask := func(from netns, who, network string, to netip.AddrPort, want bool) {
		all.Go(func() {
			if got := from.reaches(t, network, to, want); got != want {
				t.Errorf("%s to %s by %s: %v, want %v", who, to, network, got, want)
			}
		})
	}
	for _, c := range []struct {
		who, to string
		want    bool
	}{
		{"friend", "server", true},
		{"stranger", "server", false},
		{"clerk", "server", true},
		{"server", "server", true},
		{"friend", "far", true},
		{"clerk", "far", false},
		{"server", "far", true}, // the answers are no new flows
		{"friend", "world", true},
		{"clerk", "world", false},
		{"server", "world", true},
	} {
		for i := range 2 {
			for _, at := range l.ways(c.to, i) {
				ask(l.pods[c.who].netns, c.who, "tcp", at, c.want)
				ask(l.pods[c.who].netns, c.who, "udp", at, c.want)
			}
		}
	}
	for i := range 2 {
		direct, port := l.ways("server", i)[0], l.ways("server", i)[2]
		ask(l.h.netns, "the node", "tcp", direct, true)
		ask(l.pods["far"].netns, "far", "udp", direct, false)
		ask(l.pods["far"].netns, "far", "tcp", port, false)
		ask(l.world, "the world", "tcp", port, false)
	}
	all.Wait()
}

func policyBesideKubeProxy(t *testing.T, mode string) {
	t.Helper()
	l := newProxiedLab(t)
	stop := l.h.kubeProxy(t, mode, l.services)
	defer stop()
	stranger := l.pods["stranger"]
	eventually(t, "kube-proxy", func() error {
		var errs []error
		for i := range 2 {
			_, _, err := stranger.ask("tcp", netip.AddrPortFrom(vips(1)[i], 80))
			errs = append(errs, err)
		}
		return errors.Join(errs...)
	})
	old := stranger.streamAt(t, netip.AddrPortFrom(vips(1)[0], 80), 0)
	old.progress(t)
	l.isolate(t)
	l.ask(t)
	old.progress(t)
	old.finish(t)
}
