// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxMessage is the size of the largest answer, in bytes; the kubelet's own.
const maxMessage = 16 << 20

// peer is one CRI runtime under measurement.
type peer struct {
	name   string
	socket string
	// pid is a process of the peer's PID namespace; 0 when it has none of its
	// own, and then no memory is measured.
	pid int
	// cgroup is the parent of the pods' cgroups.
	cgroup string

	conn    *grpc.ClientConn
	runtime runtimeapi.RuntimeServiceClient
	images  runtimeapi.ImageServiceClient
}

// parsePeer reads "name=socket[,pid[,cgroup]]".
func parsePeer(arg string) (*peer, error) {
	name, rest, ok := strings.Cut(arg, "=")
	if !ok || name == "" {
		return nil, fmt.Errorf("--peer %q is not name=socket[,pid[,cgroup]]", arg)
	}
	fields := strings.Split(rest, ",")
	p := &peer{name: name, socket: fields[0], cgroup: "/bench"}
	if len(fields) > 1 {
		n, err := strconv.Atoi(fields[1])
		if err != nil {
			return nil, fmt.Errorf("--peer %q: process: %w", arg, err)
		}
		p.pid = n
	}
	if len(fields) > 2 {
		p.cgroup = fields[2]
	}
	return p, nil
}

func (p *peer) connect(ctx context.Context) error {
	target := p.socket
	if p.pid != 0 { // the socket is in the peer's mount namespace
		target = filepath.Join("/proc", strconv.Itoa(p.pid), "root", p.socket)
	}
	conn, err := grpc.NewClient("unix://"+target,
		grpc.WithTransportCredentials(insecure.NewCredentials()),
		grpc.WithDefaultCallOptions(grpc.MaxCallRecvMsgSize(maxMessage)))
	if err != nil {
		return fmt.Errorf("connect to %s: %w", p.name, err)
	}
	p.conn = conn
	p.runtime = runtimeapi.NewRuntimeServiceClient(conn)
	p.images = runtimeapi.NewImageServiceClient(conn)
	v, err := p.runtime.Version(ctx, &runtimeapi.VersionRequest{}, grpc.WaitForReady(true))
	if err != nil {
		return fmt.Errorf("ask %s for its version: %w", p.name, err)
	}
	fmt.Printf("%s: %s %s\n", p.name, v.RuntimeName, v.RuntimeVersion)
	return nil
}

// pull makes sure that the image is there.
func (p *peer) pull(ctx context.Context, ref string) error {
	_, err := p.images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		return fmt.Errorf("%s: pull %s: %w", p.name, ref, err)
	}
	return nil
}

// path returns a path of the peer's mount namespace as seen from here.
func (p *peer) path(elem string) string {
	if p.pid == 0 {
		return elem
	}
	return filepath.Join("/proc", strconv.Itoa(p.pid), "root", elem)
}

// pod is one pod's life, driven as the kubelet drives it.
type pod struct {
	p         *peer
	sandbox   *runtimeapi.PodSandboxConfig
	container *runtimeapi.ContainerConfig
	sandboxID string
	id        string
}

// workload says what a measured pod runs.
type workload struct {
	image   string
	command []string
	// logs is a directory in the peer's mount namespace.
	logs string
}

func (p *peer) newPod(w workload, name string) *pod {
	logDir := filepath.Join(w.logs, p.name, name)
	return &pod{
		p: p,
		sandbox: &runtimeapi.PodSandboxConfig{
			Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "bench", Uid: "uid-" + name},
			Hostname:     name,
			LogDirectory: logDir,
			DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"127.0.0.1"}},
			Labels:       map[string]string{"bench": "1"},
			Linux: &runtimeapi.LinuxPodSandboxConfig{
				CgroupParent: filepath.Join(p.cgroup, name),
				SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
					Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
					NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				},
			},
		},
		container: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "main"},
			Image:    &runtimeapi.ImageSpec{Image: w.image},
			Command:  w.command,
			LogPath:  "main/0.log",
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{OomScoreAdj: 900, MemoryLimitInBytes: 128 << 20},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					Seccomp:          &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault},
					NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				},
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
	err := t.measure("RunPodSandbox", func() error {
		r, err := d.p.runtime.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: d.sandbox})
		d.sandboxID = r.GetPodSandboxId()
		return err
	})
	if err != nil {
		return err
	}
	err = t.measure("CreateContainer", func() error {
		r, err := d.p.runtime.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{
			PodSandboxId: d.sandboxID, Config: d.container, SandboxConfig: d.sandbox,
		})
		d.id = r.GetContainerId()
		return err
	})
	if err != nil {
		return err
	}
	err = t.measure("StartContainer", func() error {
		_, err := d.p.runtime.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: d.id})
		return err
	})
	if err != nil {
		return err
	}
	if err := d.firstLine(ctx); err != nil {
		return err
	}
	t["FirstLogLine"] = time.Since(begin)
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
	return t.measure("ExecSync", func() error {
		r, err := d.p.runtime.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: d.id, Cmd: []string{"/bin/true"}, Timeout: 30})
		if err == nil && r.ExitCode != 0 {
			err = fmt.Errorf("exit code %d: %s", r.ExitCode, r.Stderr)
		}
		return err
	})
}

// end stops and removes the pod, as far as it was made.
func (d *pod) end(ctx context.Context, t times) error {
	if d.sandboxID == "" {
		return nil
	}
	err := t.measure("StopPodSandbox", func() error {
		_, err := d.p.runtime.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: d.sandboxID})
		return err
	})
	return errors.Join(err, t.measure("RemovePodSandbox", func() error {
		_, err := d.p.runtime.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: d.sandboxID})
		return err
	}))
}
