// SPDX-License-Identifier: Apache-2.0

package plugins

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"time"

	"github.com/nodeagent/nodeagent/tests/bench/figures"
	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

// Options say how much is measured.
type Options struct {
	// Pods is how many pods one after the other, Burst how many 20 at a time.
	Pods, Burst int
	// InProcess is how many attaches without the program are measured.
	InProcess int
}

// Default is the full measurement.
func Default() Options { return Options{Pods: 40, Burst: 100, InProcess: 40} }

// Quick is enough to see that everything works.
func (o *Options) Quick() { o.Pods, o.Burst, o.InProcess = 5, 20, 5 }

// Flags adds the options to a command line.
func (o *Options) Flags(fs *flag.FlagSet) {
	fs.IntVar(&o.Pods, "cni-pods", o.Pods, "cni: pods one after the other")
	fs.IntVar(&o.Burst, "cni-burst", o.Burst, "cni: pods 20 at a time")
	fs.IntVar(&o.InProcess, "cni-attaches", o.InProcess, "cni: attaches in process, for each mean")
}

// Group holds the verbs; groupInside what needs no program.
const (
	Group       = "through the program"
	groupInside = "in process"
)

// Figures and the peer.
const (
	add      = "ADD"
	del      = "DEL"
	version  = "VERSION: the program alone"
	parallel = "ADD, 20 at a time"
	attach   = "attach"
	claim    = "attach of a warm namespace"
	bridge   = "bridge, host-local, portmap"
)

// Targets are what the issues ask.
func Targets() []figures.Target {
	us := lab.Nodeagent
	return []figures.Target{
		{Name: "ADD, median", Of: figures.Median(Group, add, us), Unit: "ms", Limit: 8},
		{Name: "DEL, median", Of: figures.Median(Group, del, us), Unit: "ms", Limit: 8},
		{Name: "the program's own time, median", Of: figures.Median(Group, version, us), Unit: "ms", Limit: 3},
		{Name: "ADD, 20 at a time", Of: figures.Median(Group, parallel, us), Unit: "pods/s", Limit: 150, Least: true},
		{Name: "attach in process", Of: figures.Median(groupInside, attach, us), Unit: "ms", Limit: 5},
		{Name: "attach of a warm namespace", Of: figures.Median(groupInside, claim, us), Unit: "ms", Limit: 1},
	}
}

// network is one plugin under measurement.
type network struct {
	name string
	*Caller
}

// Measure attaches and detaches pods of each network in turn.
func (o *Options) Measure(ctx context.Context, r *lab.Run) (retErr error) {
	l, err := lab.Start(ctx, r.Config, "bench", "boxes", "--nodes", "2")
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, l.Close()) }()
	cidr := netip.MustParsePrefix("10.250.0.0/16")
	if _, err := r.Agent(ctx, l.Boxes["node1"], map[string]any{
		"network": map[string]any{"podCIDRs": []string{cidr.String()}},
	}); err != nil {
		return err
	}
	ours, err := Agent(r, l.Boxes["node1"])
	if err != nil {
		return err
	}
	theirs, err := Bridge(r, l.Boxes["node2"], cidr)
	if err != nil {
		return errors.Join(err, ours.Close())
	}
	all := []network{{lab.Nodeagent, ours}, {bridge, theirs}}
	err = errors.Join(o.oneByOne(ctx, r, all), ours.Close(), theirs.Close())
	if err != nil {
		return err
	}
	return o.inProcess(ctx, r)
}

func (o *Options) oneByOne(ctx context.Context, r *lab.Run, all []network) error {
	for i := range o.Pods + 2 {
		for _, n := range all {
			took := map[string]time.Duration{}
			for verb, name := range map[string]string{"version": version} {
				a, err := n.ask(request{Verb: verb, IDs: []string{"none"}})
				if err != nil {
					return err
				}
				took[name] = a.Took[0]
			}
			for _, verb := range []struct{ verb, name string }{{"add", add}, {"del", del}} {
				a, err := n.ask(request{Verb: verb.verb, IDs: []string{fmt.Sprint("one-", i)}})
				if err != nil {
					return err
				}
				took[verb.name] = a.Took[0]
			}
			if i < 2 { // the first one makes bridges and tables
				continue
			}
			for _, name := range []string{add, del, version} {
				r.Area.Duration(Group, name, n.name, took[name])
			}
		}
		if err := ctx.Err(); err != nil {
			return err
		}
		r.Progress("one after the other", i+1, o.Pods+2)
	}
	const rounds = 3
	for i := range rounds {
		for _, n := range all {
			req := request{Verb: "add", Width: 20}
			for j := range o.Burst {
				req.IDs = append(req.IDs, fmt.Sprint("burst-", i, "-", j))
			}
			a, err := n.ask(req)
			if err != nil {
				return err
			}
			r.Area.Add(Group, parallel, "pods/s", n.name, float64(o.Burst)/a.All.Seconds())
			req.Verb = "del"
			if a, err = n.ask(req); err != nil {
				return err
			}
			r.Area.Add(Group, "DEL, 20 at a time", "pods/s", n.name, float64(o.Burst)/a.All.Seconds())
		}
		r.Progress("20 at a time", i+1, rounds)
	}
	return ctx.Err()
}

// inProcess runs the room's own benchmark: attach and claim as our CRI calls
// them. Go reports means; each sample is one.
func (o *Options) inProcess(ctx context.Context, r *lab.Run) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", "BenchmarkRootAttach/(attach|claim)",
		"-benchtime", fmt.Sprint(o.InProcess, "x"), "-count", "5", "./cni")
	out, err := cmd.CombinedOutput()
	if err != nil {
		return fmt.Errorf("%v: %w: %s", cmd.Args, err, out)
	}
	for name, figure := range map[string]string{"attach": attach, "claim": claim} {
		found := regexp.MustCompile(`Attach/`+name+`\S*\s+\d+\s+([0-9.]+) ns/op`).FindAllSubmatch(out, -1)
		if len(found) == 0 {
			return fmt.Errorf("%v measured no %s: %s", cmd.Args, name, out)
		}
		for _, f := range found {
			ns, err := strconv.ParseFloat(string(f[1]), 64)
			if err != nil {
				return fmt.Errorf("read %s: %w", name, err)
			}
			r.Area.Duration(groupInside, figure, lab.Nodeagent, time.Duration(ns))
		}
	}
	return nil
}
