// SPDX-License-Identifier: Apache-2.0

package main

import (
	"cmp"
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/dataplane"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// serviceView is one frontend as `nodeagent services` shows it.
type serviceView struct {
	// Owner is empty while nobody has told of what an earlier start serves.
	Owner    string     `json:"owner"`
	Addr     netip.Addr `json:"addr"`
	Port     uint16     `json:"port"`
	Protocol string     `json:"protocol"`
	// Scope is whose traffic it takes, "cluster" or "outside".
	Scope string `json:"scope"`
	// State is "serves", "rejects" or "drops".
	State    string           `json:"state"`
	Options  []string         `json:"options,omitempty"`
	Affinity string           `json:"affinity,omitempty"`
	Backends []netip.AddrPort `json:"backends"`
	// Connections and the rest are of the service's port, by all its frontends
	// of the family; absent: not counted, or nothing yet.
	Counters *serviceCounters `json:"counters,omitempty"`
}

type serviceCounters struct {
	Connections uint64 `json:"connections"`
	Refused     uint64 `json:"refused"`
	BytesIn     uint64 `json:"bytesIn"`
	BytesOut    uint64 `json:"bytesOut"`
}

func serviceRoutes(d *dataplane.Dataplane) map[string]http.Handler {
	return map[string]http.Handler{
		"GET /v1/services": api.JSON(func(*http.Request) ([]serviceView, error) {
			fronts, err := d.Frontends()
			return viewServices(fronts), err
		}),
		"GET /v1/services/trace": api.JSON(func(r *http.Request) ([]dataplane.Trace, error) {
			reqs, err := traceRequests(d, r.URL.Query().Get("src"), r.URL.Query().Get("dst"))
			if err != nil {
				return nil, err
			}
			var out []dataplane.Trace
			var errs []error
			for _, req := range reqs {
				traces, err := d.Trace(req)
				out, errs = append(out, traces...), append(errs, err)
			}
			return out, errors.Join(errs...)
		}),
	}
}

func viewServices(fronts []dataplane.Frontend) []serviceView {
	out := make([]serviceView, 0, len(fronts))
	for _, f := range fronts {
		v := serviceView{
			Owner: f.Owner, Addr: f.Addr, Port: f.Port, Protocol: protocol(f.Proto), Scope: "cluster",
			State: f.State, Backends: f.Backends,
		}
		if f.Scope == service.Outside {
			v.Scope = "outside"
		}
		if f.Affinity > 0 {
			v.Affinity = f.Affinity.String()
		}
		for name, on := range map[string]bool{"local": f.Local, "dsr": f.DSR, "maglev": f.Maglev, "source-ranges": f.Ranges} {
			if on {
				v.Options = append(v.Options, name)
			}
		}
		slices.Sort(v.Options)
		if s := f.Stat; s != nil {
			v.Counters = &serviceCounters{s.Connections, s.Refused, s.BytesIn, s.BytesOut}
		}
		out = append(out, v)
	}
	slices.SortFunc(out, func(a, b serviceView) int {
		return cmp.Or(strings.Compare(a.Owner, b.Owner), a.Addr.Compare(b.Addr), cmp.Compare(a.Port, b.Port),
			strings.Compare(a.Protocol, b.Protocol), strings.Compare(a.Scope, b.Scope))
	})
	return out
}

// traceRequest reads a client, ADDR[:PORT], and what it addresses,
// ADDR[:PORT[/PROTOCOL]].
func traceRequest(src, dst string) (req dataplane.TraceRequest, err error) {
	dst, proto, named := strings.Cut(dst, "/")
	if named {
		i := slices.Index([]string{"tcp", "udp", "sctp"}, strings.ToLower(proto))
		if i < 0 {
			return req, fmt.Errorf("%w: protocol %q is none of tcp, udp, sctp", dataplane.ErrInvalid, proto)
		}
		req.Proto = []uint8{service.TCP, service.UDP, service.SCTP}[i]
	}
	if req.Src, err = addrPort(src); err != nil {
		return req, fmt.Errorf("%w source: %w", dataplane.ErrInvalid, err)
	}
	if req.Dst, err = addrPort(dst); err != nil {
		return req, fmt.Errorf("%w destination: %w", dataplane.ErrInvalid, err)
	}
	return req, nil
}

// addrPort reads an address with a port, or without: port 0.
func addrPort(s string) (netip.AddrPort, error) {
	if a, err := netip.ParseAddr(strings.Trim(s, "[]")); err == nil {
		return netip.AddrPortFrom(a.Unmap(), 0), nil
	}
	ap, err := netip.ParseAddrPort(s)
	return netip.AddrPortFrom(ap.Addr().Unmap(), ap.Port()), err
}

func servicesCommand() *cobra.Command {
	cmd := showCommand("services", "Show the services in the data path, their backends and what they carried", "/v1/services", func(all []serviceView) *table {
		t := &table{header: []string{"OWNER", "FRONTEND", "PROTOCOL", "SCOPE", "STATE", "OPTIONS", "AFFINITY", "CONNECTIONS", "REFUSED", "IN", "OUT", "BACKENDS"}}
		for _, s := range all {
			row := []string{cmp.Or(s.Owner, "(not told yet)"), frontendName(s), s.Protocol, s.Scope, s.State, strings.Join(s.Options, ","), s.Affinity}
			t.add(append(append(row, counterColumns(s.Counters)...), someOf(s.Backends))...)
		}
		return t
	})
	cmd.AddCommand(traceCommand())
	return cmd
}

// frontendName has * for every address of the node.
func frontendName(s serviceView) string {
	if s.Addr.IsUnspecified() {
		return "*:" + strconv.Itoa(int(s.Port))
	}
	return netip.AddrPortFrom(s.Addr, s.Port).String()
}

func counterColumns(c *serviceCounters) []string {
	if c == nil {
		return []string{"", "", "", ""}
	}
	out := make([]string, 0, 4)
	for _, n := range []uint64{c.Connections, c.Refused, c.BytesIn, c.BytesOut} {
		out = append(out, strconv.FormatUint(n, 10))
	}
	return out
}

// shownBackends fit in a line; -o json has them all.
const shownBackends = 4

func someOf(backends []netip.AddrPort) string {
	out := make([]string, 0, shownBackends+1)
	for i, b := range backends {
		if i == shownBackends {
			out = append(out, fmt.Sprintf("and %d more", len(backends)-i))
			break
		}
		out = append(out, b.String())
	}
	return strings.Join(out, " ")
}

func traceCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "trace SOURCE DESTINATION",
		Short: "Say which backend a connection would get, and why, without sending a packet",
		Long: "Says which service takes a connection from SOURCE (ADDR, ADDR:PORT, or a pod NAMESPACE/NAME) to DESTINATION\n" +
			"(ADDR, ADDR:PORT, ADDR:PORT/PROTOCOL, or a service NAMESPACE/NAME[:PORT][/PROTOCOL]), which backends it may get, and why: traffic policy, topology,\n" +
			"affinity, Maglev, terminating endpoints, or none. Nothing is sent and nothing is changed.",
		Example: "  nodeagent services trace 10.244.0.5 10.96.0.10:53/udp\n  nodeagent services trace default/client kube-system/kube-dns:dns\n  nodeagent services trace 198.51.100.7:40000 192.0.2.1:30080",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("%w: %s takes a source and a destination", errUsage, cmd.CommandPath())
			}
			if err := checkTrace(args[0], args[1]); err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return nil
		},
	}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var all []dataplane.Trace
		path := "/v1/services/trace?src=" + url.QueryEscape(args[0]) + "&dst=" + url.QueryEscape(args[1])
		if err := client(cmd).Get(cmd.Context(), path, &all); err != nil {
			return err
		}
		return render(cmd.OutOrStdout(), *format, all, traceTable(all))
	}
	return cmd
}

// traceTable tells each trace line by line.
func traceTable(all []dataplane.Trace) *table {
	t := &table{header: []string{"WHAT", "DETAIL"}}
	for i, tr := range all {
		if i > 0 {
			t.add()
		}
		t.add("connection", fmt.Sprintf("%s -> %s/%s", tr.Src, tr.Dst, tr.Protocol))
		if tr.Owner != "" {
			t.add("taken by", tr.Owner+", frontend "+tr.Frontend)
			t.add("scope", tr.Scope)
			t.add("translated", tr.Way)
		}
		if tr.Policy != "" {
			t.add("policy", tr.Policy)
		}
		t.add("outcome", tr.Outcome)
		t.add("because", tr.Reason)
		for _, b := range tr.Backends {
			t.add("backend", b.String())
		}
		for _, e := range tr.Endpoints {
			use := "not used"
			if e.Used {
				use = "used"
			}
			t.add("endpoint", fmt.Sprintf("%s  %s: %s", e.Addr, use, e.Why))
		}
	}
	return t
}
