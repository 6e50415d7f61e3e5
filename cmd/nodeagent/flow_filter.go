// SPDX-License-Identifier: Apache-2.0

package main

import (
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/nodeagent/nodeagent/dataplane/observe"
)

// flowFilter says which events somebody wants to see. What is empty admits
// everything; a value that is given has to be that of either end.
type flowFilter struct {
	all       bool // new flows, too
	pod       string
	namespace string
	service   string
	addr      netip.Prefix
	port      uint16
	protocol  string
	reasons   []string
}

// flowParams are what a filter is made of, in GET /v1/flows and as flags.
func flowParams() []string {
	return []string{"all", "pod", "namespace", "service", "address", "port", "protocol", "reason"}
}

// parseFlowFilter reports the first fault.
func parseFlowFilter(q url.Values) (f flowFilter, err error) {
	for name := range q {
		if !slices.Contains(flowParams(), name) {
			return f, flowFault("unknown parameter %q", name)
		}
	}
	if s := q.Get("all"); s != "" {
		if f.all, err = strconv.ParseBool(s); err != nil {
			return f, flowFault("all: %q is not true or false", s)
		}
	}
	f.pod, f.namespace, f.service = q.Get("pod"), q.Get("namespace"), q.Get("service")
	for what, s := range map[string]string{"pod": f.pod, "service": f.service} {
		if s != "" && strings.Count(s, "/") != 1 {
			return f, flowFault("%s: %q is not NAMESPACE/NAME", what, s)
		}
	}
	f.reasons = q["reason"]
	for _, r := range f.reasons {
		if !observe.Known(r) {
			return f, flowFault("reason: nothing is dropped or forwarded for %q", r)
		}
	}
	return f, f.parseTuple(q)
}

// parseTuple reads what is asked of the packet itself.
func (f *flowFilter) parseTuple(q url.Values) (err error) {
	if s := q.Get("address"); s != "" {
		if f.addr, err = parseRange(s); err != nil {
			return flowFault("address: %q is neither an address nor a range", s)
		}
	}
	if s := q.Get("port"); s != "" {
		n, err := strconv.ParseUint(s, 10, 16)
		if err != nil || n == 0 {
			return flowFault("port: %q is not a number from 1 to 65535", s)
		}
		f.port = uint16(n)
	}
	if f.protocol = q.Get("protocol"); f.protocol != "" && !isProtocol(f.protocol) {
		return flowFault("protocol: %q is not one of tcp, udp, sctp, icmp, icmp6 or a number", f.protocol)
	}
	return nil
}

func parseRange(s string) (netip.Prefix, error) {
	if a, err := netip.ParseAddr(s); err == nil {
		return netip.PrefixFrom(a.Unmap(), a.Unmap().BitLen()), nil
	}
	return netip.ParsePrefix(s)
}

func isProtocol(s string) bool {
	n, err := strconv.ParseUint(s, 10, 8)
	if err == nil {
		return protocol(uint8(n)) == s
	}
	return slices.Contains([]string{"tcp", "udp", "sctp", "icmp", "icmp6"}, s)
}

func (f flowFilter) admits(v flowView) bool {
	ends := []flowEnd{v.Src, v.Dst}
	for _, e := range []*flowEnd{v.ToSrc, v.ToDst} {
		if e != nil {
			ends = append(ends, *e)
		}
	}
	either := func(match func(flowEnd) bool) bool { return slices.ContainsFunc(ends, match) }
	switch {
	case f.protocol != "" && f.protocol != v.Protocol,
		f.service != "" && f.service != v.Service,
		len(f.reasons) > 0 && !slices.Contains(f.reasons, v.Reason),
		f.pod != "" && !either(func(e flowEnd) bool { return e.Name == f.pod }),
		f.namespace != "" && !either(func(e flowEnd) bool { return strings.HasPrefix(e.Name, f.namespace+"/") }),
		f.addr.IsValid() && !either(func(e flowEnd) bool { return f.addr.Contains(e.Addr) }),
		f.port != 0 && !either(func(e flowEnd) bool { return e.Port == f.port }):
		return false
	default:
		return true
	}
}
