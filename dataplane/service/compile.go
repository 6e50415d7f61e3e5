// SPDX-License-Identifier: Apache-2.0

package service

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	corev1 "k8s.io/api/core/v1"
)

// Scope says whose traffic a frontend takes.
type Scope uint8

// The scopes; bpf/lib/service.h has the same.
const (
	// Cluster is traffic of pods and of the node itself.
	Cluster Scope = iota
	// Outside is traffic that comes in by an uplink.
	Outside
)

// IP protocol numbers.
const (
	TCP  uint8 = 6
	UDP  uint8 = 17
	SCTP uint8 = 132
)

// Frontend is what clients address.
type Frontend struct {
	// Addr is the address; the unspecified one stands for every address of the
	// node of its family.
	Addr  netip.Addr
	Port  uint16
	Proto uint8
	Scope Scope
}

// String returns "addr:port/proto", with "*" for the node's addresses.
func (f Frontend) String() string {
	proto := map[uint8]string{TCP: "tcp", UDP: "udp", SCTP: "sctp"}[f.Proto]
	at := fmt.Sprintf("*:%d", f.Port)
	if !f.Addr.IsUnspecified() {
		at = netip.AddrPortFrom(f.Addr, f.Port).String()
	}
	if f.Scope == Outside {
		return at + "/" + proto + " from outside"
	}
	return at + "/" + proto
}

// Backend is where traffic goes.
type Backend struct {
	Addr  netip.Addr
	Port  uint16
	Local bool
}

func (b Backend) compare(o Backend) int {
	return cmp.Or(b.Addr.Compare(o.Addr), cmp.Compare(b.Port, o.Port))
}

// Entry is one frontend with what becomes of its traffic.
type Entry struct {
	Frontend Frontend
	// Port is the name of the service's port: frontends of one port and family
	// share their clients' affinity.
	Port string
	// Backends are sorted and without duplicates; none means: reject,
	// or drop with Drop.
	Backends []Backend
	// Draining are endpoints that terminate and still serve: they get nothing
	// new while there are others, and keep what they have.
	Draining []Backend
	// Affinity keeps a client at its backend for so long after its last
	// connection; 0: no affinity.
	Affinity time.Duration
	// Maglev chooses backends by the connection, not at random: MaglevTable.
	Maglev bool
	// DSR says that a backend of another node answers clients from outside itself.
	DSR bool
	// Local says that only backends of this node are used, and the client's
	// address is kept.
	Local bool
	// Drop: without a backend traffic is dropped, not rejected, because other
	// nodes have backends.
	Drop bool
	// Ranges are the sources that may enter; empty: all.
	Ranges []netip.Prefix
}

// ErrInvalid marks a service of which a part cannot be served.
var ErrInvalid = errors.New("invalid service")

// Compile returns the entries of a service as one node sees it, in no
// particular order. Headless services have none. What is malformed is left out
// and reported; the rest is returned all the same.
func Compile(o Object, node Node) ([]Entry, error) {
	spec := &o.Service.Spec
	if spec.Type == corev1.ServiceTypeExternalName {
		return nil, nil
	}
	c := compiler{object: o, node: node}
	for _, ip := range addresses(spec.ClusterIPs, spec.ClusterIP) {
		if ip == corev1.ClusterIPNone {
			return nil, nil
		}
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			c.fault("clusterIP %q: %v", ip, err)
			continue
		}
		for _, port := range spec.Ports {
			c.port(addr.Unmap(), port)
		}
	}
	return c.entries, errors.Join(c.errs...)
}

// addresses is the list, or the single older field when that alone is set.
func addresses(list []string, one string) []string {
	if len(list) == 0 && one != "" {
		return []string{one}
	}
	return list
}

type compiler struct {
	object  Object
	node    Node
	entries []Entry
	errs    []error
}

func (c *compiler) fault(format string, args ...any) {
	c.errs = append(c.errs, fmt.Errorf("%w %s: %w", ErrInvalid, c.object.Name(), fmt.Errorf(format, args...)))
}

// port compiles one port in the family of one cluster address.
func (c *compiler) port(clusterIP netip.Addr, port corev1.ServicePort) {
	proto, ok := protocolNumber(port)
	if !ok {
		c.fault("port %s: protocol %q", port.Name, port.Protocol)
		return
	}
	if port.Port < 1 || port.Port > 65535 || port.NodePort < 0 || port.NodePort > 65535 {
		c.fault("port %s: %d, node port %d", port.Name, port.Port, port.NodePort)
		return
	}
	spec := &c.object.Service.Spec
	eps := endpointsOf(c.object, port, clusterIP.Is4(), c.node)
	cluster := clusterBackends(eps, c.node)
	local := localBackends(eps)
	// Nowhere to go from here, but from other nodes there is.
	anywhere := len(choose(eps, func(e endpoint) bool { return e.usable() || e.draining() })) > 0
	inside := Entry{
		Port: port.Name, Backends: cluster, Affinity: affinity(spec),
		Maglev:   c.object.Service.Annotations[LoadBalancing] == maglev,
		Draining: choose(eps, endpoint.draining),
	}
	onlyHere := inside
	onlyHere.Backends, onlyHere.Local, onlyHere.Drop = local, true, anywhere && len(local) == 0
	internal := inside
	if p := spec.InternalTrafficPolicy; p != nil && *p == corev1.ServiceInternalTrafficPolicyLocal {
		internal = onlyHere
	}
	internal.Frontend = Frontend{Addr: clusterIP, Port: uint16(port.Port), Proto: proto, Scope: Cluster}
	c.entries = append(c.entries, internal)

	// From within the cluster an external address leads to all endpoints, as
	// if the packet had gone out and come back at the right node.
	outside := inside
	if spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal {
		outside = onlyHere
	}
	outside.DSR = c.direct(proto)
	if port.NodePort != 0 {
		// One wildcard serves both families: the backends must be of the
		// packet's, so each family has its own unspecified address.
		c.external(unspecified(clusterIP), uint16(port.NodePort), proto, inside, outside)
	}
	c.externalIPs(clusterIP, uint16(port.Port), proto, inside, outside)
	c.loadBalancer(clusterIP, uint16(port.Port), proto, inside, outside)
}

// unspecified stands for "every address of the node" of one family.
func unspecified(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// external adds a frontend for both scopes.
func (c *compiler) external(addr netip.Addr, port uint16, proto uint8, inside, outside Entry) {
	inside.Frontend = Frontend{Addr: addr, Port: port, Proto: proto, Scope: Cluster}
	outside.Frontend = Frontend{Addr: addr, Port: port, Proto: proto, Scope: Outside}
	c.entries = append(c.entries, inside, outside)
}

func (c *compiler) externalIPs(clusterIP netip.Addr, port uint16, proto uint8, inside, outside Entry) {
	for _, ip := range c.object.Service.Spec.ExternalIPs {
		addr, err := netip.ParseAddr(ip)
		if err != nil {
			c.fault("externalIP %q: %v", ip, err)
			continue
		}
		if addr = addr.Unmap(); addr.Is4() == clusterIP.Is4() {
			c.external(addr, port, proto, inside, outside)
		}
	}
}

func (c *compiler) loadBalancer(clusterIP netip.Addr, port uint16, proto uint8, inside, outside Entry) {
	if c.object.Service.Spec.Type != corev1.ServiceTypeLoadBalancer {
		return
	}
	ranges := c.sourceRanges(clusterIP)
	inside.Ranges, outside.Ranges = ranges, ranges
	for _, in := range c.object.Service.Status.LoadBalancer.Ingress {
		// A proxy balancer answers for itself: traffic has to reach it.
		if in.IP == "" || in.IPMode != nil && *in.IPMode == corev1.LoadBalancerIPModeProxy {
			continue
		}
		addr, err := netip.ParseAddr(in.IP)
		if err != nil {
			c.fault("load balancer address %q: %v", in.IP, err)
			continue
		}
		if addr = addr.Unmap(); addr.Is4() == clusterIP.Is4() {
			c.external(addr, port, proto, inside, outside)
		}
	}
}

// sourceRanges are the ranges of one family. When all are of the other family,
// or malformed, nobody of this one may enter: the impossible range says so.
func (c *compiler) sourceRanges(family netip.Addr) []netip.Prefix {
	var out []netip.Prefix
	given := c.object.Service.Spec.LoadBalancerSourceRanges
	for _, s := range given {
		p, err := netip.ParsePrefix(strings.TrimSpace(s))
		if err != nil {
			c.fault("source range %q: %v", s, err)
			continue
		}
		if p.Addr().Is4() != family.Is4() {
			continue
		}
		if p.Bits() == 0 {
			return nil
		}
		out = append(out, p.Masked())
	}
	if len(given) > 0 && len(out) == 0 {
		none := unspecified(family)
		return []netip.Prefix{netip.PrefixFrom(none, none.BitLen())}
	}
	slices.SortFunc(out, func(a, b netip.Prefix) int { return a.Compare(b) })
	return slices.Compact(out)
}

func affinity(spec *corev1.ServiceSpec) time.Duration {
	if spec.SessionAffinity != corev1.ServiceAffinityClientIP {
		return 0
	}
	seconds := corev1.DefaultClientIPServiceAffinitySeconds
	if c := spec.SessionAffinityConfig; c != nil && c.ClientIP != nil && c.ClientIP.TimeoutSeconds != nil {
		seconds = *c.ClientIP.TimeoutSeconds
	}
	return time.Duration(seconds) * time.Second
}

// protocolOf is the protocol of a port, TCP when it says nothing.
func protocolOf(port corev1.ServicePort) corev1.Protocol {
	if port.Protocol == "" {
		return corev1.ProtocolTCP
	}
	return port.Protocol
}

func protocolNumber(port corev1.ServicePort) (uint8, bool) {
	switch protocolOf(port) {
	case corev1.ProtocolTCP:
		return TCP, true
	case corev1.ProtocolUDP:
		return UDP, true
	case corev1.ProtocolSCTP:
		return SCTP, true
	default:
		return 0, false
	}
}
