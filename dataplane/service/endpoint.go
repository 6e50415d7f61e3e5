// SPDX-License-Identifier: Apache-2.0

package service

import (
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
)

// Node is what decides which backends are near.
type Node struct {
	Name, Zone string
	// External is the mode of flows from outside where a service does not say
	// it; empty: there is but ModeSNAT.
	External string
}

// endpoint is one address and port of a service, with its conditions.
type endpoint struct {
	addr                        netip.Addr
	port                        uint16
	local                       bool
	ready, serving, terminating bool
	zones, nodes                []string
}

func (e endpoint) usable() bool   { return e.ready }
func (e endpoint) draining() bool { return !e.ready && e.serving && e.terminating }
func (e endpoint) backend() Backend {
	return Backend{Addr: e.addr, Port: e.port, Local: e.local}
}

// endpointsOf collects the endpoints of one port in one family from all slices,
// each address and port once. Of two with the same address, one that does not
// terminate wins: the address was given to a new pod.
func endpointsOf(o Object, port corev1.ServicePort, v4 bool, node Node) []endpoint {
	var out []endpoint
	index := map[netip.AddrPort]int{}
	family := discoveryv1.AddressTypeIPv6
	if v4 {
		family = discoveryv1.AddressTypeIPv4
	}
	for _, slice := range o.Slices {
		if slice.AddressType != family {
			continue
		}
		for _, target := range slicePorts(slice, port) {
			for i := range slice.Endpoints {
				e, ok := endpointOf(&slice.Endpoints[i], target, v4, node)
				if !ok {
					continue
				}
				key := netip.AddrPortFrom(e.addr, e.port)
				at, seen := index[key]
				switch {
				case !seen:
					index[key] = len(out)
					out = append(out, e)
				case !e.terminating:
					out[at] = e
				}
			}
		}
	}
	return out
}

// slicePorts are the target ports that a slice has for a port of the service.
func slicePorts(slice *discoveryv1.EndpointSlice, port corev1.ServicePort) []uint16 {
	var out []uint16
	for _, p := range slice.Ports {
		if p.Name == nil || p.Port == nil || *p.Port <= 0 || *p.Port > 65535 {
			continue
		}
		proto := corev1.ProtocolTCP
		if p.Protocol != nil {
			proto = *p.Protocol
		}
		if *p.Name == port.Name && proto == protocolOf(port) {
			out = append(out, uint16(*p.Port))
		}
	}
	return out
}

func endpointOf(ep *discoveryv1.Endpoint, port uint16, v4 bool, node Node) (endpoint, bool) {
	if len(ep.Addresses) == 0 {
		return endpoint{}, false
	}
	addr, err := netip.ParseAddr(ep.Addresses[0])
	if err != nil || addr.Unmap().Is4() != v4 || addr.IsUnspecified() || addr.Zone() != "" {
		return endpoint{}, false
	}
	c := ep.Conditions
	e := endpoint{
		addr:        addr.Unmap(),
		port:        port,
		local:       ep.NodeName != nil && node.Name != "" && *ep.NodeName == node.Name,
		ready:       c.Ready == nil || *c.Ready,
		serving:     c.Serving == nil || *c.Serving,
		terminating: c.Terminating != nil && *c.Terminating,
	}
	if ep.Hints != nil {
		for _, z := range ep.Hints.ForZones {
			e.zones = append(e.zones, z.Name)
		}
		for _, n := range ep.Hints.ForNodes {
			e.nodes = append(e.nodes, n.Name)
		}
	}
	return e, true
}

// clusterBackends are those for traffic that any endpoint may serve: the ready
// ones, near ones preferred as their hints say; without any, those that still
// serve while they terminate.
func clusterBackends(eps []endpoint, node Node) []Backend {
	near := proximity(eps, node)
	out := choose(eps, func(e endpoint) bool { return e.usable() && near(e) })
	if len(out) == 0 {
		out = choose(eps, func(e endpoint) bool { return e.serving && e.terminating })
	}
	return out
}

// localBackends are those for traffic that has to stay on the node.
func localBackends(eps []endpoint) []Backend {
	out := choose(eps, func(e endpoint) bool { return e.local && e.usable() })
	if len(out) == 0 {
		out = choose(eps, func(e endpoint) bool { return e.local && e.draining() })
	}
	return out
}

func choose(eps []endpoint, want func(endpoint) bool) []Backend {
	var out []Backend
	for _, e := range eps {
		if want(e) {
			out = append(out, e.backend())
		}
	}
	slices.SortFunc(out, Backend.compare)
	return out
}

// proximity decides which endpoints are near enough. Hints count only when
// every ready endpoint has them and one of them names us; nodes before zones.
func proximity(eps []endpoint, node Node) func(endpoint) bool {
	ready, allNodes, allZones, ourNode, ourZone := false, true, true, false, false
	for _, e := range eps {
		if !e.ready {
			continue
		}
		ready = true
		allNodes = allNodes && len(e.nodes) > 0
		allZones = allZones && len(e.zones) > 0
		ourNode = ourNode || slices.Contains(e.nodes, node.Name)
		ourZone = ourZone || slices.Contains(e.zones, node.Zone)
	}
	switch {
	case ready && allNodes && ourNode:
		return func(e endpoint) bool { return slices.Contains(e.nodes, node.Name) }
	case ready && allZones && ourZone:
		return func(e endpoint) bool { return slices.Contains(e.zones, node.Zone) }
	default:
		return func(endpoint) bool { return true }
	}
}
