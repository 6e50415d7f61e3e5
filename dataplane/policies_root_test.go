// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/intstr"

	"github.com/nodeagent/nodeagent/dataplane/policy"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// labPod is a pod as the API server has it: its labels are its name.
func labPod(p *pod, name string) *corev1.Pod {
	out := &corev1.Pod{ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name, Labels: map[string]string{"name": name}}}
	for _, a := range p.addrs {
		out.Status.PodIPs = append(out.Status.PodIPs, corev1.PodIP{IP: a.String()})
	}
	return out
}

func named(name string) metav1.LabelSelector {
	return metav1.LabelSelector{MatchLabels: map[string]string{"name": name}}
}

// onlyFrom lets the peer alone reach a pod, at port 8080 of both protocols.
func onlyFrom(to string, peer networkingv1.NetworkPolicyPeer) *networkingv1.NetworkPolicy {
	np := &networkingv1.NetworkPolicy{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "to-" + to},
		Spec: networkingv1.NetworkPolicySpec{
			PodSelector: named(to),
			Ingress:     []networkingv1.NetworkPolicyIngressRule{{From: []networkingv1.NetworkPolicyPeer{peer}}},
		},
	}
	for _, proto := range []corev1.Protocol{corev1.ProtocolTCP, corev1.ProtocolUDP} {
		np.Spec.Ingress[0].Ports = append(np.Spec.Ingress[0].Ports,
			networkingv1.NetworkPolicyPort{Protocol: &proto, Port: new(intstr.FromInt32(8080))})
	}
	return np
}

// reaches asks once. What is to be dropped is given a short time only: what is
// not is answered within a millisecond.
func (n netns) reaches(t *testing.T, network string, to netip.AddrPort, want bool) bool {
	t.Helper()
	timeout := 300 * time.Millisecond
	if want {
		timeout = dialTimeout
	}
	return n.do(func() error {
		c, err := net.DialTimeout(network, to.String(), timeout)
		if err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // all is said
		err = c.SetDeadline(time.Now().Add(timeout))
		if err == nil {
			_, err = fmt.Fprintln(c, "hello")
		}
		if err == nil {
			_, err = bufio.NewReader(c).ReadString('\n')
		}
		return err
	}) == nil
}

// TestRootPolicyMatrix asks everybody from everywhere under policies: pods of
// the same node and of another one, natively and by VXLAN, in both families, to
// a pod and to a service before it.
func TestRootPolicyMatrix(t *testing.T) {
	for _, mode := range []string{"native", "vxlan"} {
		t.Run(mode, func(t *testing.T) {
			l := newLab(t, 2)
			h, other := l.hosts[0], l.hosts[1]
			l.join(t, mode)
			pods := map[string]*pod{"server": h.addPod(t, "server"), "friend": h.addPod(t, "friend"), "stranger": h.addPod(t, "stranger")}
			pods["far"], pods["farstranger"] = other.addPod(t, "far"), other.addPod(t, "farstranger")
			pods["server"].serve(t, "server", 8080, pods["server"].addrs...)
			var objects policy.Objects
			for name, p := range pods {
				objects.Pods = append(objects.Pods, labPod(p, name))
			}
			allow := metav1.LabelSelector{MatchExpressions: []metav1.LabelSelectorRequirement{
				{Key: "name", Operator: metav1.LabelSelectorOpIn, Values: []string{"friend", "far"}},
			}}
			objects.Policies = append(objects.Policies, onlyFrom("server", networkingv1.NetworkPolicyPeer{PodSelector: &allow}))
			svc := newService("web", vips(9), 8080, pods["server"].target())
			for _, host := range l.hosts {
				host.agent.must(t, "UpdateServices", []service.Object{svc})
				for name, p := range host.pods {
					p.ep.Namespace, p.ep.Name = "default", name
					host.agent.must(t, "UpdateEndpoint", p.ep)
				}
				host.agent.must(t, "ReplacePolicyObjects", objects)
			}
			for i := range 2 {
				direct := netip.AddrPortFrom(pods["server"].addrs[i], 8080)
				via := netip.AddrPortFrom(vips(9)[i], 80)
				for who, want := range map[string]bool{"friend": true, "far": true, "stranger": false, "farstranger": false} {
					for _, to := range []netip.AddrPort{direct, via} {
						for _, network := range []string{"tcp", "udp"} {
							if got := pods[who].reaches(t, network, to, want); got != want {
								t.Errorf("%s to %s by %s: %v, want %v", who, to, network, got, want)
							}
						}
					}
				}
				if !h.reaches(t, "tcp", direct, true) { // a probe of the kubelet
					t.Errorf("the node does not reach its pod %s", direct)
				}
				if other.reaches(t, "tcp", direct, false) {
					t.Errorf("another node reaches %s", direct)
				}
			}
		})
	}
}

// TestRootPolicyChanges: policies that come, change and go count for the next
// flow, those in force survive the daemon, and no pod is let in before its own.
func TestRootPolicyChanges(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	server, client := h.wirePod(t, "server"), h.wirePod(t, "client")
	for _, p := range []*pod{server, client} {
		p.ep.Namespace = "default"
		h.agent.must(t, "UpdateEndpoint", p.ep)
	}
	server.serve(t, "server", 8080, server.addrs...)
	to := netip.AddrPortFrom(server.addrs[0], 8080)
	objects := policy.Objects{Pods: []*corev1.Pod{labPod(server, "server"), labPod(client, "client")}}
	expect := func(what string, want bool) {
		t.Helper()
		if got := client.reaches(t, "tcp", to, want); got != want {
			t.Errorf("%s: reaches %v, want %v", what, got, want)
		}
	}
	h.agent.must(t, "ReplacePolicyObjects", objects)
	expect("no policy", true)
	deny := onlyFrom("server", networkingv1.NetworkPolicyPeer{PodSelector: new(named("nobody"))})
	objects.Policies = []*networkingv1.NetworkPolicy{deny}
	h.agent.must(t, "ReplacePolicyObjects", objects)
	expect("nobody is allowed", false)
	allow := onlyFrom("server", networkingv1.NetworkPolicyPeer{IPBlock: &networkingv1.IPBlock{CIDR: "10.0.0.0/16"}})
	h.agent.must(t, "UpdatePolicyObjects", policy.Objects{Policies: []*networkingv1.NetworkPolicy{allow}})
	expect("a range is allowed", true)
	h.agent.must(t, "UpdatePolicyObjects", policy.Objects{Policies: []*networkingv1.NetworkPolicy{deny}})

	h.agent.kill(t)
	expect("without the daemon", false)
	h.policies = true
	h.startAgent(t)
	expect("before the new daemon knows", false)
	for _, p := range []*pod{server, client} { // what is there already is not held up
		h.agent.must(t, "UpdateEndpoint", p.ep)
	}
	h.agent.must(t, "PruneEndpoints", []string{server.ep.ID, client.ep.ID})
	expect("after the replay", false)
	t.Run("a new pod waits", func(t *testing.T) {
		late := h.wirePod(t, "late")
		late.ep.Namespace = "default"
		late.serve(t, "late", 8080, late.addrs...)
		// While it waits its link has the programs and is in no map. Who is refused
		// loses them after a while: the caller removes the link, which is not up yet.
		h.agent.must(t, "PrepareLink", late.ep.IfIndex)
		if client.reaches(t, "tcp", netip.AddrPortFrom(late.addrs[0], 8080), false) {
			t.Error("a pod is reachable whose policies are not known")
		}
		begin := time.Now()
		err := h.agent.call("UpdateEndpoint", late.ep)
		if err == nil || !strings.Contains(err.Error(), ErrPolicies.Error()) {
			t.Errorf("let in after %v: %v", time.Since(begin), err)
		}
		objects.Pods = append(objects.Pods, labPod(late, "late"))
		objects.Policies = append(objects.Policies, onlyFrom("late", networkingv1.NetworkPolicyPeer{PodSelector: new(named("nobody"))}))
		h.agent.must(t, "ReplacePolicyObjects", objects)
		h.agent.must(t, "UpdateEndpoint", late.ep)
		if client.reaches(t, "tcp", netip.AddrPortFrom(late.addrs[0], 8080), false) {
			t.Error("a pod is reachable that its policy isolates")
		}
	})
	h.agent.must(t, "ReplacePolicyObjects", policy.Objects{})
	expect("no policy any more", true)
}
