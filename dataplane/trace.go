// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/nodeagent/nodeagent/bpf"
	"github.com/nodeagent/nodeagent/dataplane/maps"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// TraceRequest asks where a connection would go.
type TraceRequest struct {
	// Src is the client; port 0: any.
	Src netip.AddrPort
	// Dst is what it addresses; port 0: every port that is served there.
	Dst netip.AddrPort
	// Proto is an IP protocol number; 0: every one that is served there.
	Proto uint8
}

// Trace is where a new connection would go, and why. No packet is sent.
type Trace struct {
	Src      string `json:"src"`
	Dst      string `json:"dst"`
	Protocol string `json:"protocol"`
	// Scope is "cluster" or "outside", Way "socket" or "packet".
	Scope string `json:"scope"`
	Way   string `json:"way,omitempty"`
	// Owner and Frontend that take it; empty: no service does.
	Owner    string `json:"owner,omitempty"`
	Frontend string `json:"frontend,omitempty"`
	// Outcome is "backend" (one of Backends), "reject", "drop" or "none".
	Outcome  string           `json:"outcome"`
	Reason   string           `json:"reason"`
	Policy   string           `json:"policy,omitempty"`
	Backends []netip.AddrPort `json:"backends,omitempty"`
	// Endpoints are all that the service has in the family, judged.
	Endpoints []service.Judged `json:"endpoints,omitempty"`
}

// Outcomes of a trace.
const (
	OutcomeBackend = "backend"
	OutcomeReject  = "reject"
	OutcomeDrop    = "drop"
	OutcomeNone    = "none"
)

// Trace says where connections would go, one answer for each frontend that the
// request fits.
func (d *Dataplane) Trace(req TraceRequest) ([]Trace, error) {
	if req.Src.Addr().Is4() != req.Dst.Addr().Is4() {
		return nil, fmt.Errorf("%w: %s and %s are of two families", ErrInvalid, req.Src.Addr(), req.Dst.Addr())
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.started {
		return nil, ErrNotStarted
	}
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	scope, way, node := d.tracePlace(req)
	var out []Trace
	var errs []error
	for _, key := range d.traceFronts(req, scope) {
		t, err := d.traceFront(req, key, way)
		out, errs = append(out, t), append(errs, err)
	}
	if len(out) == 0 {
		out = append(out, d.traceNone(req, scope, node))
	}
	return out, errors.Join(errs...)
}

// tracePlace says whose traffic it is, and where it is translated.
func (d *Dataplane) tracePlace(req TraceRequest) (scope service.Scope, way string, toNode bool) {
	src := req.Src.Addr()
	sockets := d.cfg.SocketServices
	toNode = d.isHostAddr(req.Dst.Addr()) || req.Dst.Addr().IsLoopback()
	switch {
	case src.IsLoopback() || d.isHostAddr(src):
		return service.Cluster, "socket", toNode
	case d.owners[src] != "":
		if sockets && (req.Proto == 0 || req.Proto == service.TCP) {
			return service.Cluster, "socket", toNode
		}
		return service.Cluster, "packet", toNode
	case d.inCluster(src):
		return service.Cluster, "on the node of the client", toNode
	default:
		return service.Outside, "packet", toNode
	}
}

func (d *Dataplane) isHostAddr(a netip.Addr) bool {
	return slices.Contains(d.host.Addrs(), a) || slices.Contains(d.node.Addrs, a)
}

// inCluster says whether an address is a far pod's or another node's.
func (d *Dataplane) inCluster(a netip.Addr) bool {
	has := func(p netip.Prefix) bool { return p.Contains(a) }
	for _, p := range d.peers {
		if slices.Contains(p.Addrs, a) || slices.ContainsFunc(p.PodCIDRs, has) {
			return true
		}
	}
	return slices.ContainsFunc(d.node.PodCIDRs, has)
}

// traceFronts are the frontends that a request fits: at its address, else at
// every address of the node.
func (d *Dataplane) traceFronts(req TraceRequest, scope service.Scope) []maps.ServiceKey {
	at := func(addr netip.Addr) []maps.ServiceKey {
		var out []maps.ServiceKey
		for key := range d.table.fronts {
			if key.Addr == maps.AddrOf(addr) && service.Scope(key.Scope) == scope &&
				(req.Dst.Port() == 0 || maps.Port(key.Port) == req.Dst.Port()) &&
				(req.Proto == 0 || key.Proto == req.Proto) {
				out = append(out, key)
			}
		}
		slices.SortFunc(out, func(a, b maps.ServiceKey) int {
			return cmp.Or(cmp.Compare(maps.Port(a.Port), maps.Port(b.Port)), cmp.Compare(a.Proto, b.Proto))
		})
		return out
	}
	out := at(req.Dst.Addr())
	if len(out) > 0 || !d.isHostAddr(req.Dst.Addr()) && !req.Dst.Addr().IsLoopback() {
		return out
	}
	if req.Dst.Addr().Is4() {
		return at(netip.IPv4Unspecified())
	}
	return at(netip.IPv6Unspecified())
}

// traceNone is the answer where no service is.
func (d *Dataplane) traceNone(req TraceRequest, scope service.Scope, toNode bool) Trace {
	t := Trace{
		Src: shown(req.Src), Dst: shown(req.Dst), Protocol: protoName(req.Proto), Scope: scopeName(scope),
		Outcome: OutcomeNone, Reason: "no service has this address, port and protocol",
	}
	_, left := d.table.left[maps.ServiceKey{
		Addr: maps.AddrOf(req.Dst.Addr()), Port: maps.Port(req.Dst.Port()), Proto: req.Proto, Scope: uint8(scope),
	}]
	switch {
	case left:
		t.Reason = "a frontend of an earlier start serves it (nodeagent services), of whose service nobody has told yet"
	case !d.cfg.Services:
		t.Reason = "services are off (dataplane.services): kube-proxy decides"
	case d.owners[req.Dst.Addr()] != "":
		t.Reason += ": it goes to the pod of " + d.owners[req.Dst.Addr()]
	case toNode:
		t.Reason += ": it goes to the node itself"
	case d.inCluster(req.Dst.Addr()):
		t.Reason += ": it goes to the cluster's address as it is"
	}
	return t
}

func (d *Dataplane) traceFront(req TraceRequest, key maps.ServiceKey, way string) (Trace, error) {
	f := d.table.fronts[key]
	o := d.table.owners[f.owner]
	front := d.table.describe(f.owner, o, key, f)
	t := Trace{
		Src: shown(req.Src), Dst: shown(netip.AddrPortFrom(req.Dst.Addr(), front.Port)), Protocol: protoName(key.Proto),
		Scope: scopeName(front.Scope), Way: way, Owner: f.owner, Frontend: front.String(), Backends: front.Backends,
	}
	if way == "socket" && key.Proto == service.SCTP {
		t.Way = "packet"
	}
	d.traceEndpoints(&t, o, key, f)
	return t, d.traceOutcome(&t, req, front, f, o)
}

// traceEndpoints judges what the service's slices say.
func (d *Dataplane) traceEndpoints(t *Trace, o *owned, key maps.ServiceKey, f *front) {
	for name, obj := range d.services {
		if serviceOwner(name) != f.owner {
			continue
		}
		front := maps.ToAddr(key.Addr)
		clusterIP := front.IsValid() && slices.Contains(append([]string{obj.Service.Spec.ClusterIP}, obj.Service.Spec.ClusterIPs...), front.String())
		policy, local := obj.Policy(service.Scope(key.Scope), clusterIP)
		t.Policy = policy
		for k, id := range o.ids {
			if id == f.value.Id && k.proto == key.Proto {
				t.Endpoints = service.Explain(obj, d.svcNode, k.port, k.v4, local)
			}
		}
		return
	}
}

// traceOutcome decides as the programs do, in their order.
func (d *Dataplane) traceOutcome(t *Trace, req TraceRequest, front Frontend, f *front, o *owned) error {
	has := func(flag bpf.DatapathSvcFlags) bool { return f.value.Flags&uint16(flag) != 0 }
	rows := o.rowsOf(f)
	admits := func(r maps.Range) bool {
		return r.Service == f.value.Id && r.Prefix.Contains(req.Src.Addr())
	}
	t.Outcome = OutcomeBackend
	switch {
	case has(bpf.DatapathSvcFlagsSVC_RANGES) && t.Way == "packet" && !slices.ContainsFunc(o.ranges, admits):
		t.Outcome, t.Reason, t.Backends = OutcomeDrop, "the source is in none of loadBalancerSourceRanges", nil
	case len(front.Backends) == 0 && has(bpf.DatapathSvcFlagsSVC_DROP):
		t.Outcome, t.Reason = OutcomeDrop, "no endpoint on this node, but there are some on others"
	case len(front.Backends) == 0:
		t.Outcome, t.Reason = OutcomeReject, "no endpoint may be used: "+tally(t.Endpoints)
	case front.Affinity > 0:
		return d.traceAffinity(t, req, front, rows)
	default:
		t.choose(req, front, rows)
	}
	return nil
}

func (d *Dataplane) traceAffinity(t *Trace, req TraceRequest, front Frontend, rows []service.Backend) error {
	if t.Way != "packet" {
		t.Reason = fmt.Sprintf("session affinity of %s: the backend that the client's network namespace had, else any", front.Affinity)
		return nil
	}
	kept, ok, err := d.affinity.Of(front.ID, req.Src.Addr())
	if err != nil {
		return err
	}
	now, err := maps.Now()
	left := front.Affinity - now.Since(kept.Seen)
	if err == nil && ok && left > 0 && slices.Contains(front.Backends, kept.Backend) {
		t.Backends = []netip.AddrPort{kept.Backend}
		t.Reason = fmt.Sprintf("session affinity: the client had it %s ago, and keeps it for %s more",
			now.Since(kept.Seen).Round(time.Second), left.Round(time.Second))
		return nil
	}
	t.choose(req, front, rows)
	t.Reason += fmt.Sprintf("; the client then keeps it for %s (session affinity)", front.Affinity)
	return err
}

// rowsOf are the rows of a frontend's slice.
func (o *owned) rowsOf(f *front) []service.Backend {
	for _, s := range o.slices {
		if s.base == f.value.Base && f.value.Count > 0 {
			return s.rows
		}
	}
	return nil
}

// choose is the choice for a client that has no backend yet.
func (t *Trace) choose(req TraceRequest, front Frontend, rows []service.Backend) {
	n := len(front.Backends)
	switch {
	case n == 1:
		t.Reason = "the only backend"
	case front.Maglev && t.Way == "packet" && req.Src.Port() != 0:
		dst := netip.AddrPortFrom(req.Dst.Addr(), front.Port)
		row := service.MaglevRow(req.Src, dst, front.Proto, uint32(len(rows)))
		t.Backends = []netip.AddrPort{netip.AddrPortFrom(rows[row].Addr, rows[row].Port)}
		t.Reason = fmt.Sprintf("Maglev: row %d of %d, at every node", row, len(rows))
	case front.Maglev:
		t.Reason = fmt.Sprintf("Maglev: one of %d, by the connection; name the source port to know which", n)
	default:
		t.Reason = fmt.Sprintf("at random, one of %d", n)
	}
}

// tally counts endpoints by why they are not used.
func tally(eps []service.Judged) string {
	if len(eps) == 0 {
		return "the service has none"
	}
	counts := map[string]int{}
	for _, e := range eps {
		counts[e.Why]++
	}
	var out []string
	for why, n := range counts {
		out = append(out, fmt.Sprintf("%d %s", n, why))
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

func shown(a netip.AddrPort) string {
	if a.Port() == 0 {
		return a.Addr().String()
	}
	return a.String()
}

func scopeName(s service.Scope) string {
	if s == service.Outside {
		return "outside"
	}
	return "cluster"
}

func protoName(p uint8) string {
	return map[uint8]string{0: "any", service.TCP: "tcp", service.UDP: "udp", service.SCTP: "sctp"}[p]
}
