// SPDX-License-Identifier: Apache-2.0

package network

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/nodeagent/nodeagent/tests/bench/lab"
	"github.com/nodeagent/nodeagent/tests/bench/plugins"
	"github.com/nodeagent/nodeagent/tests/bench/traffic"
)

// path leads from a driver to a server.
type path struct {
	group, name string
	from        *traffic.Driver
	to          netip.AddrPort
}

// world is everything that stands while turns are taken.
type world struct {
	r *lab.Run
	// policy isolates pods.
	policy bool
	paths  []path
	open   []io.Closer

	// stranger drives from a pod that policies keep from the closed address.
	stranger *traffic.Driver
	closed   netip.AddrPort
}

// Measure builds pairs of nodes and lets each path have its turns.
func (o *Options) Measure(ctx context.Context, r *lab.Run) (retErr error) {
	l, err := lab.Start(ctx, r.Config, "bench", "boxes", "--nodes", "8")
	if err != nil {
		return err
	}
	w := &world{r: r, policy: o.Policy}
	defer func() { retErr = errors.Join(retErr, w.close(), l.Close()) }()
	if err := w.build(ctx, l.Nodes()); err != nil {
		return err
	}
	for _, p := range w.paths { // policies may take a moment
		if _, err := p.from.Measure(traffic.Reach, p.to, patience); err != nil {
			return fmt.Errorf("%s, %s: %w", p.group, p.name, err)
		}
	}
	if err := w.judged(); err != nil {
		return err
	}
	kinds := []struct{ kind, figure, unit string }{
		{traffic.RR, rr, "1/s"}, {traffic.CRR, crr, "1/s"}, {traffic.Stream, stream, "Gbit/s"}, {traffic.UDPRR, udp, "1/s"},
	}
	for i := range o.Rounds + 1 {
		for _, k := range kinds {
			for _, p := range w.paths {
				v, err := p.from.Measure(k.kind, p.to, o.Turn)
				if err != nil {
					return fmt.Errorf("%s, %s: %w", p.group, p.name, err)
				}
				if i > 0 { // the first round warms up
					r.Area.Add(p.group, k.figure, k.unit, p.name, v)
				}
			}
			if err := ctx.Err(); err != nil {
				return err
			}
		}
		r.Progress("round", i, o.Rounds)
	}
	return nil
}

// patience is how long a path may take to stand.
const patience = 20 * time.Second

// judged notes whether a pod that no policy allows is kept out.
func (w *world) judged() error {
	if w.stranger == nil {
		return nil
	}
	kept := 0.0
	if _, err := w.stranger.Measure(traffic.Reach, w.closed, time.Second); err != nil {
		kept = 1
	}
	w.r.Area.Add(groupSetting, "policies keep strangers out (1: yes)", "", lab.Nodeagent, kept)
	return nil
}

func (w *world) close() error {
	var errs []error
	for _, c := range w.open {
		errs = append(errs, c.Close())
	}
	return errors.Join(errs...)
}

// build makes four pairs of nodes: hosts alone, natively routed, with VXLAN,
// and with bridges.
func (w *world) build(ctx context.Context, nodes []*lab.Box) error {
	for i := 0; i < len(nodes); i += 2 {
		if err := pair(ctx, nodes[i], nodes[i+1]); err != nil {
			return err
		}
	}
	if err := w.agents(ctx, nodes[2], nodes[3], native, "native"); err != nil {
		return err
	}
	if err := w.agents(ctx, nodes[4], nodes[5], vxlan, "vxlan"); err != nil {
		return err
	}
	if err := w.bridges(ctx, nodes[6], nodes[7]); err != nil {
		return err
	}
	return w.wire(nodes[0], nodes[1])
}

// The two nodes of every pair.
var (
	hosts = [2]string{"192.168.7.1", "192.168.7.2"}
	cidrs = [2]netip.Prefix{netip.MustParsePrefix("10.1.1.0/24"), netip.MustParsePrefix("10.1.2.0/24")}
)

const port = 5000

// pair joins two nodes by one veth instead of the switch.
func pair(ctx context.Context, x, y *lab.Box) error {
	return errors.Join(
		x.IP(ctx, "link del eth0"), y.IP(ctx, "link del eth0"),
		lab.Wire(ctx, x, y, hosts[0]+"/24", hosts[1]+"/24"),
		x.IP(ctx, "route add default via "+hosts[1]), y.IP(ctx, "route add default via "+hosts[0]),
	)
}

// wire is the base of ratios: two hosts, one veth, nothing else.
func (w *world) wire(x, y *lab.Box) error {
	at := netip.AddrPortFrom(netip.MustParseAddr(hosts[1]), port)
	d, err := w.ends(plugins.Pod{Box: x}, plugins.Pod{Box: y}, at)
	if err != nil {
		return err
	}
	w.paths = append(w.paths, path{GroupSame, wire, d, at}, path{groupBetween, wire, d, at})
	return nil
}

// ends starts a driver in one place and a server in the other.
func (w *world) ends(from, to plugins.Pod, at netip.AddrPort) (*traffic.Driver, error) {
	s, err := traffic.Serve(to.Box, to.NetNS, at)
	if err != nil {
		return nil, err
	}
	w.open = append(w.open, s)
	d, err := traffic.Drive(from.Box, from.NetNS)
	if err != nil {
		return nil, err
	}
	w.open = append(w.open, d)
	return d, nil
}

func (w *world) agents(ctx context.Context, x, y *lab.Box, name, mode string) error {
	boxes := [2]*lab.Box{x, y}
	var callers [2]*plugins.Caller
	for i, b := range boxes {
		for j, n := range boxes {
			if err := b.Write(fmt.Sprintf("%s/node%d.yaml", manifests, j), nodeManifest(n.Name, j, mode)); err != nil {
				return err
			}
		}
		_, err := w.r.Agent(ctx, b, map[string]any{
			"network":    map[string]any{"nodeAddrs": []string{hosts[i]}, "podCIDRs": []string{cidrs[i].String()}},
			"kubernetes": map[string]any{"manifests": manifests},
		})
		if err != nil {
			return err
		}
		if callers[i], err = plugins.Agent(w.r, b); err != nil {
			return err
		}
		w.open = append(w.open, callers[i])
	}
	same := ""
	if name == native { // on one node both modes are the same
		same = pods
	}
	return w.pods(callers, same, name)
}

func (w *world) bridges(ctx context.Context, x, y *lab.Box) error {
	boxes := [2]*lab.Box{x, y}
	var callers [2]*plugins.Caller
	for i, b := range boxes {
		if err := b.IP(ctx, fmt.Sprintf("route add %s via %s", cidrs[1-i], hosts[1-i])); err != nil {
			return err
		}
		var err error
		if callers[i], err = plugins.Bridge(w.r, b, cidrs[i]); err != nil {
			return err
		}
		w.open = append(w.open, callers[i])
	}
	return w.pods(callers, bridge, bridge)
}

// pods makes two pods on the first node and one on the second, and the paths
// between them.
func (w *world) pods(callers [2]*plugins.Caller, same, between string) error {
	from, _, err := callers[0].Add("from")
	if err != nil {
		return err
	}
	near, _, err := callers[0].Add("near")
	if err != nil {
		return err
	}
	far, _, err := callers[1].Add("far")
	if err != nil {
		return err
	}
	stranger, _, err := callers[0].Add("stranger")
	if err != nil {
		return err
	}
	if w.policy && between != bridge {
		if err := isolate(stranger, from, near, far); err != nil {
			return err
		}
	}
	d, err := w.ends(from, far, netip.AddrPortFrom(far.Addr, port))
	if err != nil {
		return err
	}
	w.paths = append(w.paths, path{groupBetween, between, d, netip.AddrPortFrom(far.Addr, port)})
	if same == "" {
		return nil
	}
	s, err := traffic.Serve(near.Box, near.NetNS, netip.AddrPortFrom(near.Addr, port))
	if err != nil {
		return err
	}
	w.open = append(w.open, s)
	w.paths = append(w.paths, path{GroupSame, same, d, netip.AddrPortFrom(near.Addr, port)})
	if !w.policy || same == bridge {
		return nil
	}
	w.closed = netip.AddrPortFrom(near.Addr, port)
	if w.stranger, err = traffic.Drive(stranger.Box, stranger.NetNS); err == nil {
		w.open = append(w.open, w.stranger)
	}
	return err
}
