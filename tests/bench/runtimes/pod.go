// SPDX-License-Identifier: Apache-2.0

package runtimes

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// image is what measured pods run; its first line is waited for.
const (
	image   = "registry.k8s.io/e2e-test-images/busybox:1.37.0-1"
	script  = "echo up; exec sleep 1000000"
	logRoot = "/var/log/pods/bench"
)

// pod is one pod's life, driven as the kubelet drives it.
type pod struct {
	p         *peer
	sandbox   *runtimeapi.PodSandboxConfig
	container *runtimeapi.ContainerConfig
	sandboxID string
	id        string
}

func (p *peer) newPod(name string) *pod {
	who := strings.ReplaceAll(p.name, ", ", "-")
	seccomp := &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	namespaces := &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}
	return &pod{
		p: p,
		sandbox: &runtimeapi.PodSandboxConfig{
			Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: "uid-" + who + name},
			Hostname:     name,
			LogDirectory: filepath.Join(logRoot, who, name),
			DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"127.0.0.1"}},
			Labels:       map[string]string{"bench": "1"},
			Linux: &runtimeapi.LinuxPodSandboxConfig{
				CgroupParent:    filepath.Join(p.cgroup(), who+"-"+name),
				SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{Seccomp: seccomp, NamespaceOptions: namespaces},
			},
		},
		container: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
			Image:    &runtimeapi.ImageSpec{Image: image},
			Command:  []string{"/bin/sh", "-c", script},
			LogPath:  "main/0.log",
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources:       &runtimeapi.LinuxContainerResources{OomScoreAdj: 900, MemoryLimitInBytes: 128 << 20},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{Seccomp: seccomp, NamespaceOptions: namespaces},
			},
		},
	}
}

// times are the durations of one pod's verbs, by name.
type times map[string]time.Duration

func (t times) measure(name string, f func() error) error {
	begin := time.Now()
	err := f()
	t[name] = time.Since(begin)
	if err != nil {
		return fmt.Errorf("%s: %w", name, err)
	}
	return nil
}

// start makes the pod and waits for its first log line.
func (d *pod) start(ctx context.Context, t times) error {
	if err := os.MkdirAll(d.p.path(filepath.Join(d.sandbox.LogDirectory, "main")), 0o755); err != nil {
		return fmt.Errorf("make log directory: %w", err)
	}
	begin := time.Now()
	steps := []struct {
		verb string
		call func() error
	}{
		{verbRun, func() error {
			r, err := d.p.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: d.sandbox, RuntimeHandler: d.p.handler})
			d.sandboxID = r.GetPodSandboxId()
			return err
		}},
		{verbCreate, func() error {
			r, err := d.p.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
				PodSandboxId: d.sandboxID, Config: d.container, SandboxConfig: d.sandbox,
			})
			d.id = r.GetContainerId()
			return err
		}},
		{verbStart, func() error {
			_, err := d.p.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: d.id})
			return err
		}},
	}
	for _, s := range steps {
		if err := t.measure(s.verb, s.call); err != nil {
			return err
		}
	}
	if err := d.firstLine(ctx); err != nil {
		return err
	}
	t[firstLine] = time.Since(begin)
	return nil
}

// firstLine waits until the log file holds something.
func (d *pod) firstLine(ctx context.Context) error {
	path := d.p.path(filepath.Join(d.sandbox.LogDirectory, d.container.LogPath))
	tick := time.NewTicker(500 * time.Microsecond)
	defer tick.Stop()
	for {
		if fi, err := os.Stat(path); err == nil && fi.Size() > 0 {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("wait for a line in %s: %w", path, ctx.Err())
		case <-tick.C:
		}
	}
}

// exec runs true in the container.
func (d *pod) exec(ctx context.Context, t times) error {
	return t.measure(verbExec, func() error {
		r, err := d.p.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: d.id, Cmd: []string{"/bin/true"}, Timeout: 30})
		if err == nil && r.ExitCode != 0 {
			err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Stderr)
		}
		return err
	})
}

// end stops and removes the pod, as far as it was made, and its logs. It goes
// on when ctx has ended.
func (d *pod) end(ctx context.Context, t times) error {
	if d.sandboxID == "" {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 2*time.Minute)
	defer cancel()
	err := t.measure(verbStop, func() error {
		_, err := d.p.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: d.sandboxID})
		return err
	})
	err = errors.Join(err, t.measure(verbRemove, func() error {
		_, err := d.p.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: d.sandboxID})
		return err
	}))
	return errors.Join(err, os.RemoveAll(d.p.path(d.sandbox.LogDirectory)), d.removeCgroup())
}

// removeCgroup removes the pod's cgroup, which is the kubelet's to make and remove.
func (d *pod) removeCgroup() error {
	dirs, err := filepath.Glob("/sys/fs/cgroup/*" + d.sandbox.Linux.CgroupParent)
	if err != nil {
		return err
	}
	dirs = append(dirs, "/sys/fs/cgroup"+d.sandbox.Linux.CgroupParent)
	for _, dir := range dirs {
		if err := os.Remove(dir); err != nil && !os.IsNotExist(err) {
			return fmt.Errorf("remove cgroup: %w", err)
		}
	}
	return nil
}

// cycle is a pod's whole life.
func (p *peer) cycle(ctx context.Context, name string, t times) error {
	ctx, cancel := context.WithTimeout(ctx, 2*time.Minute)
	defer cancel()
	d := p.newPod(name)
	err := d.start(ctx, t)
	if err == nil {
		err = d.exec(ctx, t)
	}
	if err = errors.Join(err, d.end(ctx, t)); err != nil {
		return fmt.Errorf("%s: %w", p.name, err)
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
