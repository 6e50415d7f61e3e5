// SPDX-License-Identifier: Apache-2.0

package main

import (
	"errors"
	"fmt"
	"net/http"
	"net/netip"
	"net/url"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/dataplane"
	"github.com/nodeagent/nodeagent/dataplane/policy"
)

// policyView is the answer of GET /v1/policies/explain, one for each family.
type policyView struct {
	Src      netip.Addr `json:"src"`
	Dst      netip.Addr `json:"dst"`
	Protocol string     `json:"protocol"`
	Port     uint16     `json:"port"`

	policy.Explanation
}

// policyRoutes are the calls about network policies.
func policyRoutes(d *dataplane.Dataplane) map[string]http.Handler {
	return map[string]http.Handler{
		"GET /v1/policies": api.JSON(func(*http.Request) ([]policy.Summary, error) { return d.ListPolicies(), nil }),
		"GET /v1/policies/explain": api.JSON(func(r *http.Request) ([]policyView, error) {
			return explainPolicy(d, r.URL.Query().Get("src"), r.URL.Query().Get("dst"))
		}),
	}
}

// end is an end of a flow in words: an address, or a pod.
type end struct {
	addr netip.Addr
	pod  types.NamespacedName
}

func parseEnd(s string) (end, error) {
	plain := s
	if strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") {
		plain = s[1 : len(s)-1]
	}
	if a, err := netip.ParseAddr(plain); err == nil {
		return end{addr: a.Unmap()}, nil
	}
	ns, name, ok := strings.Cut(s, "/")
	if !ok || ns == "" || name == "" || strings.ContainsAny(name, "/: ") {
		return end{}, fmt.Errorf("%q is neither an address nor NAMESPACE/POD", s)
	}
	return end{pod: types.NamespacedName{Namespace: ns, Name: name}}, nil
}

// target is what a flow is to, in words: an end, a port and a protocol.
type target struct {
	end
	port     uint16
	protocol uint8
}

var errTarget = errors.New("want DESTINATION[:PORT][/tcp|udp|sctp|icmp]")

func parseTarget(s string) (t target, err error) {
	t.protocol = 6
	if rest, name, ok := cutLast(s, "/"); ok {
		if n, known := map[string]uint8{"tcp": 6, "udp": 17, "sctp": 132, "icmp": 1}[name]; known {
			s, t.protocol = rest, n
		}
	}
	if _, err := netip.ParseAddr(s); err != nil { // an IPv6 address has colons of its own
		if rest, port, ok := cutLast(s, ":"); ok {
			n, err := strconv.ParseUint(port, 10, 16)
			if err != nil {
				return t, fmt.Errorf("%q: port %q: %w", s, port, errTarget)
			}
			s, t.port = rest, uint16(n)
		}
	}
	if t.end, err = parseEnd(s); err != nil {
		return t, fmt.Errorf("%w: %w", err, errTarget)
	}
	return t, nil
}

func cutLast(s, sep string) (before, after string, found bool) {
	if i := strings.LastIndex(s, sep); i >= 0 {
		return s[:i], s[i+len(sep):], true
	}
	return s, "", false
}

func explainPolicy(d *dataplane.Dataplane, from, to string) ([]policyView, error) {
	src, err := parseEnd(from)
	if err != nil {
		return nil, fmt.Errorf("%w source: %w", dataplane.ErrInvalid, err)
	}
	dst, err := parseTarget(to)
	if err != nil {
		return nil, fmt.Errorf("%w destination: %w", dataplane.ErrInvalid, err)
	}
	sources, err := addrsOf(d, src)
	if err != nil {
		return nil, err
	}
	targets, err := addrsOf(d, dst.end)
	if err != nil {
		return nil, err
	}
	var out []policyView
	for _, s := range sources {
		for _, t := range targets {
			if s.Is4() != t.Is4() {
				continue
			}
			out = append(out, policyView{
				Src: s, Dst: t, Protocol: protocol(dst.protocol), Port: dst.port,
				Explanation: d.ExplainPolicy(s, t, dst.protocol, dst.port),
			})
		}
	}
	if len(out) == 0 {
		return nil, fmt.Errorf("%w: %s and %s have no address of one family", dataplane.ErrInvalid, from, to)
	}
	return out, nil
}

func addrsOf(d *dataplane.Dataplane, e end) ([]netip.Addr, error) {
	if e.addr.IsValid() {
		return []netip.Addr{e.addr}, nil
	}
	addrs := d.PodAddrs(e.pod)
	if len(addrs) == 0 {
		return nil, fmt.Errorf("%w: pod %s has no address that is known here: pods of the cluster are followed while there is a policy", dataplane.ErrInvalid, e.pod)
	}
	return addrs, nil
}

func policyCommand() *cobra.Command {
	cmd := &cobra.Command{Use: "policy", Short: "Show network policies, and say what they make of a connection", Args: noCommand}
	cmd.AddCommand(policyListCommand(), policyExplainCommand())
	return cmd
}

func policyListCommand() *cobra.Command {
	return showCommand("list", "Show the network policies and whom they isolate", "/v1/policies", func(all []policy.Summary) *table {
		t := &table{header: []string{"POLICY", "ISOLATES", "RULES", "PODS", "ON THIS NODE"}}
		for _, p := range all {
			var dirs []string
			if p.Ingress {
				dirs = append(dirs, string(policy.Ingress))
			}
			if p.Egress {
				dirs = append(dirs, string(policy.Egress))
			}
			t.add(p.Name, strings.Join(dirs, ","), strconv.Itoa(p.Rules), strconv.Itoa(p.Pods), strings.Join(p.Local, " "))
		}
		return t
	})
}

func policyExplainCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "explain SOURCE DESTINATION",
		Short: "Say whether a connection is allowed, and by which policies, without sending a packet",
		Long: "Says what the network policies at both ends make of a new connection from SOURCE (ADDR or NAMESPACE/POD) to\n" +
			"DESTINATION (ADDR or NAMESPACE/POD, with :PORT and /tcp, /udp, /sctp or /icmp). A service is judged by what stands\n" +
			"behind it: ask `nodeagent services trace` for that. The policies of a far pod are enforced on its own node.",
		Example: "  nodeagent policy explain shop/web-0 shop/db-0:5432\n  nodeagent policy explain 10.244.0.5 10.244.1.7:53/udp",
		Args: func(cmd *cobra.Command, args []string) error {
			if len(args) != 2 {
				return fmt.Errorf("%w: %s takes a source and a destination", errUsage, cmd.CommandPath())
			}
			_, err := parseEnd(args[0])
			if err == nil {
				_, err = parseTarget(args[1])
			}
			if err != nil {
				return fmt.Errorf("%w: %w", errUsage, err)
			}
			return nil
		},
	}
	format := outputFlag(cmd)
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		var all []policyView
		path := "/v1/policies/explain?src=" + url.QueryEscape(args[0]) + "&dst=" + url.QueryEscape(args[1])
		if err := client(cmd).Get(cmd.Context(), path, &all); err != nil {
			return err
		}
		return render(cmd.OutOrStdout(), *format, all, policyTable(all))
	}
	return cmd
}

// policyTable tells each answer line by line.
func policyTable(all []policyView) *table {
	t := &table{header: []string{"WHAT", "DETAIL"}}
	for i, v := range all {
		if i > 0 {
			t.add()
		}
		verdict := "denied"
		if v.Allowed {
			verdict = "allowed"
		}
		t.add("connection", fmt.Sprintf("%s -> %s/%s", v.Src, netip.AddrPortFrom(v.Dst, v.Port), v.Protocol))
		t.add("verdict", verdict)
		t.add("egress", sideOf(v.Egress))
		t.add("ingress", sideOf(v.Ingress))
	}
	return t
}

func sideOf(s policy.Side) string {
	switch {
	case s.Pod == "":
		return "allowed: no pod that is known"
	case len(s.Isolating) == 0:
		return "allowed: no policy isolates " + s.Pod
	case len(s.Allowing) > 0:
		return fmt.Sprintf("allowed to %s by %s", s.Pod, strings.Join(s.Allowing, ", "))
	case s.Allowed:
		return "allowed: " + s.Pod + " reaches itself"
	default:
		return fmt.Sprintf("denied: %s is isolated by %s", s.Pod, strings.Join(s.Isolating, ", "))
	}
}
