// SPDX-License-Identifier: Apache-2.0

// Package oracle compares what the agent decides with what the projects that
// set the standard decide, on inputs made at random.
package oracle

import (
	"fmt"
	"math/rand/v2"
	"net/netip"
	"slices"
	"testing"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/util/sets"
	"k8s.io/kubernetes/pkg/proxy"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

var node = service.Node{Name: "n0", Zone: "z0"}

// endpoint is a discoveryv1.Endpoint as kube-proxy's algorithm sees it.
type endpoint struct{ *discoveryv1.Endpoint }

var _ proxy.Endpoint = endpoint{}

func (e endpoint) String() string      { return e.Addresses[0] + ":8080" }
func (e endpoint) IP() string          { return e.Addresses[0] }
func (e endpoint) Port() int           { return 8080 }
func (e endpoint) IsLocal() bool       { return e.NodeName != nil && *e.NodeName == node.Name }
func (e endpoint) IsReady() bool       { return e.Conditions.Ready == nil || *e.Conditions.Ready }
func (e endpoint) IsServing() bool     { return e.Conditions.Serving == nil || *e.Conditions.Serving }
func (e endpoint) IsTerminating() bool { return e.Conditions.Terminating != nil && *e.Conditions.Terminating }

func (e endpoint) ZoneHints() sets.Set[string] {
	s := sets.New[string]()
	if e.Hints != nil {
		for _, z := range e.Hints.ForZones {
			s.Insert(z.Name)
		}
	}
	return s
}

func (e endpoint) NodeHints() sets.Set[string] {
	s := sets.New[string]()
	if e.Hints != nil {
		for _, n := range e.Hints.ForNodes {
			s.Insert(n.Name)
		}
	}
	return s
}

// port is the part of a service's port that the algorithm asks for.
type port struct {
	proxy.ServicePort
	internalLocal, externalLocal, external bool
}

func (p port) String() string             { return "port" }
func (p port) UsesClusterEndpoints() bool { return !p.internalLocal || p.external }
func (p port) UsesLocalEndpoints() bool   { return p.internalLocal || p.externalLocal && p.external }

func choose[T any](r *rand.Rand, from ...T) T { return from[r.IntN(len(from))] }

func randomEndpoint(r *rand.Rand, i int, hints int) discoveryv1.Endpoint {
	yes, no := true, false
	ep := discoveryv1.Endpoint{
		Addresses: []string{fmt.Sprintf("10.1.0.%d", i+1)},
		NodeName:  new(choose(r, "n0", "n1", "n2")),
		Conditions: discoveryv1.EndpointConditions{
			Ready:       choose(r, &yes, &yes, &no, nil),
			Serving:     choose(r, &yes, &no, nil),
			Terminating: choose(r, &yes, &no, nil, nil),
		},
	}
	if hints > 0 && r.IntN(8) > 0 {
		ep.Hints = &discoveryv1.EndpointHints{}
		if hints != 2 {
			ep.Hints.ForZones = []discoveryv1.ForZone{{Name: choose(r, "z0", "z1")}}
		}
		if hints > 1 {
			ep.Hints.ForNodes = []discoveryv1.ForNode{{Name: choose(r, "n0", "n1")}}
		}
	}
	return ep
}

func randomObject(r *rand.Rand) service.Object {
	proto, name, number := corev1.ProtocolTCP, "p", int32(8080)
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: "s"},
		Spec: corev1.ServiceSpec{
			ClusterIPs: []string{"10.96.0.1"},
			Ports:      []corev1.ServicePort{{Name: name, Port: 80, Protocol: proto, NodePort: choose[int32](r, 0, 30080)}},
		},
	}
	if r.IntN(2) == 0 {
		svc.Spec.InternalTrafficPolicy = new(choose(r, corev1.ServiceInternalTrafficPolicyLocal, corev1.ServiceInternalTrafficPolicyCluster))
	}
	if svc.Spec.Ports[0].NodePort != 0 {
		svc.Spec.Type = corev1.ServiceTypeNodePort
		svc.Spec.ExternalTrafficPolicy = choose(r, corev1.ServiceExternalTrafficPolicyLocal, corev1.ServiceExternalTrafficPolicyCluster)
	}
	slice := &discoveryv1.EndpointSlice{
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Port: &number, Protocol: &proto}},
	}
	hints := r.IntN(4)
	for i := range r.IntN(6) {
		slice.Endpoints = append(slice.Endpoints, randomEndpoint(r, i, hints))
	}
	return service.Object{Service: svc, Slices: []*discoveryv1.EndpointSlice{slice}}
}

func addrs(eps []proxy.Endpoint) []string {
	var out []string
	for _, e := range eps {
		out = append(out, e.IP())
	}
	slices.Sort(out)
	return out
}

// TestCategorizeEndpoints compares the backends of every frontend with what
// kube-proxy's algorithm chooses.
func TestCategorizeEndpoints(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	for i := range 20000 {
		o := randomObject(r)
		spec := o.Service.Spec
		p := port{
			internalLocal: spec.InternalTrafficPolicy != nil && *spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal,
			externalLocal: spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal,
			external:      spec.Ports[0].NodePort != 0,
		}
		var eps []proxy.Endpoint
		for i := range o.Slices[0].Endpoints {
			eps = append(eps, endpoint{&o.Slices[0].Endpoints[i]})
		}
		labels := map[string]string{corev1.LabelTopologyZone: node.Zone}
		cluster, local, _, anywhere := proxy.CategorizeEndpoints(eps, p, node.Name, labels)
		entries, err := service.Compile(o, node)
		if err != nil {
			t.Fatal(err)
		}
		for _, e := range entries {
			onlyLocal := p.internalLocal
			if e.Frontend.Addr == netip.IPv4Unspecified() {
				onlyLocal = e.Frontend.Scope == service.Outside && p.externalLocal
			}
			want := addrs(cluster)
			if onlyLocal {
				want = addrs(local)
			}
			var got []string
			for _, b := range e.Backends {
				got = append(got, b.Addr.String())
			}
			slices.Sort(got)
			if !slices.Equal(got, want) {
				t.Fatalf("input %d, %s: backends %v, want %v\nendpoints %+v", i, e.Frontend, got, want, o.Slices[0].Endpoints)
			}
			if drop := anywhere && len(want) == 0; e.Drop != drop {
				t.Fatalf("input %d, %s: drop is %v, want %v", i, e.Frontend, e.Drop, drop)
			}
		}
	}
}
