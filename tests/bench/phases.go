// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"strconv"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// warmup pods of each peer are not counted.
const warmup = 2

// measureLatency takes one pod of each peer in turn through its whole life.
func measureLatency(ctx context.Context, o *options, r *report) error {
	for i := range o.n + warmup {
		for _, p := range o.peers {
			t := times{}
			before, err := busy()
			if err != nil {
				return err
			}
			if err := cycle(ctx, p, o.work, "lat-"+strconv.Itoa(i), t); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
			after, err := busy()
			if err != nil {
				return err
			}
			if i < warmup {
				continue
			}
			r.addTimes(p.name, t)
			r.add(p.name, "CPU per pod", "ms", (after-before)*1000)
		}
		progress("latency", i+1, o.n+warmup)
	}
	return nil
}

func cycle(ctx context.Context, p *peer, w workload, name string, t times) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	d := p.newPod(w, name)
	err := d.start(ctx, t)
	if err == nil {
		err = d.exec(ctx, t)
	}
	return errors.Join(err, d.end(context.WithoutCancel(ctx), t))
}

// measureThroughput starts pods at growing parallelism, a batch of each peer in
// turn, and counts those that logged per second.
func measureThroughput(ctx context.Context, o *options, r *report) error {
	for _, width := range o.parallel {
		batch := max(12, 2*width)
		for _, p := range o.peers {
			pods := make([]*pod, batch)
			for i := range pods {
				pods[i] = p.newPod(o.work, fmt.Sprintf("par%d-%d", width, i))
			}
			begin := time.Now()
			err := inParallel(width, pods, func(d *pod) error { return d.start(ctx, times{}) })
			took := time.Since(begin)
			end := time.Now()
			err = errors.Join(err, inParallel(width, pods, func(d *pod) error {
				return d.end(context.WithoutCancel(ctx), times{})
			}))
			if err != nil {
				return fmt.Errorf("%s at %d parallel: %w", p.name, width, err)
			}
			r.add(p.name, fmt.Sprintf("Started at %d parallel", width), "pods/s", float64(batch)/took.Seconds())
			r.add(p.name, fmt.Sprintf("Ended at %d parallel", width), "pods/s", float64(batch)/time.Since(end).Seconds())
		}
		progress("throughput", width, o.parallel[len(o.parallel)-1])
	}
	return nil
}

// inParallel calls f for each pod, width at a time, and joins the errors.
func inParallel(width int, pods []*pod, f func(*pod) error) error {
	var (
		wg   sync.WaitGroup
		mu   sync.Mutex // guards errs
		errs []error
		slot = make(chan struct{}, width)
	)
	for _, d := range pods {
		slot <- struct{}{}
		wg.Go(func() {
			defer func() { <-slot }()
			if err := f(d); err != nil {
				mu.Lock()
				errs = append(errs, err)
				mu.Unlock()
			}
		})
	}
	wg.Wait()
	return errors.Join(errs...)
}

// measureDensity holds pods on one peer after another, and measures lists,
// stats, single verbs, memory and the CPU burnt at rest among them.
func measureDensity(ctx context.Context, o *options, r *report) error {
	for _, p := range o.peers {
		var held []*pod
		for _, want := range o.density {
			var fresh []*pod
			for i := len(held); i < want; i++ {
				fresh = append(fresh, p.newPod(o.work, "hold-"+strconv.Itoa(i)))
			}
			if err := inParallel(4, fresh, func(d *pod) error { return d.start(ctx, times{}) }); err != nil {
				return fmt.Errorf("%s: hold %d pods: %w", p.name, want, err)
			}
			held = append(held, fresh...)
			if err := among(ctx, o, r, p, want); err != nil {
				return fmt.Errorf("%s with %d pods: %w", p.name, want, err)
			}
			progress("density "+p.name, want, o.density[len(o.density)-1])
		}
		err := inParallel(4, held, func(d *pod) error { return d.end(context.WithoutCancel(ctx), times{}) })
		if err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// atRest is how long an idle node is watched.
const atRest = 10 * time.Second

func among(ctx context.Context, o *options, r *report, p *peer, present int) error {
	suffix := fmt.Sprintf(" with %d pods", present)
	for range 20 {
		t := times{}
		if err := lists(ctx, p, t); err != nil {
			return err
		}
		for verb, d := range t {
			r.add(p.name, verb+suffix, "ms", ms(d))
		}
	}
	for i := range 5 {
		t := times{}
		if err := cycle(ctx, p, o.work, fmt.Sprintf("among%d-%d", present, i), t); err != nil {
			return err
		}
		for verb, d := range t {
			r.add(p.name, verb+suffix, "ms", ms(d))
		}
	}
	before, err := busy()
	if err != nil {
		return err
	}
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(atRest):
	}
	after, err := busy()
	if err != nil {
		return err
	}
	r.add(p.name, "CPU at rest"+suffix, "% of a core", (after-before)/atRest.Seconds()*100)
	if p.pid == 0 {
		return nil
	}
	m, err := p.memory("sleep", "sh")
	if err != nil {
		return err
	}
	for name, rss := range m.RSS {
		r.add(p.name, "RSS "+name+suffix, "MB", float64(rss)/1e6)
		r.add(p.name, "PSS "+name+suffix, "MB", float64(m.PSS[name])/1e6)
	}
	return nil
}

func lists(ctx context.Context, p *peer, t times) error {
	return errors.Join(
		t.measure("ListPodSandbox", func() error {
			_, err := p.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
			return err
		}),
		t.measure("ListContainers", func() error {
			_, err := p.runtime.ListContainers(ctx, &runtimeapi.ListContainersRequest{})
			return err
		}),
		t.measure("ListContainerStats", func() error {
			_, err := p.runtime.ListContainerStats(ctx, &runtimeapi.ListContainerStatsRequest{})
			return err
		}),
		t.measure("ListPodSandboxStats", func() error {
			_, err := p.runtime.ListPodSandboxStats(ctx, &runtimeapi.ListPodSandboxStatsRequest{})
			return err
		}),
		t.measure("ListPodSandboxMetrics", func() error {
			_, err := p.runtime.ListPodSandboxMetrics(ctx, &runtimeapi.ListPodSandboxMetricsRequest{})
			return err
		}),
	)
}

// measureChurn makes and removes many pods and checks that nothing is left.
func measureChurn(ctx context.Context, o *options, r *report) error {
	if o.churn == 0 {
		return nil
	}
	for _, p := range o.peers {
		pods := make([]*pod, o.churn)
		for i := range pods {
			pods[i] = p.newPod(o.work, "churn-"+strconv.Itoa(i))
		}
		begin := time.Now()
		err := inParallel(8, pods, func(d *pod) error {
			return errors.Join(d.start(ctx, times{}), d.end(context.WithoutCancel(ctx), times{}))
		})
		if err != nil {
			return fmt.Errorf("%s: churn: %w", p.name, err)
		}
		r.add(p.name, "Churn", "pods/s", float64(o.churn)/time.Since(begin).Seconds())
		left, err := p.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
		if err != nil {
			return fmt.Errorf("%s: churn: %w", p.name, err)
		}
		if len(left.Items) > 0 {
			return fmt.Errorf("%s: churn left %d sandboxes", p.name, len(left.Items))
		}
	}
	return nil
}
