// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"

	corev1 "k8s.io/api/core/v1"
)

// Health is what a load balancer asks a node about a service: whether it has
// endpoints of its own.
type Health struct {
	// Port of the node to answer on; 0: nobody asks.
	Port uint16
	// Local is the number of endpoints on the node that are ready.
	Local int
}

// HealthOf is the health check of a service with external traffic policy Local.
func HealthOf(o Object, node Node) Health {
	spec := &o.Service.Spec
	port := spec.HealthCheckNodePort
	if spec.Type != corev1.ServiceTypeLoadBalancer || port <= 0 || port > 65535 ||
		spec.ExternalTrafficPolicy != corev1.ServiceExternalTrafficPolicyLocal {
		return Health{}
	}
	seen := map[netip.Addr]bool{}
	for _, p := range spec.Ports {
		for _, v4 := range []bool{true, false} {
			for _, e := range endpointsOf(o, p, v4, node) {
				if e.local && e.usable() {
					seen[e.addr] = true
				}
			}
		}
	}
	return Health{Port: uint16(port), Local: len(seen)}
}
