// SPDX-License-Identifier: Apache-2.0

package service

import (
	"fmt"
	"net/netip"
	"slices"

	corev1 "k8s.io/api/core/v1"
)

// Judged is an endpoint of a service, and what became of it for one frontend.
type Judged struct {
	Addr  netip.AddrPort `json:"addr"`
	Local bool           `json:"local"`
	// Used says that traffic may go there; Why says why, or why not.
	Used bool   `json:"used"`
	Why  string `json:"why"`
}

// Explain judges the endpoints of one port of a service in one family, as
// Compile does, for a frontend that takes local endpoints only, or any.
func Explain(o Object, node Node, port string, v4, local bool) []Judged {
	for _, p := range o.Service.Spec.Ports {
		if p.Name == port {
			return explain(endpointsOf(o, p, v4, node), node, local)
		}
	}
	return nil
}

func explain(eps []endpoint, node Node, local bool) []Judged {
	chosen := clusterBackends(eps, node)
	if local {
		chosen = localBackends(eps)
	}
	used := make(map[Backend]bool, len(chosen))
	for _, b := range chosen {
		used[b] = true
	}
	hint := hintsOf(eps, node)
	out := make([]Judged, 0, len(eps))
	for _, e := range eps {
		j := Judged{Addr: netip.AddrPortFrom(e.addr, e.port), Local: e.local, Used: used[e.backend()]}
		j.Why = e.why(j.Used, local, hint)
		out = append(out, j)
	}
	slices.SortFunc(out, func(a, b Judged) int { return a.Addr.Compare(b.Addr) })
	return out
}

// hintsOf names the hints that decide; empty: none do.
func hintsOf(eps []endpoint, node Node) string {
	near := proximity(eps, node)
	for _, e := range eps {
		if e.ready && !near(e) {
			if len(e.nodes) > 0 && slices.ContainsFunc(eps, func(o endpoint) bool { return slices.Contains(o.nodes, node.Name) }) {
				return "node " + node.Name
			}
			return "zone " + node.Zone
		}
	}
	return ""
}

func (e endpoint) why(used, local bool, hint string) string {
	if local {
		hint = "" // distance does not matter
	}
	switch {
	case used:
		return e.whyUsed(hint)
	case local && !e.local:
		return "on another node, and the traffic policy is Local"
	case e.ready && hint != "":
		return "ready, but not hinted for " + hint
	case e.terminating && e.serving:
		return "terminating, and others are ready"
	case e.terminating:
		return "terminating"
	default:
		return "not ready"
	}
}

func (e endpoint) whyUsed(hint string) string {
	switch {
	case e.ready && hint != "":
		return "ready, hinted for " + hint
	case e.ready:
		return "ready"
	default:
		return "terminating, but still serving, and no endpoint is ready"
	}
}

// Policy names the traffic policy that decides for traffic of a scope, and
// whether it is Local. Traffic from within the cluster to an external address
// may go to all endpoints, whatever the external policy says.
func (o Object) Policy(scope Scope, clusterIP bool) (name string, local bool) {
	spec := &o.Service.Spec
	switch {
	case scope == Outside && !clusterIP:
		return fmt.Sprintf("external traffic policy %s", orCluster(string(spec.ExternalTrafficPolicy))),
			spec.ExternalTrafficPolicy == corev1.ServiceExternalTrafficPolicyLocal
	case clusterIP && spec.InternalTrafficPolicy != nil:
		return fmt.Sprintf("internal traffic policy %s", orCluster(string(*spec.InternalTrafficPolicy))),
			*spec.InternalTrafficPolicy == corev1.ServiceInternalTrafficPolicyLocal
	case clusterIP:
		return "internal traffic policy Cluster", false
	default:
		return "external address from within the cluster: all endpoints", false
	}
}

func orCluster(s string) string {
	if s == "" {
		return "Cluster"
	}
	return s
}
