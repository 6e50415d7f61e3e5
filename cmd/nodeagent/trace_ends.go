// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane"
)

// traceEnd is one end of a trace by its name: a pod NAMESPACE/NAME, or a service
// NAMESPACE/NAME[:PORT][/PROTOCOL], the port by its number or name.
type traceEnd struct {
	name  types.NamespacedName
	port  string
	proto string
}

// parseTraceEnd reads a name; false: it is an address, or nothing.
func parseTraceEnd(s string) (e traceEnd, named bool) {
	ns, rest, ok := strings.Cut(s, "/")
	if !ok || strings.ContainsAny(ns, ":[") || isAddr(ns) {
		return e, false
	}
	rest, e.proto, _ = strings.Cut(rest, "/")
	name, port, _ := strings.Cut(rest, ":")
	e.name, e.port = types.NamespacedName{Namespace: ns, Name: name}, port
	return e, ns != "" && name != ""
}

func isAddr(s string) bool {
	_, err := netip.ParseAddr(s)
	return err == nil
}

// checkTrace finds what is wrong with the ends as they are written.
func checkTrace(src, dst string) error {
	const any4 = "0.0.0.0"
	if e, named := parseTraceEnd(src); named {
		if src = any4; e.port != "" || e.proto != "" {
			return fmt.Errorf("%w source: a pod NAMESPACE/NAME has no port", dataplane.ErrInvalid)
		}
	}
	if e, named := parseTraceEnd(dst); named {
		if dst = any4; e.proto != "" {
			dst += "/" + e.proto
		}
	}
	_, err := traceRequest(src, dst)
	return err
}

// traceRequests are what a trace by names or addresses asks for, one for each pair
// of addresses of a family.
func traceRequests(d *dataplane.Dataplane, src, dst string) ([]dataplane.TraceRequest, error) {
	if err := checkTrace(src, dst); err != nil {
		return nil, err
	}
	from, fromName := parseTraceEnd(src)
	to, toName := parseTraceEnd(dst)
	if !fromName && !toName {
		req, err := traceRequest(src, dst)
		return []dataplane.TraceRequest{req}, err
	}
	srcs, err := traceSources(d, src, from, fromName)
	if err != nil {
		return nil, err
	}
	dsts, err := traceTargets(d, dst, to, toName)
	if err != nil {
		return nil, err
	}
	var out []dataplane.TraceRequest
	for _, req := range dsts {
		for _, a := range srcs {
			if a.Addr().Is4() == req.Dst.Addr().Is4() {
				req.Src = a
				out = append(out, req)
			}
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: %s and %s have no address of the same family", dataplane.ErrInvalid, src, dst)
	}
	return out, nil
}

func traceSources(d *dataplane.Dataplane, src string, e traceEnd, named bool) ([]netip.AddrPort, error) {
	if !named {
		a, err := addrPort(src)
		return []netip.AddrPort{a}, err
	}
	var out []netip.AddrPort
	for _, a := range d.PodAddrs(e.name) {
		out = append(out, netip.AddrPortFrom(a, 0))
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w source: no pod %s with an address is known here", dataplane.ErrInvalid, e.name)
	}
	return out, nil
}

func traceTargets(d *dataplane.Dataplane, dst string, e traceEnd, named bool) ([]dataplane.TraceRequest, error) {
	if !named {
		req, err := traceRequest("0.0.0.0", dst)
		return []dataplane.TraceRequest{req}, err
	}
	written := "0.0.0.0"
	if e.proto != "" {
		written += "/" + e.proto
	}
	proto, err := traceRequest("0.0.0.0", written)
	if err != nil {
		return nil, err
	}
	out := d.TraceToService(e.name, e.port, proto.Proto)
	if len(out) == 0 {
		err = errors.New("no service with a cluster address and such a port is known here")
		return nil, fmt.Errorf("%w destination %s: %w", dataplane.ErrInvalid, dst, err)
	}
	return out, nil
}
