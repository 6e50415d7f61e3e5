// SPDX-License-Identifier: Apache-2.0

// Package runtimes measures CRI runtimes side by side: nodeagent and
// containerd's own CRI plugin with the same images and the same OCI runtime,
// and any other CRI socket that is named.
package runtimes

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

// Options say how much is measured, and beside whom.
type Options struct {
	// Pods is how many pods of each peer the latency of verbs is taken from.
	Pods int
	// Parallel are the numbers of pods started at once.
	Parallel numbers
	// Density are the numbers of pods present, in order.
	Density numbers
	// Churn is how many pods nodeagent makes and removes; the others make
	// ChurnPeers, for they take minutes.
	Churn, ChurnPeers int
	// Pulls is how often each image is pulled.
	Pulls int
	// Rest is how many seconds a node at rest is watched.
	Rest int
	// OCI is another OCI runtime, measured beside runc; by default crun, if it
	// is installed.
	OCI string
	// Sockets are further CRI runtimes of this machine, as name=socket.
	Sockets words
}

// Default is the full measurement.
func Default() Options {
	return Options{
		Pods: 40, Parallel: numbers{1, 2, 4, 8, 16}, Density: numbers{0, 60, 110, 0},
		Churn: 1000, ChurnPeers: 60, Pulls: 3, Rest: 10, OCI: "crun",
	}
}

// Quick is enough to see that everything works.
func (o *Options) Quick() {
	o.Pods, o.Parallel, o.Density, o.Churn, o.ChurnPeers, o.Pulls, o.Rest = 4, numbers{1, 4}, numbers{0, 8}, 24, 8, 1, 2
}

// Flags adds the options to a command line.
func (o *Options) Flags(fs *flag.FlagSet) {
	fs.IntVar(&o.Pods, "n", o.Pods, "cri: pods of each peer for the latency of verbs")
	fs.Var(&o.Parallel, "parallel", "cri: numbers of pods started at once")
	fs.Var(&o.Density, "density", "density: numbers of pods present, in order")
	fs.IntVar(&o.Churn, "churn", o.Churn, "churn: pods that nodeagent makes and removes")
	fs.IntVar(&o.ChurnPeers, "churn-peers", o.ChurnPeers, "churn: pods that its peers do")
	fs.IntVar(&o.Pulls, "pulls", o.Pulls, "pull: pulls of each image")
	fs.IntVar(&o.Rest, "rest", o.Rest, "density: seconds that a node at rest is watched")
	fs.StringVar(&o.OCI, "oci", o.OCI, "cri: another OCI runtime to measure beside runc, if it is there")
	fs.Var(&o.Sockets, "socket", "cri: another CRI runtime of this machine, NAME=SOCKET; separated by commas")
}

type numbers []int

// String prints the numbers as Set reads them.
func (n *numbers) String() string {
	if n == nil {
		return ""
	}
	out := make([]string, 0, len(*n))
	for _, v := range *n {
		out = append(out, strconv.Itoa(v))
	}
	return strings.Join(out, ",")
}

// Set reads "1,2,4".
func (n *numbers) Set(list string) error {
	*n = nil
	for s := range strings.SplitSeq(list, ",") {
		if s == "" {
			continue
		}
		v, err := strconv.Atoi(s)
		if err != nil {
			return err
		}
		*n = append(*n, v)
	}
	return nil
}

type words []string

// String prints the words as Set reads them.
func (w *words) String() string {
	if w == nil {
		return ""
	}
	return strings.Join(*w, ",")
}

// Set reads "a=b,c=d".
func (w *words) Set(list string) error {
	*w = nil
	for s := range strings.SplitSeq(list, ",") {
		if name, socket, ok := strings.Cut(s, "="); !ok || name == "" || socket == "" {
			return fmt.Errorf("%q is not NAME=SOCKET", s)
		}
		*w = append(*w, s)
	}
	return nil
}

// start starts the nodes and connects to their runtimes; the last is the base.
func (o *Options) start(ctx context.Context, r *lab.Run, args ...string) (_ []*peer, _ func() error, retErr error) {
	l, err := lab.Start(ctx, r.Config, "bench", "runtimes", args...)
	if err != nil {
		return nil, nil, err
	}
	var peers []*peer
	end := func() error {
		var errs []error
		for _, p := range peers {
			errs = append(errs, p.conn.Close())
		}
		return errors.Join(append(errs, l.Close())...)
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, end())
		}
	}()
	for _, p := range o.peers(l) {
		if err := p.connect(ctx); err != nil {
			return nil, nil, err
		}
		if _, err := p.pull(ctx, image); err != nil {
			return nil, nil, errors.Join(err, p.conn.Close())
		}
		// Not every OCI runtime takes what every runtime writes.
		if err := p.cycle(ctx, "first", times{}); err != nil && p.handler != "" {
			fmt.Fprintf(os.Stderr, "  left out: %v\n", err)
			continue
		}
		peers = append(peers, p)
	}
	return peers, end, nil
}

// other is the other OCI runtime; empty when there is none.
func (o *Options) other() string {
	if o.OCI == "" {
		return ""
	}
	path, err := exec.LookPath(o.OCI)
	if err != nil {
		fmt.Fprintf(os.Stderr, "  left out: %v\n", err)
		return ""
	}
	return path
}

// with is the name of a peer with another OCI runtime.
func with(peer, oci string) string { return peer + ", " + filepath.Base(oci) }

func (o *Options) peers(l *lab.Lab) []*peer {
	agent, theirs := l.Boxes["node1"], l.Boxes["node2"]
	out := []*peer{{name: lab.Nodeagent, socket: "/run/nodeagent/cri.sock", box: agent}}
	for _, s := range o.Sockets {
		name, socket, _ := strings.Cut(s, "=")
		out = append(out, &peer{name: name, socket: socket})
	}
	if l.Has("oci") {
		out = append(out,
			&peer{name: with(lab.Nodeagent, o.OCI), socket: "/run/nodeagent/cri.sock", box: agent, handler: "other"},
			&peer{name: with(lab.Containerd, o.OCI), socket: "/run/containerd/containerd.sock", box: theirs, handler: "other"})
	}
	return append(out, &peer{name: lab.Containerd, socket: "/run/containerd/containerd.sock", box: theirs})
}
