// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// object is a dual stack service with two ready endpoints, the first local.
func object(change func(*corev1.Service)) Object {
	tcp, udp := corev1.ProtocolTCP, corev1.ProtocolUDP
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: "svc"},
		Spec: corev1.ServiceSpec{
			Type:       corev1.ServiceTypeClusterIP,
			ClusterIPs: []string{"10.96.0.1", "fd00:96::1"},
			Ports: []corev1.ServicePort{
				{Name: "web", Port: 80, Protocol: tcp},
				{Name: "dns", Port: 53, Protocol: udp},
			},
		},
	}
	change(svc)
	o := Object{Service: svc}
	for typ, addrs := range map[discoveryv1.AddressType][]string{
		discoveryv1.AddressTypeIPv4: {"10.0.1.2", "10.0.2.2"},
		discoveryv1.AddressTypeIPv6: {"fd00:10:1::2", "fd00:10:2::2"},
	} {
		web, dns := int32(8080), int32(5353)
		s := &discoveryv1.EndpointSlice{
			AddressType: typ,
			Ports: []discoveryv1.EndpointPort{
				{Name: new("web"), Port: &web, Protocol: &tcp},
				{Name: new("dns"), Port: &dns, Protocol: &udp},
			},
		}
		for i, a := range addrs {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{a}, NodeName: new([]string{"here", "there"}[i]),
			})
		}
		o.Slices = append(o.Slices, s)
	}
	return o
}

// lines are the entries as people read them, sorted.
func lines(entries []Entry) []string {
	var out []string
	for _, e := range entries {
		var to []string
		for _, b := range e.Backends {
			to = append(to, netip.AddrPortFrom(b.Addr, b.Port).String())
		}
		extra := ""
		if e.Affinity > 0 {
			extra += " affinity " + e.Affinity.String()
		}
		if e.Drop {
			extra += " drop"
		}
		if len(e.Ranges) > 0 {
			extra += fmt.Sprint(" from ", e.Ranges)
		}
		out = append(out, fmt.Sprintf("%s -> %s%s", e.Frontend, strings.Join(to, " "), extra))
	}
	slices.Sort(out)
	return out
}

func TestCompile(t *testing.T) {
	local := corev1.ServiceInternalTrafficPolicyLocal
	for _, c := range []struct {
		name   string
		change func(*corev1.Service)
		want   []string
		errs   []string
	}{
		{"cluster ip", func(*corev1.Service) {}, []string{
			"10.96.0.1:53/udp -> 10.0.1.2:5353 10.0.2.2:5353",
			"10.96.0.1:80/tcp -> 10.0.1.2:8080 10.0.2.2:8080",
			"[fd00:96::1]:53/udp -> [fd00:10:1::2]:5353 [fd00:10:2::2]:5353",
			"[fd00:96::1]:80/tcp -> [fd00:10:1::2]:8080 [fd00:10:2::2]:8080",
		}, nil},
		{"headless", func(s *corev1.Service) { s.Spec.ClusterIPs = []string{"None"} }, nil, nil},
		{"external name", func(s *corev1.Service) { s.Spec.Type = corev1.ServiceTypeExternalName }, nil, nil},
		{"internal policy local, affinity", func(s *corev1.Service) {
			s.Spec.ClusterIPs = s.Spec.ClusterIPs[:1]
			s.Spec.Ports = s.Spec.Ports[:1]
			s.Spec.InternalTrafficPolicy = &local
			s.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
		}, []string{"10.96.0.1:80/tcp -> 10.0.1.2:8080 affinity 3h0m0s"}, nil},
		{"balancer with external policy local", func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Spec.ClusterIPs = s.Spec.ClusterIPs[:1]
			s.Spec.Ports = []corev1.ServicePort{{Name: "web", Port: 80, NodePort: 30080}}
			s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			s.Spec.ExternalIPs = []string{"203.0.113.9", "2001:db8::9"}
			s.Spec.LoadBalancerSourceRanges = []string{" 198.51.100.0/24 ", "2001:db8::/32"}
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{
				{IP: "203.0.113.1"},
				{Hostname: "lb.example"},
				{IP: "203.0.113.2", IPMode: new(corev1.LoadBalancerIPModeProxy)},
			}
		}, []string{
			"*:30080/tcp -> 10.0.1.2:8080 10.0.2.2:8080",
			"*:30080/tcp from outside -> 10.0.1.2:8080",
			"10.96.0.1:80/tcp -> 10.0.1.2:8080 10.0.2.2:8080",
			"203.0.113.1:80/tcp -> 10.0.1.2:8080 10.0.2.2:8080 from [198.51.100.0/24]",
			"203.0.113.1:80/tcp from outside -> 10.0.1.2:8080 from [198.51.100.0/24]",
			"203.0.113.9:80/tcp -> 10.0.1.2:8080 10.0.2.2:8080",
			"203.0.113.9:80/tcp from outside -> 10.0.1.2:8080",
		}, nil},
		{"ranges of the other family shut everybody out", func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeLoadBalancer
			s.Spec.ClusterIPs = s.Spec.ClusterIPs[:1]
			s.Spec.Ports = s.Spec.Ports[:1]
			s.Spec.LoadBalancerSourceRanges = []string{"2001:db8::/32"}
			s.Status.LoadBalancer.Ingress = []corev1.LoadBalancerIngress{{IP: "203.0.113.1"}}
		}, []string{
			"10.96.0.1:80/tcp -> 10.0.1.2:8080 10.0.2.2:8080",
			"203.0.113.1:80/tcp -> 10.0.1.2:8080 10.0.2.2:8080 from [0.0.0.0/32]",
			"203.0.113.1:80/tcp from outside -> 10.0.1.2:8080 10.0.2.2:8080 from [0.0.0.0/32]",
		}, nil},
		{
			"what is malformed is reported, the rest is served", func(s *corev1.Service) {
				s.Spec.ClusterIPs = []string{"10.96.0.1", "10.96.0.300"}
				s.Spec.Ports = append(s.Spec.Ports[:1], corev1.ServicePort{Name: "x", Port: 70000},
					corev1.ServicePort{Name: "y", Port: 1, Protocol: "ICMP"})
				s.Spec.ExternalIPs = []string{"nonsense"}
			},
			[]string{"10.96.0.1:80/tcp -> 10.0.1.2:8080 10.0.2.2:8080"},
			[]string{`clusterIP "10.96.0.300"`, `externalIP "nonsense"`, "port x: 70000", `port y: protocol "ICMP"`},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			entries, err := Compile(object(c.change), Node{Name: "here"})
			if got := lines(entries); !slices.Equal(got, c.want) {
				t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(c.want, "\n"))
			}
			for _, want := range c.errs {
				if err == nil || !strings.Contains(err.Error(), want) {
					t.Errorf("error %v does not say %s", err, want)
				}
			}
			if len(c.errs) == 0 && err != nil {
				t.Error(err)
			}
		})
	}
}

// TestDuplicates: an address that is in two slices is one backend, and a pod
// that runs wins over one that ends.
func TestDuplicates(t *testing.T) {
	o := object(func(s *corev1.Service) {
		s.Spec.ClusterIPs = []string{"10.96.0.1"}
		s.Spec.Ports = s.Spec.Ports[:1]
	})
	for _, s := range o.Slices {
		if s.AddressType != discoveryv1.AddressTypeIPv4 {
			continue
		}
		ending := s.DeepCopy()
		for i := range ending.Endpoints {
			ending.Endpoints[i].Conditions = discoveryv1.EndpointConditions{Ready: new(false), Terminating: new(true)}
		}
		o.Slices = append([]*discoveryv1.EndpointSlice{ending}, append(o.Slices, ending)...)
		break
	}
	entries, err := Compile(o, Node{})
	want := []string{"10.96.0.1:80/tcp -> 10.0.1.2:8080 10.0.2.2:8080"}
	if got := lines(entries); err != nil || !slices.Equal(got, want) {
		t.Errorf("got %v, %v; want %v", got, err, want)
	}
}

// TestExternalMode: who answers clients from outside is said by the node and,
// where the node knows direct return, by the service.
func TestExternalMode(t *testing.T) {
	for _, c := range []struct {
		node, asked string
		local       bool
		tcp, udp    bool
		fault       bool
	}{
		{"", ModeDSR, false, false, false, false},
		{ModeSNAT, "", false, false, false, false},
		{ModeSNAT, ModeDSR, false, true, true, false},
		{ModeDSR, "", false, true, true, false},
		{ModeDSR, ModeSNAT, false, false, false, false},
		{ModeDSR, "", true, false, false, false},
		{ModeHybrid, "", false, true, false, false},
		{ModeDSR, "ipip", false, true, true, true},
	} {
		o := object(func(s *corev1.Service) {
			s.Spec.Type = corev1.ServiceTypeNodePort
			s.Spec.Ports[0].NodePort, s.Spec.Ports[1].NodePort = 30080, 30053
			if c.asked != "" {
				s.Annotations = map[string]string{ExternalMode: c.asked}
			}
			if c.local {
				s.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
			}
		})
		entries, err := Compile(o, Node{Name: "here", External: c.node})
		if (err != nil) != c.fault {
			t.Errorf("%+v: %v", c, err)
		}
		for _, e := range entries {
			want := e.Frontend.Scope == Outside && (e.Frontend.Proto == TCP && c.tcp || e.Frontend.Proto == UDP && c.udp)
			if e.DSR != want {
				t.Errorf("%+v: %s is direct: %t, want %t", c, e.Frontend, e.DSR, want)
			}
		}
	}
}
