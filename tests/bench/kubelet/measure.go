// SPDX-License-Identifier: Apache-2.0

package kubelet

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"k8s.io/client-go/kubernetes"
	"k8s.io/client-go/tools/clientcmd"

	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

// Measure starts a cluster of two nodes and makes pods on both by turns.
func (o *Options) Measure(ctx context.Context, r *lab.Run) (retErr error) {
	l, err := lab.Start(ctx, r.Config, "bench", "up", "--nodes", "2", "--runtime", "both")
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, l.Close()) }()
	cfg, err := clientcmd.BuildConfigFromFlags("", l.Kubeconfig)
	if err != nil {
		return fmt.Errorf("read kubeconfig: %w", err)
	}
	cfg.QPS = -1 // the server's limits are enough
	client, err := kubernetes.NewForConfig(cfg)
	if err != nil {
		return fmt.Errorf("connect to the API server: %w", err)
	}
	p, err := watchPods(ctx, client)
	if err != nil {
		return err
	}
	defer p.stop()
	if err := o.oneByOne(ctx, r, p); err != nil {
		return err
	}
	if err := o.bursts(ctx, r, p); err != nil {
		return err
	}
	return o.rest(ctx, r, l)
}

func node(i int) string { return fmt.Sprint("node", i+1) }

func (o *Options) oneByOne(ctx context.Context, r *lab.Run, p *pods) error {
	const warmup = 2
	for i := range o.Pods + warmup {
		for n, peer := range peers {
			up, down, err := p.life(ctx, node(n), usual, fmt.Sprintf("one-%d-%d", n, i))
			if err != nil {
				return fmt.Errorf("%s: %w", peer, err)
			}
			if i < warmup { // the first one pulls the image
				continue
			}
			r.Area.Duration(GroupReady, ready, peer, up)
			r.Area.Duration(GroupReady, gone, peer, down)
			if i%2 == 1 {
				continue
			}
			if up, _, err = p.life(ctx, node(n), bare, fmt.Sprintf("bare-%d-%d", n, i)); err != nil {
				return fmt.Errorf("%s: %w", peer, err)
			}
			r.Area.Duration(GroupReady, readyBare, peer, up)
		}
		r.Progress("one after the other", i+1, o.Pods+warmup)
	}
	return nil
}

// life makes a pod and removes it, and says how long each took.
func (p *pods) life(ctx context.Context, node string, k kind, name string) (up, down time.Duration, err error) {
	if up, err = p.create(ctx, node, k, []string{name}); err != nil {
		return 0, 0, err
	}
	down, err = p.remove(ctx, []string{name})
	return up, down, err
}

// bursts leaves the pods of the last burst.
func (o *Options) bursts(ctx context.Context, r *lab.Run, p *pods) error {
	for i := range o.Bursts {
		for n, peer := range peers {
			var names []string
			for j := range o.Burst {
				names = append(names, fmt.Sprintf("burst-%d-%d-%d", n, i, j))
			}
			up, err := p.create(ctx, node(n), usual, names)
			if err != nil {
				return fmt.Errorf("%s: %w", peer, err)
			}
			r.Area.Duration(GroupReady, burst(o.Burst), peer, up)
			if i == o.Bursts-1 {
				continue
			}
			down, err := p.remove(ctx, names)
			if err != nil {
				return fmt.Errorf("%s: %w", peer, err)
			}
			r.Area.Duration(GroupReady, burstGone(o.Burst), peer, down)
		}
		r.Progress("bursts", i+1, o.Bursts)
	}
	return nil
}

// kinds are the figures of rest and the processes that belong to them.
var kinds = []struct {
	name  string
	comms []string
}{
	{atRest, []string{"nodeagent", "nodeagent-shim", "containerd", "containerd-shim"}},
	{"shims alone", []string{"nodeagent-shim", "containerd-shim"}},
	{"kubelet", []string{"kubelet"}},
	{"kube-proxy", []string{"kube-proxy"}},
}

// rest watches both nodes in the same seconds.
func (o *Options) rest(ctx context.Context, r *lab.Run, l *lab.Lab) error {
	if err := lab.Pause(ctx, 8*time.Second); err != nil { // the kubelets still work off the burst
		return err
	}
	var before [2]map[int]usage
	for n := range peers {
		var err error
		if before[n], err = look(l.Boxes[node(n)]); err != nil {
			return err
		}
	}
	begin := time.Now()
	if err := lab.Pause(ctx, time.Duration(o.Rest)*time.Second); err != nil {
		return err
	}
	took := time.Since(begin)
	for n, peer := range peers {
		after, err := look(l.Boxes[node(n)])
		if err != nil {
			return err
		}
		for _, k := range kinds {
			var cpu time.Duration
			found := false
			var rss, pss float64
			for pid, u := range after {
				if slices.Contains(k.comms, u.Name) {
					found = true
					cpu += u.cpu - before[n][pid].cpu
					rss, pss = rss+float64(u.RSS)/1e6, pss+float64(u.PSS)/1e6
				}
			}
			if !found {
				continue // nodeagent needs no kube-proxy
			}
			r.Area.Add(groupRest(o.Burst), k.name, "% of a core", peer, 100*float64(cpu)/float64(took))
			r.Area.Add(groupRest(o.Burst), k.name+", RSS", "MB", peer, rss)
			r.Area.Add(groupRest(o.Burst), k.name+", PSS", "MB", peer, pss)
		}
	}
	return nil
}

type usage struct {
	lab.Process
	cpu time.Duration
}

func look(b *lab.Box) (map[int]usage, error) {
	all, err := b.Processes("sleep", "sh", "cluster")
	if err != nil {
		return nil, err
	}
	out := map[int]usage{}
	for _, p := range all {
		cpu, err := lab.Threads(p.PID)
		if err == nil {
			out[p.PID] = usage{p, cpu}
		}
	}
	return out, nil
}
