// SPDX-License-Identifier: Apache-2.0

// Package network measures the pod network: on one node and between nodes,
// natively and through VXLAN, beside two hosts on one veth and beside bridge
// with host-local, portmap and the kernel's conntrack.
package network

import (
	"flag"
	"time"

	"github.com/nodeagent/nodeagent/tests/bench/figures"
)

// Options say how much is measured.
type Options struct {
	// Rounds is how often each path has its turn, Turn how long that is.
	Rounds int
	Turn   time.Duration
	// Policy isolates nodeagent's pods, so that each connection is judged.
	Policy bool
}

// Default is the full measurement.
func Default() Options { return Options{Rounds: 15, Turn: 100 * time.Millisecond, Policy: true} }

// Quick is enough to see that everything works.
func (o *Options) Quick() { o.Rounds = 3 }

// Flags adds the options to a command line.
func (o *Options) Flags(fs *flag.FlagSet) {
	fs.IntVar(&o.Rounds, "net-rounds", o.Rounds, "network: turns of each path")
	fs.BoolVar(&o.Policy, "net-policy", o.Policy, "network: isolate nodeagent's pods by a NetworkPolicy that allows what is measured")
	fs.DurationVar(&o.Turn, "net-turn", o.Turn, "network: length of a turn")
}

// Groups of figures.
const (
	GroupSame    = "on one node"
	groupBetween = "between nodes"
	groupSetting = "setting"
)

// Paths, as they are called in the tables. The base of ratios is wire.
const (
	pods   = "pod to pod"
	native = "native"
	vxlan  = "VXLAN"
	bridge = "bridge and conntrack"
	wire   = "host to host"
)

// Figures of a path.
const (
	rr     = "TCP round trips"
	crr    = "TCP connections"
	stream = "TCP stream"
	udp    = "UDP round trips"
)

// Targets are what the issues ask.
func Targets() []figures.Target {
	least := func(name, group, figure, path string, limit float64) figures.Target {
		return figures.Target{Name: name, Of: figures.Ratio(group, figure, path), Limit: limit, Least: true}
	}
	ahead := func(name, group, path string, list ...string) figures.Target {
		var of []func(*figures.Area) float64
		for _, f := range list {
			of = append(of, figures.Over(figures.Median(group, f, path), figures.Median(group, f, bridge)))
		}
		return figures.Target{Name: name, Of: figures.Worst(true, of...), Limit: 1, Least: true}
	}
	return []figures.Target{
		least("TCP round trips on one node, to host to host", GroupSame, rr, pods, 0.97),
		least("TCP connections on one node, to host to host", GroupSame, crr, pods, 0.95),
		least("TCP stream on one node, to host to host", GroupSame, stream, pods, 0.95),
		least("TCP round trips between nodes, native, to host to host", groupBetween, rr, native, 0.87),
		least("TCP round trips between nodes, VXLAN, to host to host", groupBetween, rr, vxlan, 0.70),
		ahead("on one node, to bridge, the least of all figures", GroupSame, pods, rr, crr, stream, udp),
		ahead("between nodes, native, to bridge, the least of all figures", groupBetween, native, rr, crr, stream, udp),
	}
}
