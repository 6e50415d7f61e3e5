// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"

	"k8s.io/apimachinery/pkg/api/resource"

	"github.com/nodeagent/nodeagent/cni/ipam"
	"github.com/nodeagent/nodeagent/cni/shim"
)

// Annotations of a pod that the network obeys, where the request itself does
// not say the same thing already.
const (
	// AnnotationPool names the pool the pod's addresses come from.
	AnnotationPool = "network.nodeagent.dev/pool"
	// AnnotationAddresses has the pod's addresses, comma-separated.
	AnnotationAddresses = "network.nodeagent.dev/addresses"
	// AnnotationMAC has the hardware address inside the pod.
	AnnotationMAC = "network.nodeagent.dev/mac"
	// AnnotationIngress and AnnotationEgress are the bandwidth annotations of
	// Kubernetes, quantities of bits per second.
	AnnotationIngress = "kubernetes.io/ingress-bandwidth"
	AnnotationEgress  = "kubernetes.io/egress-bandwidth"
)

// prepareRequest validates a request, applies annotations and the namespace's
// pool, and returns the pool to allocate from. It reports all faults at once.
func (n *Network) prepareRequest(req Request) (Request, string, error) {
	errs := []error{req.validate()}
	if req.NetNS == "" {
		errs = append(errs, errors.New("no network namespace"))
	}
	errs = append(errs, req.applyAnnotations()...)
	errs = append(errs, checkAddrs(req.Addrs)...)
	errs = append(errs, checkRanges(req.Ranges)...)
	req.PortMappings = plainHostIPs(req.PortMappings)
	errs = append(errs, checkPorts(req.PortMappings)...)
	if len(req.MAC) > 0 && (len(req.MAC) != 6 || req.MAC[0]&1 != 0 || slices.Equal(req.MAC, make([]byte, 6))) {
		errs = append(errs, fmt.Errorf("hardware address %s is not a unicast Ethernet address", req.MAC))
	}
	pool, err := n.poolOf(req.Pod)
	if err := errors.Join(append(errs, err)...); err != nil {
		return req, "", fmt.Errorf("%w: %w", ErrInvalid, err)
	}
	return req, pool, nil
}

// poolOf returns the pool a pod asks for, or that of its namespace.
func (n *Network) poolOf(p Pod) (string, error) {
	if name := p.Annotations[AnnotationPool]; name != "" {
		if name == ipam.DefaultPool || slices.ContainsFunc(n.cfg.Pools, func(c Pool) bool { return c.Name == name }) {
			return name, nil
		}
		return "", fmt.Errorf("annotation %s: this node has no pool %q", AnnotationPool, name)
	}
	for _, c := range n.cfg.Pools {
		if p.Namespace != "" && slices.Contains(c.Namespaces, p.Namespace) {
			return c.Name, nil
		}
	}
	return ipam.DefaultPool, nil
}

func (k Key) validate() error {
	var errs []error
	if !shim.ValidName(k.ContainerID) {
		errs = append(errs, fmt.Errorf("%w: container id %q", ErrInvalid, k.ContainerID))
	}
	if !shim.ValidIfName(k.IfName) {
		errs = append(errs, fmt.Errorf("%w: interface name %q", ErrInvalid, k.IfName))
	}
	return errors.Join(errs...)
}

// applyAnnotations fills what the request leaves open.
func (r *Request) applyAnnotations() (errs []error) {
	fault := func(name string, err error) {
		if err != nil {
			errs = append(errs, fmt.Errorf("annotation %s: %w", name, err))
		}
	}
	a := r.Pod.Annotations
	if v := a[AnnotationAddresses]; v != "" && len(r.Addrs) == 0 {
		for s := range strings.SplitSeq(v, ",") {
			addr, err := netip.ParseAddr(strings.TrimSpace(s))
			fault(AnnotationAddresses, err)
			r.Addrs = append(r.Addrs, addr)
		}
	}
	if v := a[AnnotationMAC]; v != "" && len(r.MAC) == 0 {
		mac, err := net.ParseMAC(v)
		fault(AnnotationMAC, err)
		r.MAC = mac
	}
	if v := a[AnnotationIngress]; v != "" && r.Bandwidth.IngressRate == 0 {
		rate, err := parseRate(v)
		fault(AnnotationIngress, err)
		r.Bandwidth.IngressRate = rate
	}
	if v := a[AnnotationEgress]; v != "" && r.Bandwidth.EgressRate == 0 {
		rate, err := parseRate(v)
		fault(AnnotationEgress, err)
		r.Bandwidth.EgressRate = rate
	}
	return errs
}

// Bounds of the bandwidth annotations, as the kubelet has them.
const (
	minRate = 1e3
	maxRate = 1e15
)

func parseRate(s string) (uint64, error) {
	q, err := resource.ParseQuantity(s)
	if err != nil {
		return 0, fmt.Errorf("%q: %w", s, err)
	}
	if v := q.Value(); v >= minRate && v <= maxRate {
		return uint64(v), nil
	}
	return 0, fmt.Errorf("%s bits per second is not between 1k and 1P", s)
}

func checkAddrs(addrs []netip.Addr) (errs []error) {
	for _, a := range addrs {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" {
			errs = append(errs, fmt.Errorf("address %q is not a plain IPv4 or IPv6 address", a))
		}
	}
	return errs
}

func checkRanges(ranges [][]ipam.Stretch) (errs []error) {
	for i, list := range ranges {
		if len(list) == 0 {
			errs = append(errs, fmt.Errorf("range %d is empty", i))
		}
		for _, s := range list {
			errs = append(errs, checkAddrs([]netip.Addr{s.First, s.Last})...)
			if s.First.BitLen() != list[0].First.BitLen() || s.First.BitLen() != s.Last.BitLen() || s.Last.Less(s.First) {
				errs = append(errs, fmt.Errorf("range %d: %s to %s is no range of one family", i, s.First, s.Last))
			}
		}
	}
	return errs
}

// plainHostIPs makes one form of what callers write in many: 0.0.0.0 and ::
// mean every address, and so does none; ::ffff:192.0.2.1 is an IPv4 address.
func plainHostIPs(ports []PortMapping) []PortMapping {
	out := slices.Clone(ports)
	for i := range out {
		out[i].HostIP = out[i].HostIP.Unmap()
		if out[i].HostIP.IsUnspecified() {
			out[i].HostIP = netip.Addr{}
		}
	}
	return out
}

func checkPorts(ports []PortMapping) (errs []error) {
	type socket struct {
		proto string
		port  uint16
		ip    netip.Addr
	}
	seen := map[socket]bool{}
	for _, m := range ports {
		switch {
		case protocolNumber(m.Protocol) == 0:
			errs = append(errs, fmt.Errorf("port mapping %d: protocol %q is none of tcp, udp, sctp", m.HostPort, m.Protocol))
		case m.HostPort == 0 || m.ContainerPort == 0:
			errs = append(errs, fmt.Errorf("port mapping %d to %d: ports start at 1", m.HostPort, m.ContainerPort))
		}
		s := socket{m.Protocol, m.HostPort, m.HostIP}
		if seen[s] {
			errs = append(errs, fmt.Errorf("port mapping %d/%s appears twice", m.HostPort, m.Protocol))
		}
		seen[s] = true
	}
	return errs
}
