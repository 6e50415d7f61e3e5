// SPDX-License-Identifier: Apache-2.0

package runtimes

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	"github.com/nodeagent/nodeagent/tests/bench/figures"
	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

// Names of what is measured of a pod's life.
const (
	verbRun    = "RunPodSandbox"
	verbCreate = "CreateContainer"
	verbStart  = "StartContainer"
	firstLine  = "to the first log line"
	verbExec   = "ExecSync"
	verbStop   = "StopPodSandbox"
	verbRemove = "RemovePodSandbox"
	verbsEnd   = "StopPodSandbox and RemovePodSandbox"
	cpuNode    = "CPU of a pod's whole life, node's processes"
	cpuAll     = "CPU of a pod's whole life, whole machine"
)

// verbs in the order of a pod's life.
func verbs() []string {
	return []string{verbRun, verbCreate, verbStart, firstLine, verbExec, verbStop, verbRemove, verbsEnd}
}

// Groups of figures.
const (
	GroupVerbs    = "one pod after the other"
	groupParallel = "pods at once"
)

// VerbTargets are what the issues ask of MeasureVerbs.
func VerbTargets() []figures.Target {
	const us, them = lab.Nodeagent, lab.Containerd
	g := GroupVerbs
	return []figures.Target{
		{Name: "RunPodSandbox, median", Of: figures.Median(g, verbRun, us), Unit: "ms", Limit: 5},
		{Name: "RunPodSandbox, p99", Of: figures.At(g, verbRun, us, 0.99), Unit: "ms", Limit: 25},
		{Name: "first log line, to containerd's", Of: figures.Ratio(g, firstLine, us), Limit: 0.35},
		{
			Name: "first log line with the fastest OCI runtime, to containerd's with runc",
			Of:   fastest(figures.Ratio(g, firstLine, us), figures.Ratio(g, firstLine, with(us, "crun"))), Limit: 0.2,
		},
		{Name: "StopPodSandbox and RemovePodSandbox, median", Of: figures.Median(g, verbsEnd, us), Unit: "ms", Limit: 40},
		{Name: "ExecSync, to containerd's", Of: figures.Ratio(g, verbExec, us), Limit: 0.4},
		{Name: "ExecSync, median", Of: figures.Median(g, verbExec, us), Unit: "ms", Limit: 30},
		{Name: "CPU of a pod's life, to containerd's", Of: figures.Ratio(g, cpuAll, us), Limit: 0.35},
		{
			Name: "pods/s started 8 at a time, to containerd's", Limit: 4, Least: true,
			Of: figures.Over(figures.Median(groupParallel, started(8), us), figures.Median(groupParallel, started(8), them)),
		},
	}
}

// fastest is the smaller value, unknown when the other runtime was not measured.
func fastest(runc, other func(*figures.Area) float64) func(*figures.Area) float64 {
	return func(a *figures.Area) float64 { return min(runc(a), other(a)) }
}

func started(width int) string { return fmt.Sprintf("started %d at a time", width) }

// warmup pods of each peer are not counted.
const warmup = 2

// MeasureVerbs takes pods through their lives, one of each peer in turn, and then
// several at once.
func (o *Options) MeasureVerbs(ctx context.Context, r *lab.Run) (retErr error) {
	var args []string
	if oci := o.other(); oci != "" {
		args = []string{"--oci", oci}
	}
	peers, stop, err := o.start(ctx, r, args...)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, stop()) }()
	for i := range o.Pods + warmup {
		for _, p := range peers {
			if err := oneLife(ctx, r, p, i); err != nil {
				return err
			}
		}
		r.Progress("pods one after the other", i+1, o.Pods+warmup)
	}
	return o.throughput(ctx, r, peers)
}

func oneLife(ctx context.Context, r *lab.Run, p *peer, i int) error {
	t := times{}
	machine, err := lab.MachineCPU()
	if err != nil {
		return err
	}
	node, err := p.cpu()
	if err != nil {
		return err
	}
	if err := p.cycle(ctx, "life-"+strconv.Itoa(i), t); err != nil {
		return err
	}
	nodeAfter, err1 := p.cpu()
	machineAfter, err2 := lab.MachineCPU()
	if err := errors.Join(err1, err2); err != nil || i < warmup {
		return err
	}
	t[verbsEnd] = t[verbStop] + t[verbRemove]
	for _, v := range verbs() {
		r.Area.Duration(GroupVerbs, v, p.name, t[v])
	}
	r.Area.Duration(GroupVerbs, cpuAll, p.name, machineAfter-machine)
	if p.box != nil {
		r.Area.Duration(GroupVerbs, cpuNode, p.name, nodeAfter-node)
	}
	return nil
}

func (p *peer) cpu() (time.Duration, error) {
	if p.box == nil {
		return 0, nil
	}
	return p.box.CPU()
}

// throughput starts pods at growing parallelism, a batch of each peer in turn,
// and counts those that logged per second.
func (o *Options) throughput(ctx context.Context, r *lab.Run, peers []*peer) error {
	for i, width := range o.Parallel {
		for _, p := range peers {
			batch := max(16, 2*width)
			pods := make([]*pod, batch)
			for i := range pods {
				pods[i] = p.newPod(fmt.Sprintf("par%d-%d", width, i))
			}
			begin := time.Now()
			err := inParallel(width, pods, func(d *pod) error { return d.start(ctx, times{}) })
			took := time.Since(begin)
			end := time.Now()
			err = errors.Join(err, inParallel(width, pods, func(d *pod) error { return d.end(ctx, times{}) }))
			if err != nil {
				return fmt.Errorf("%s, %d at a time: %w", p.name, width, err)
			}
			r.Area.Add(groupParallel, started(width), "pods/s", p.name, float64(batch)/took.Seconds())
			r.Area.Add(groupParallel, fmt.Sprintf("ended %d at a time", width), "pods/s", p.name, float64(batch)/time.Since(end).Seconds())
		}
		r.Progress("pods at once", i+1, len(o.Parallel))
	}
	return nil
}
