// SPDX-License-Identifier: Apache-2.0

package services

import (
	"fmt"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/util/intstr"
)

// port is where backends listen, front where services do. What is reached
// without a service is at direct: a flow to the same port would meet the
// other's leavings in conntrack.
const (
	port     = 5000
	direct   = 5001
	front    = 80
	nodePort = 30080
)

// target is the service that traffic is measured through.
var target = netip.MustParseAddr("10.96.0.10")

// clusterIP is the address of the i-th filling service.
func clusterIP(i int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(100 + i>>16), byte(i >> 8), byte(i)})
}

// sentinels is how many of the filling services lead somewhere: they are tried
// to see whether all are programmed.
const sentinels = 16

func isSentinel(i, of int) bool { return i == of-1 || i%max(1, of/(sentinels-1)) == 0 }

// service is one with its slice of endpoints.
type service struct {
	name     string
	addr     netip.Addr
	nodePort int32
	backends []netip.Addr
}

func (s service) objects(node string) (svc, slice runtime.Object) {
	meta := metav1.ObjectMeta{Namespace: "default", Name: s.name}
	svcPort := corev1.ServicePort{
		Name: "p", Protocol: corev1.ProtocolTCP, Port: front, TargetPort: intstr.FromInt32(port), NodePort: s.nodePort,
	}
	kind := corev1.ServiceTypeClusterIP
	if s.nodePort != 0 {
		kind = corev1.ServiceTypeNodePort
	}
	single := corev1.IPFamilyPolicySingleStack
	cluster := corev1.ServiceInternalTrafficPolicyCluster
	svc = &corev1.Service{ObjectMeta: meta, Spec: corev1.ServiceSpec{
		Type: kind, ClusterIP: s.addr.String(), ClusterIPs: []string{s.addr.String()}, Ports: []corev1.ServicePort{svcPort},
		IPFamilies: []corev1.IPFamily{corev1.IPv4Protocol}, IPFamilyPolicy: &single, SessionAffinity: corev1.ServiceAffinityNone,
		InternalTrafficPolicy: &cluster, ExternalTrafficPolicy: externalPolicy(kind), Selector: map[string]string{"app": s.name},
	}}
	name, tcp, number, yes, no := "p", corev1.ProtocolTCP, int32(port), true, false
	es := &discoveryv1.EndpointSlice{
		ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: s.name + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: s.name}},
		AddressType: discoveryv1.AddressTypeIPv4,
		Ports:       []discoveryv1.EndpointPort{{Name: &name, Protocol: &tcp, Port: &number}},
	}
	for _, b := range s.backends {
		es.Endpoints = append(es.Endpoints, discoveryv1.Endpoint{
			Addresses: []string{b.String()}, NodeName: &node,
			Conditions: discoveryv1.EndpointConditions{Ready: &yes, Serving: &yes, Terminating: &no},
		})
	}
	return svc, es
}

func externalPolicy(kind corev1.ServiceType) corev1.ServiceExternalTrafficPolicy {
	if kind == corev1.ServiceTypeClusterIP {
		return ""
	}
	return corev1.ServiceExternalTrafficPolicyCluster
}

// fill makes filling services from number first to before last, each with n
// backends that nobody is behind, but the sentinels' among them.
func fill(first, last, n int, alive netip.Addr) []service {
	var out []service
	for i := first; i < last; i++ {
		s := service{name: fmt.Sprint("fill-", i), addr: clusterIP(i)}
		if isSentinel(i, last) {
			s.backends = []netip.Addr{alive}
		}
		for b := len(s.backends); b < n && !isSentinel(i, last); b++ {
			s.backends = append(s.backends, netip.AddrFrom4([4]byte{10, byte(200 + b), byte(i >> 8), byte(i)}))
		}
		out = append(out, s)
	}
	return out
}

// nodeObject is the node that a proxy asks for.
func nodeObject(name, addr, cidr string) *corev1.Node {
	return &corev1.Node{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec:       corev1.NodeSpec{PodCIDR: cidr, PodCIDRs: []string{cidr}},
		Status:     corev1.NodeStatus{Addresses: []corev1.NodeAddress{{Type: corev1.NodeInternalIP, Address: addr}}},
	}
}

// put adds services to an API server, slices first; between is called before
// the services follow.
func (s *apiServer) put(node string, between func() error, all ...service) error {
	svcs, slices := make([]runtime.Object, 0, len(all)), make([]runtime.Object, 0, len(all))
	for _, v := range all {
		svc, slice := v.objects(node)
		svcs, slices = append(svcs, svc), append(slices, slice)
	}
	if err := s.add("endpointslices", slices...); err != nil {
		return err
	}
	if between != nil {
		if err := between(); err != nil {
			return err
		}
	}
	return s.add("services", svcs...)
}
