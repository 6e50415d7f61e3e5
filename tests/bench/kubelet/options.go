// SPDX-License-Identifier: Apache-2.0

// Package kubelet measures what a person waits for: pods made through the API
// server, on a node whose kubelet drives nodeagent and on one whose kubelet
// drives containerd's own CRI plugin with bridge and kube-proxy, under the same
// control plane.
package kubelet

import (
	"flag"
	"fmt"

	"github.com/nodeagent/nodeagent/tests/bench/figures"
	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

// Options say how much is measured.
type Options struct {
	// Pods is how many one after the other on each node, Burst how many at once,
	// Bursts how often.
	Pods, Burst, Bursts int
	// Rest is how many seconds the nodes at rest are watched.
	Rest int
}

// Default is the full measurement.
func Default() Options { return Options{Pods: 20, Burst: 50, Bursts: 3, Rest: 30} }

// Quick is enough to see that everything works.
func (o *Options) Quick() { o.Pods, o.Burst, o.Bursts, o.Rest = 3, 8, 1, 5 }

// Flags adds the options to a command line.
func (o *Options) Flags(fs *flag.FlagSet) {
	fs.IntVar(&o.Pods, "kubelet-pods", o.Pods, "kubelet: pods one after the other on each node")
	fs.IntVar(&o.Burst, "kubelet-burst", o.Burst, "kubelet: pods at once")
	fs.IntVar(&o.Bursts, "kubelet-bursts", o.Bursts, "kubelet: how often that")
	fs.IntVar(&o.Rest, "kubelet-rest", o.Rest, "kubelet: seconds that the nodes at rest are watched")
}

// GroupReady holds how long pods take.
const GroupReady = "pods through the API server"

// groupRest holds what nodes at rest use.
func groupRest(pods int) string { return fmt.Sprintf("at rest with %d pods", pods) }

// Figures.
const (
	ready     = "create to Ready"
	readyBare = "create to Ready, no volume"
	gone      = "delete to gone"
	atRest    = "runtime and shims"
)

func burst(pods int) string     { return fmt.Sprintf("%d at once, all Ready", pods) }
func burstGone(pods int) string { return fmt.Sprintf("%d at once, all gone", pods) }

// peers are the two sides, in the order of the nodes.
var peers = [2]string{lab.Nodeagent, lab.Containerd}

// Targets are what the issues ask. A pod's volumes are looked for at once and then every 300 ms
// (podAttachAndMountRetryInterval of the kubelet's volume manager), and the token of its account is one: that wait is
// the same for both, and more than the limit leaves. So pods without a volume are held to the same limit beside.
func Targets() []figures.Target {
	us := lab.Nodeagent
	return []figures.Target{
		{Name: "create to Ready, median, to containerd's", Of: figures.Ratio(GroupReady, ready, us), Limit: 0.6},
		{Name: "create to Ready of pods without a volume, median, to containerd's", Of: figures.Ratio(GroupReady, readyBare, us), Limit: 0.6},
		{Name: "burst of 50 all Ready, to containerd's", Of: figures.Ratio(GroupReady, burst(50), us), Limit: 0.4},
		{Name: "CPU at rest of daemons and shims, to containerd's", Of: figures.Ratio(groupRest(50), atRest, us), Limit: 0.2},
	}
}
