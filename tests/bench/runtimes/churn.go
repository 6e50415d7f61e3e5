// SPDX-License-Identifier: Apache-2.0

package runtimes

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/tests/bench/figures"
	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

const groupChurn = "pods made and removed, 8 at a time"

// leftover is how many things of a churn's pods are still there.
const leftover = "things left"

// ChurnTargets are what the issues ask of MeasureChurn.
func ChurnTargets() []figures.Target {
	return []figures.Target{{
		Name: "left of 1,000 pods: processes, mounts, links, cgroups, snapshots, leases, files",
		Of:   figures.Median(groupChurn, leftover, lab.Nodeagent), Limit: 0,
	}}
}

// MeasureChurn makes and removes many pods and counts what is left of them.
func (o *Options) MeasureChurn(ctx context.Context, r *lab.Run) (retErr error) {
	peers, stop, err := o.start(ctx, r)
	if err != nil {
		return err
	}
	defer func() { retErr = errors.Join(retErr, stop()) }()
	for _, p := range peers {
		count := o.ChurnPeers
		if p.name == lab.Nodeagent {
			count = o.Churn
		}
		if err := p.churn(ctx, r, count); err != nil {
			return fmt.Errorf("%s: churn: %w", p.name, err)
		}
	}
	return nil
}

func (p *peer) churn(ctx context.Context, r *lab.Run, count int) error {
	for i := range 8 { // what is made once is there before the census
		if err := p.cycle(ctx, "first-"+strconv.Itoa(i), times{}); err != nil {
			return err
		}
	}
	if err := lab.Pause(ctx, settle); err != nil {
		return err
	}
	before, err := p.census(ctx, r)
	if err != nil {
		return err
	}
	begin := time.Now()
	const batch = 100
	for done := 0; done < count; done += batch {
		pods := make([]*pod, min(batch, count-done))
		for i := range pods {
			pods[i] = p.newPod("churn-" + strconv.Itoa(done+i))
		}
		err := inParallel(8, pods, func(d *pod) error { return errors.Join(d.start(ctx, times{}), d.end(ctx, times{})) })
		if err != nil {
			return err
		}
		r.Progress(p.name, done+len(pods), count)
	}
	r.Area.Add(groupChurn, "pods", "", p.name, float64(count))
	r.Area.Add(groupChurn, "rate", "pods/s", p.name, float64(count)/time.Since(begin).Seconds())
	left, err := p.left(ctx, r, before)
	if err != nil {
		return err
	}
	for _, l := range left {
		fmt.Fprintf(os.Stderr, "  %s: left: %s\n", p.name, l)
	}
	r.Area.Add(groupChurn, leftover, "", p.name, float64(len(left)))
	return nil
}

// teardown is how long a runtime may take to tidy up in the background.
const teardown = 90 * time.Second

// left returns what there is more of than before, when that no longer shrinks.
func (p *peer) left(ctx context.Context, r *lab.Run, before map[string][]string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, teardown)
	defer cancel()
	var left []string
	err := lab.Until(ctx, time.Second, func() error {
		now, err := p.census(ctx, r)
		if err != nil {
			return err
		}
		left = nil
		for _, kind := range slices.Sorted(maps.Keys(now)) {
			more := slices.DeleteFunc(slices.Clone(now[kind]), func(s string) bool { return slices.Contains(before[kind], s) })
			// A warm pool is as large as before, of other things.
			for _, thing := range more[:max(0, min(len(more), len(now[kind])-len(before[kind])))] {
				left = append(left, kind+" "+thing)
			}
		}
		if len(left) > 0 {
			return fmt.Errorf("%d things are left", len(left))
		}
		return nil
	})
	if err != nil && left == nil {
		return nil, err
	}
	return left, nil
}

// census lists what pods are made of.
func (p *peer) census(ctx context.Context, r *lab.Run) (map[string][]string, error) {
	out := map[string][]string{}
	sandboxes, err := p.runtime.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		return nil, err
	}
	for _, s := range sandboxes.Items {
		out["sandbox"] = append(out["sandbox"], s.Id)
	}
	if p.box == nil {
		return out, nil
	}
	procs, err := p.box.Processes()
	if err != nil {
		return nil, err
	}
	for _, q := range procs {
		out["process"] = append(out["process"], fmt.Sprint(q.PID, " ", q.Name))
	}
	mounts, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", p.box.PID))
	if err != nil {
		return nil, err
	}
	for line := range strings.Lines(string(mounts)) {
		out["mount"] = append(out["mount"], strings.Fields(line)[4])
	}
	for _, dir := range []string{"/run", "/var/lib/nodeagent", "/var/lib/containerd/io.containerd.grpc.v1.cri"} {
		out["file"] = append(out["file"], tree(p.box.Path(dir), false)...)
	}
	hierarchies, err := filepath.Glob("/sys/fs/cgroup/*/" + p.box.Group)
	if err != nil {
		return nil, err
	}
	for _, h := range append(hierarchies, "/sys/fs/cgroup/"+p.box.Group) {
		out["cgroup"] = append(out["cgroup"], tree(h, true)...)
	}
	ctr := filepath.Join(r.Tools, "ctr") + " -a /run/containerd/containerd.sock -n k8s.io "
	for kind, script := range map[string]string{
		"link": "ip -o link | cut -d: -f2", "container": ctr + "containers ls -q", "task": ctr + "tasks ls -q",
		"snapshot": ctr + "snapshots ls | tail -n +2 | cut -d' ' -f1", "lease": ctr + "leases ls -q",
	} {
		text, err := p.box.Run(ctx, script)
		if err != nil {
			return nil, err
		}
		out[kind] = strings.Fields(text)
	}
	return out, nil
}

// tree lists what is below a directory; what goes meanwhile does not count.
func tree(dir string, dirsOnly bool) []string {
	var out []string
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return nil //nolint:nilerr // it went meanwhile
		}
		if dirsOnly && !d.IsDir() {
			return nil
		}
		if d.IsDir() && d.Name() == "rootfs" {
			return fs.SkipDir // the pod's own files
		}
		out = append(out, path)
		return nil
	})
	return out
}
