// SPDX-License-Identifier: Apache-2.0

// Package services measures services: what they cost per connection with few
// and with many, from pods and from outside, and how fast they are programmed,
// beside kube-proxy in both of its modes. Objects come from an API server of
// the benchmark's own, so that neither etcd nor admission is what is measured.
package services

import (
	"flag"
	"fmt"
	"time"

	"github.com/nodeagent/nodeagent/tests/bench/figures"
	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

// Options say how much is measured.
type Options struct {
	// Few, Many and Most are the numbers of services; kube-proxy goes up to Many.
	Few, Many, Most int
	// Rounds is how often each path has its turn, Turn how long that is.
	Rounds int
	Turn   time.Duration
	// Adds is how many services are added one by one.
	Adds int
	// Colds is how often nodeagent programs all from nothing.
	Colds int
}

// Default is the full measurement.
func Default() Options {
	return Options{Few: 1, Many: 5000, Most: 50000, Rounds: 11, Turn: 100 * time.Millisecond, Adds: 12, Colds: 3}
}

// Quick is enough to see that everything works.
func (o *Options) Quick() { o.Many, o.Most, o.Rounds, o.Adds, o.Colds = 200, 1000, 3, 3, 1 }

// Flags adds the options to a command line.
func (o *Options) Flags(fs *flag.FlagSet) {
	fs.IntVar(&o.Many, "services-many", o.Many, "services: number up to which kube-proxy is measured, too")
	fs.IntVar(&o.Most, "services-most", o.Most, "services: largest number")
	fs.IntVar(&o.Rounds, "services-rounds", o.Rounds, "services: turns of each path")
	fs.IntVar(&o.Adds, "services-adds", o.Adds, "services: added one by one")
	fs.IntVar(&o.Colds, "services-colds", o.Colds, "services: how often all are programmed from nothing")
}

// Peers beside nodeagent.
const (
	nft = "kube-proxy nftables"
	ipt = "kube-proxy iptables"
)

// GroupOutside holds connections from outside, through a NodePort.
const GroupOutside = "from outside, NodePort"

const (
	groupInside = "from a pod, ClusterIP"
	groupTime   = "programming"
)

// Figures.
func crr(n int) string { return fmt.Sprintf("TCP connections with %d services", n) }

func toPod(n int) string { return fmt.Sprintf("TCP connections with %d services, to pod to pod", n) }

func oneMore(n int) string {
	return fmt.Sprintf("one more service among %d, event to first connection", n)
}

func cold(n, b int) string {
	return fmt.Sprintf("%d services of %d endpoints from the program's start", n, b)
}
func rss(n, b int) string { return fmt.Sprintf("RSS with %d services of %d endpoints", n, b) }

// Targets are what the issues ask.
func Targets() []figures.Target {
	o, us := Default(), lab.Nodeagent
	var out []figures.Target
	for _, n := range []int{o.Few, o.Many, o.Most} {
		out = append(out, figures.Target{
			Name: fmt.Sprintf("ClusterIP connections with %d services, to pod to pod", n),
			Of:   figures.Median(groupInside, toPod(n), us), Limit: 0.97, Least: true,
		})
	}
	ahead := func(peer string) func(*figures.Area) float64 {
		return figures.Worst(true,
			figures.Over(figures.Median(GroupOutside, crr(o.Few), us), figures.Median(GroupOutside, crr(o.Few), peer)),
			figures.Over(figures.Median(GroupOutside, crr(o.Many), us), figures.Median(GroupOutside, crr(o.Many), peer)))
	}
	return append(out,
		figures.Target{Name: "NodePort connections, to kube-proxy nftables, the least", Of: ahead(nft), Limit: 1, Least: true},
		figures.Target{Name: "NodePort connections, to kube-proxy iptables, the least", Of: ahead(ipt), Limit: 1, Least: true},
		figures.Target{Name: "50,000 services of 5 endpoints from the program's start", Of: figures.Median(groupTime, cold(o.Most, 5), us), Unit: "ms", Limit: 2000},
		figures.Target{Name: "one more service among 50,000", Of: figures.Median(groupTime, oneMore(o.Most), us), Unit: "ms", Limit: 5},
		figures.Target{Name: "RSS with 10,000 services of 10 endpoints", Of: figures.Median(groupTime, rss(10000, 10), us), Unit: "MB", Limit: 120},
	)
}
