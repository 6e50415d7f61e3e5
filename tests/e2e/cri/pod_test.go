// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// sleeper runs until it is told to end.
var sleeper = []string{"sh", "-c", "trap 'exit 0' TERM; while :; do sleep 3600 & wait; done"}

var serial atomic.Int64

// pod is a sandbox that goes with its test.
type pod struct {
	t      *testing.T
	id     string
	config *runtimeapi.PodSandboxConfig
}

// newPod runs a sandbox with a directory for logs; change may be nil.
func newPod(t *testing.T, change func(*runtimeapi.PodSandboxConfig)) *pod {
	t.Helper()
	return handledPod(t, "", change)
}

// newHandledPod is a pod of a runtime handler, whose containers have process namespaces of their own.
func newHandledPod(t *testing.T, handler string) *pod {
	t.Helper()
	return handledPod(t, handler, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_CONTAINER
	})
}

// podConfig is that of a pod with a name of its own.
func podConfig(change func(*runtimeapi.PodSandboxConfig)) *runtimeapi.PodSandboxConfig {
	name := fmt.Sprintf("pod%d", serial.Add(1))
	cfg := &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Uid: "uid-" + name, Namespace: "default"},
		LogDirectory: "/var/log/pods/" + name,
		Labels:       map[string]string{"test": name},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: cgroupParent, SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{}},
		},
	}
	if change != nil {
		change(cfg)
	}
	return cfg
}

// lacking wants a pod that this node cannot have to be refused with a reason, and nothing of it to be listed.
func lacking(t *testing.T, change func(*runtimeapi.PodSandboxConfig), reason string) {
	t.Helper()
	cfg := podConfig(change)
	_, err := rs.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), reason) {
		t.Errorf("run sandbox: %v", err)
	}
	list, err := rs.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{
		Filter: &runtimeapi.PodSandboxFilter{LabelSelector: cfg.GetLabels()},
	})
	if err != nil || len(list.GetItems()) != 0 {
		t.Errorf("sandboxes %v, %v", list.GetItems(), err)
	}
}

func handledPod(t *testing.T, handler string, change func(*runtimeapi.PodSandboxConfig)) *pod {
	t.Helper()
	cfg := podConfig(change)
	if err := node.WriteFile(cfg.LogDirectory+"/.keep", nil); err != nil {
		t.Fatal(err)
	}
	r, err := rs.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg, RuntimeHandler: handler})
	if err != nil {
		t.Fatalf("run sandbox: %v", err)
	}
	p := &pod{t: t, id: r.GetPodSandboxId(), config: cfg}
	t.Cleanup(func() {
		ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
		defer cancel()
		if _, err := rs.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Errorf("stop sandbox: %v", err)
		}
		if _, err := rs.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: p.id}); err != nil {
			t.Errorf("remove sandbox: %v", err)
		}
	})
	return p
}

// create creates a container, by default of busybox that sleeps.
func (p *pod) create(change func(*runtimeapi.ContainerConfig)) (string, *runtimeapi.ContainerConfig, error) {
	name := fmt.Sprintf("c%d", serial.Add(1))
	cfg := &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name}, Image: &runtimeapi.ImageSpec{Image: cluster.BusyboxImage},
		Command: sleeper, LogPath: name + ".log",
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: p.config.GetLinux().GetSecurityContext().GetNamespaceOptions(), Capabilities: &runtimeapi.Capability{},
			},
		},
	}
	if change != nil {
		change(cfg)
	}
	r, err := rs.CreateContainer(p.t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: p.id, Config: cfg, SandboxConfig: p.config})
	return r.GetContainerId(), cfg, err
}

// start creates and starts a container.
func (p *pod) start(change func(*runtimeapi.ContainerConfig)) (string, *runtimeapi.ContainerConfig) {
	p.t.Helper()
	id, cfg, err := p.create(change)
	if err == nil {
		_, err = rs.StartContainer(p.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	}
	if err != nil {
		p.t.Fatalf("start container: %v", err)
	}
	return id, cfg
}

func (p *pod) status(id string) *runtimeapi.ContainerStatus {
	p.t.Helper()
	r, err := rs.ContainerStatus(p.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		p.t.Fatal(err)
	}
	return r.GetStatus()
}

// exited waits for a container's end.
func (p *pod) exited(id string) *runtimeapi.ContainerStatus {
	p.t.Helper()
	p.eventually(func() error {
		if s := p.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED {
			return fmt.Errorf("container is %s", s.GetState())
		}
		return nil
	})
	return p.status(id)
}

func (p *pod) eventually(cond func() error) {
	p.t.Helper()
	ctx, cancel := context.WithTimeout(p.t.Context(), 2*time.Minute)
	defer cancel()
	if err := cluster.WaitFor(ctx, func(context.Context) error { return cond() }); err != nil {
		p.t.Fatal(err)
	}
}

// lines are a container's log as the kubelet finds it.
func (p *pod) lines(path string) []string {
	p.t.Helper()
	data, err := node.ReadFile(filepath.Join(p.config.GetLogDirectory(), path))
	if err != nil {
		p.t.Fatal(err)
	}
	return strings.Split(strings.TrimSuffix(string(data), "\n"), "\n")
}

// log is what a container wrote, both streams together.
func (p *pod) log(path string) string {
	p.t.Helper()
	var out strings.Builder
	for _, l := range p.lines(path) {
		f := strings.SplitN(l, " ", 4)
		if len(f) == 4 {
			out.WriteString(f[3])
			if f[2] == "F" {
				out.WriteByte('\n')
			}
		}
	}
	return out.String()
}

// exec runs a command in a container and returns both outputs and its exit code.
func (p *pod) exec(id string, cmd ...string) (string, string, int32) {
	p.t.Helper()
	r, err := rs.ExecSync(p.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: cmd, Timeout: 30})
	if err != nil {
		p.t.Fatalf("exec %q: %v", cmd, err)
	}
	return string(r.GetStdout()), string(r.GetStderr()), r.GetExitCode()
}

// sh runs a script that has to succeed and returns its trimmed output.
func (p *pod) sh(id, script string) string {
	p.t.Helper()
	out, errOut, code := p.exec(id, "sh", "-c", script)
	if code != 0 {
		p.t.Fatalf("%s: exit code %d: %s%s", script, code, out, errOut)
	}
	return strings.TrimSpace(out)
}

// fails runs a script that must not succeed, for that reason.
func (p *pod) fails(id, script, reason string) {
	p.t.Helper()
	out, errOut, code := p.exec(id, "sh", "-c", script)
	if code == 0 || !strings.Contains(out+errOut, reason) {
		p.t.Errorf("%s: exit code %d: %q, want %q", script, code, out+errOut, reason)
	}
}
