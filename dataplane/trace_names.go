// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"strconv"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// TraceToService asks for a service by its name: one request, without a source,
// for each of its cluster addresses and ports. A port is a number or the name
// of one, empty for all; proto 0 is every protocol. None: there is no such
// service, or not with that port.
func (d *Dataplane) TraceToService(name types.NamespacedName, port string, proto uint8) []TraceRequest {
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	svc := d.services[name].Service
	if svc == nil {
		return nil
	}
	var out []TraceRequest
	for _, ip := range svc.Spec.ClusterIPs {
		addr, err := netip.ParseAddr(ip)
		if err != nil { // "None"
			continue
		}
		for _, p := range svc.Spec.Ports {
			n := protoNumber(p.Protocol)
			if (port == "" || p.Name == port || strconv.Itoa(int(p.Port)) == port) && (proto == 0 || proto == n) {
				out = append(out, TraceRequest{Dst: netip.AddrPortFrom(addr, uint16(p.Port)), Proto: n}) //nolint:gosec // the API bounds ports
			}
		}
	}
	return out
}

func protoNumber(p corev1.Protocol) uint8 {
	switch p {
	case corev1.ProtocolUDP:
		return service.UDP
	case corev1.ProtocolSCTP:
		return service.SCTP
	default:
		return service.TCP
	}
}
