// SPDX-License-Identifier: Apache-2.0

package runtimes

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/tests/bench/figures"
	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

// GroupMemory holds what processes use with pods present.
const GroupMemory = "memory and rest"

func present(pods int) string { return fmt.Sprintf("with %d pods", pods) }

// Names of figures of memory.
const (
	helpersPSS = "helper processes, PSS"
	helpersRSS = "helper processes, RSS"
	daemonsPSS = "daemons, PSS"
	daemonsRSS = "daemons, RSS"
	cpuAtRest  = "CPU at rest"
)

func among(name string, pods int) string { return name + " " + present(pods) }

// DensityTargets are what the issues ask of MeasureDensity.
func DensityTargets() []figures.Target {
	const us = lab.Nodeagent
	out := []figures.Target{
		{Name: "ListContainerStats with 60 pods", Of: figures.Median(present(60), listContainerStats, us), Unit: "ms", Limit: 5},
		{Name: "ListPodSandboxStats with 60 pods", Of: figures.Median(present(60), listSandboxStats, us), Unit: "ms", Limit: 5},
		{Name: "ListPodSandboxMetrics with 60 pods", Of: figures.Median(present(60), listMetrics, us), Unit: "ms", Limit: 20},
		{Name: "ListContainers with 60 pods", Of: figures.Median(present(60), listContainers, us), Unit: "ms", Limit: 1},
		{Name: "ExecSync with 60 pods", Of: figures.Median(present(60), verbExec, us), Unit: "ms", Limit: 30},
		{Name: "nodeagent's RSS with 60 pods", Of: figures.Median(GroupMemory, among("nodeagent, RSS", 60), us), Unit: "MB", Limit: 60},
		{
			Name: "helper processes' PSS with 110 pods, to containerd's", Limit: 0.5,
			Of: figures.Ratio(GroupMemory, among(helpersPSS, 110), us),
		},
		{
			Name: "helper processes' PSS per pod with 110 pods", Unit: "MB", Limit: 2.6,
			Of: figures.Over(figures.Median(GroupMemory, among(helpersPSS, 110), us), func(*figures.Area) float64 { return 110 }),
		},
		{
			Name: "daemons' RSS with 110 pods, to containerd's alone", Limit: 1,
			Of: figures.Ratio(GroupMemory, among(daemonsRSS, 110), us),
		},
	}
	for _, v := range verbs() {
		if v == verbsEnd {
			continue
		}
		out = append(out, figures.Target{
			Name: v + " with 110 pods, to that with none", Limit: 1.2,
			Of: figures.Over(figures.Median(present(110), v, us), figures.Median(present(0), v, us)),
		})
	}
	return out
}

// MeasureDensity holds pods on one peer after another, and measures lists, stats, a
// pod's life, memory and the CPU burnt at rest among them.
func (o *Options) MeasureDensity(ctx context.Context, r *lab.Run) (retErr error) {
	peers, stop, err := o.start(ctx, r)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, stop()) }()
	for _, p := range peers {
		if err := o.hold(ctx, r, p); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

func (o *Options) hold(ctx context.Context, r *lab.Run, p *peer) (retErr error) {
	var held []*pod
	defer func() {
		retErr = errors.Join(retErr, inParallel(4, held, func(d *pod) error { return d.end(ctx, times{}) }))
	}()
	if err := p.cycle(ctx, "warmup", times{}); err != nil {
		return err
	}
	for i, want := range o.Density {
		var fresh []*pod
		for n := len(held); n < want; n++ {
			fresh = append(fresh, p.newPod("hold-"+strconv.Itoa(n)))
		}
		if want < len(held) {
			if err := inParallel(4, held[want:], func(d *pod) error { return d.end(ctx, times{}) }); err != nil {
				return err
			}
			held = held[:want]
		}
		held = append(held, fresh...)
		if err := inParallel(4, fresh, func(d *pod) error { return d.start(ctx, times{}) }); err != nil {
			return fmt.Errorf("hold %d pods: %w", want, err)
		}
		if err := o.among(ctx, r, p, want); err != nil {
			return fmt.Errorf("%s: %w", present(want), err)
		}
		r.Progress(p.name, i+1, len(o.Density))
	}
	return nil
}

// livesAmong is how many pods live among those that are held.
const livesAmong = 12

func (o *Options) among(ctx context.Context, r *lab.Run, p *peer, pods int) error {
	group := present(pods)
	if pods > 0 {
		if err := p.lists(ctx, r, group); err != nil {
			return err
		}
	}
	for i := range livesAmong {
		t := times{}
		if err := p.cycle(ctx, fmt.Sprintf("among%d-%d", pods, i), t); err != nil {
			return err
		}
		for _, v := range verbs()[:len(verbs())-1] {
			r.Area.Duration(group, v, p.name, t[v])
		}
	}
	if p.box == nil {
		return nil
	}
	return o.atRest(ctx, r, p, pods)
}

// Lists and stats.
const (
	listSandboxes      = "ListPodSandbox"
	listContainers     = "ListContainers"
	listContainerStats = "ListContainerStats"
	listSandboxStats   = "ListPodSandboxStats"
	listMetrics        = "ListPodSandboxMetrics"
)

// A list is asked for at most listTimes, and not again after listBudget.
const (
	listTimes  = 20
	listBudget = 6 * time.Second
)

func (p *peer) lists(ctx context.Context, r *lab.Run, group string) error {
	calls := []struct {
		verb string
		call func() error
	}{
		{listSandboxes, func() error {
			_, err := p.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return err
		}},
		{listContainers, func() error {
			_, err := p.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return err
		}},
		{listContainerStats, func() error {
			_, err := p.runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return err
		}},
		{listSandboxStats, func() error {
			_, err := p.runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return err
		}},
		{listMetrics, func() error {
			_, err := p.runtime.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
			return err
		}},
	}
	for _, c := range calls {
		begin := time.Now()
		for range listTimes {
			t := times{}
			if err := t.measure(c.verb, c.call); err != nil {
				return err
			}
			r.Area.Duration(group, c.verb, p.name, t[c.verb])
			if time.Since(begin) > listBudget {
				break
			}
		}
	}
	return nil
}

// settle is how long a node is left alone before it counts as being at rest.
const settle = 2 * time.Second

// atRest measures memory, and the CPU time that goes by without calls.
func (o *Options) atRest(ctx context.Context, r *lab.Run, p *peer, pods int) error {
	if err := lab.Pause(ctx, settle); err != nil {
		return err
	}
	before, err := p.box.CPU()
	if err != nil {
		return err
	}
	rest := time.Duration(o.Rest) * time.Second
	if err := lab.Pause(ctx, rest); err != nil {
		return err
	}
	after, err := p.box.CPU()
	if err != nil {
		return err
	}
	r.Area.Add(GroupMemory, among(cpuAtRest, pods), "% of a core", p.name, float64(after-before)/float64(rest)*100)
	all, err := p.box.Processes("sleep", "sh", "cluster")
	if err != nil {
		return err
	}
	sums := map[string]float64{}
	for _, q := range all {
		kind, rss, pss := "helpers", float64(q.RSS)/1e6, float64(q.PSS)/1e6
		if q.Name == "nodeagent" || q.Name == "containerd" {
			kind = "daemons"
			sums[q.Name+", RSS"] += rss
		}
		sums[kind+" RSS"] += rss
		sums[kind+" PSS"] += pss
	}
	add := func(name, sum string) {
		r.Area.Add(GroupMemory, among(name, pods), "MB", p.name, sums[sum])
	}
	add(daemonsRSS, "daemons RSS")
	add(daemonsPSS, "daemons PSS")
	if p.name == lab.Nodeagent {
		add("nodeagent, RSS", "nodeagent, RSS")
	}
	if pods > 0 {
		add(helpersRSS, "helpers RSS")
		add(helpersPSS, "helpers PSS")
	}
	return nil
}
