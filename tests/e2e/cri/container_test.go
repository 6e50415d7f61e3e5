// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestLife(t *testing.T) {
	p := newPod(t, nil)
	id, cfg, err := p.create(func(c *runtimeapi.ContainerConfig) {
		c.Command, c.Labels, c.Annotations = []string{"sh", "-c", "exit 7"}, map[string]string{"a": "b"}, map[string]string{"c": "d"}
	})
	if err != nil {
		t.Fatal(err)
	}
	s := p.status(id)
	if s.GetState() != runtimeapi.ContainerState_CONTAINER_CREATED || s.GetMetadata().GetName() != cfg.GetMetadata().GetName() || s.GetLabels()["a"] != "b" || s.GetAnnotations()["c"] != "d" {
		t.Errorf("created: %v", s)
	}
	start := func() error {
		_, err := rs.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
		return err
	}
	if err := start(); err != nil {
		t.Fatal(err)
	}
	s = p.exited(id)
	if s.GetExitCode() != 7 || s.GetStartedAt() == 0 || s.GetFinishedAt() < s.GetStartedAt() || s.GetReason() != "Error" {
		t.Errorf("exited: %v", s)
	}
	if err := start(); err == nil {
		t.Error("an exited container is started again")
	}
	twice(t, "stop container", func(ctx context.Context) error {
		_, err := rs.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 5})
		return err
	})
	twice(t, "remove container", func(ctx context.Context) error {
		_, err := rs.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
		return err
	})
	twice(t, "stop sandbox", func(ctx context.Context) error {
		_, err := rs.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id})
		return err
	})
	r, err := rs.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id})
	if err != nil || r.GetStatus().GetState() != runtimeapi.PodSandboxState_SANDBOX_NOTREADY {
		t.Errorf("stopped sandbox: %v, %v", r, err)
	}
}

// twice makes a call that may be repeated.
func twice(t *testing.T, what string, call func(context.Context) error) {
	t.Helper()
	for range 2 {
		if err := call(t.Context()); err != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
}

// TestStubborn stops a container that does not listen.
func TestStubborn(t *testing.T) {
	p := newPod(t, nil)
	id, _ := p.start(func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"sh", "-c", "trap '' TERM; touch /armed; while :; do sleep 1; done"}
	})
	p.eventually(func() error {
		if _, _, code := p.exec(id, "test", "-e", "/armed"); code != 0 {
			return errors.New("the trap is not set yet")
		}
		return nil
	})
	if _, err := rs.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
		t.Fatal(err)
	}
	if s := p.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_EXITED || s.GetExitCode() != 137 {
		t.Errorf("%s with exit code %d", s.GetState(), s.GetExitCode())
	}
}

func TestExecSync(t *testing.T) {
	p := newPod(t, nil)
	id, _ := p.start(nil)
	out, errOut, code := p.exec(id, "sh", "-c", "echo out; echo err >&2; exit 3")
	if out != "out\n" || errOut != "err\n" || code != 3 {
		t.Errorf("%q, %q, %d", out, errOut, code)
	}
	if out, errOut, _ := p.exec(id, "true"); out != "" || errOut != "" {
		t.Errorf("true writes %q, %q", out, errOut)
	}
	if _, err := rs.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sleep", "4321"}, Timeout: 1}); status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("after the timeout: %v", err)
	}
	p.eventually(func() error {
		if out, _, _ := p.exec(id, "sh", "-c", "ps | grep '[s]leep 4321'"); out != "" {
			return fmt.Errorf("after the timeout there is %s", out)
		}
		return nil
	})
	if r, err := rs.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"/not/there"}, Timeout: 5}); err == nil && r.GetExitCode() == 0 {
		t.Error("a program that is not there is run")
	}
}

// TestExecAtOnce writes to the log of a container that has just been started, as hooks do.
func TestExecAtOnce(t *testing.T) {
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_CONTAINER
	})
	for range 8 {
		id, cfg := p.start(nil)
		p.sh(id, "echo from a hook >>/proc/1/fd/1")
		p.eventually(func() error {
			if got := p.log(cfg.GetLogPath()); got != "from a hook\n" {
				return fmt.Errorf("log %q", got)
			}
			return nil
		})
	}
}

// logLine is what CRI demands of a line of a log.
var logLine = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d{1,9})?(Z|[+-]\d\d:\d\d) (stdout|stderr) [FP] `)

func TestLogs(t *testing.T) {
	p := newPod(t, nil)
	long := strings.Repeat("x", 40000)
	id, cfg := p.start(func(c *runtimeapi.ContainerConfig) {
		c.Command, c.Args = []string{"sh", "-c"}, []string{"echo one; echo; echo two >&2; printf " + long + "; printf 'no end'"}
	})
	p.exited(id)
	lines := p.lines(cfg.GetLogPath())
	for _, l := range lines {
		if !logLine.MatchString(l) {
			t.Errorf("odd line %.80q", l)
		}
	}
	tail := func(stream, tag string) (out string) {
		for _, l := range lines {
			if f := strings.SplitN(l, " ", 4); f[1] == stream && (tag == "" || f[2] == tag) {
				out += f[3]
			}
		}
		return out
	}
	if got := tail("stdout", ""); got != "one"+long+"no end" {
		t.Errorf("stdout has %d bytes", len(got))
	}
	if got := tail("stderr", "F"); got != "two" {
		t.Errorf("stderr has %q", got)
	}
	a, cfgA := p.start(func(c *runtimeapi.ContainerConfig) { c.Command = []string{"echo", "from a"} })
	b, cfgB := p.start(func(c *runtimeapi.ContainerConfig) { c.Command = []string{"echo", "from b"} })
	p.exited(a)
	p.exited(b)
	if p.log(cfgA.GetLogPath()) != "from a\n" || p.log(cfgB.GetLogPath()) != "from b\n" {
		t.Error("logs of two containers are mixed up")
	}
	tty, cfgT := p.start(func(c *runtimeapi.ContainerConfig) {
		c.Command, c.Tty = []string{"sh", "-c", "test -t 1 && echo on a terminal"}, true
	})
	p.exited(tty)
	if got := strings.TrimRight(p.log(cfgT.GetLogPath()), "\r\n"); got != "on a terminal" {
		t.Errorf("terminal: %q", got)
	}
}

func TestReopenedLog(t *testing.T) {
	p := newPod(t, nil)
	id, cfg := p.start(func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"sh", "-c", "i=0; while :; do i=$((i+1)); echo $i; usleep 20000; done"}
	})
	path := p.config.GetLogDirectory() + "/" + cfg.GetLogPath()
	has := func(file string, n int) func() error {
		return func() error {
			data, err := node.ReadFile(file)
			if err == nil && strings.Count(string(data), "\n") < n {
				err = fmt.Errorf("%s has %d lines", file, strings.Count(string(data), "\n"))
			}
			return err
		}
	}
	p.eventually(has(path, 3))
	if _, err := node.Run(t.Context(), "mv", path, path+".old"); err != nil {
		t.Fatal(err)
	}
	if _, err := rs.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	before, err := node.ReadFile(path + ".old")
	if err != nil {
		t.Fatal(err)
	}
	p.eventually(has(path, 3))
	after, err := node.ReadFile(path + ".old")
	if err != nil || len(after) != len(before) {
		t.Errorf("the old log went on after the call: %d, then %d bytes, %v", len(before), len(after), err)
	}
	if _, err := rs.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	if _, err := rs.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err == nil {
		t.Error("the log of a stopped container is reopened")
	}
	got := strings.Fields(regexp.MustCompile(`(?m)^\S+ \S+ \S `).ReplaceAllString(string(after)+string(mustRead(t, path)), ""))
	if !slices.IsSortedFunc(got, func(a, b string) int { return len(a) - len(b) }) || got[len(got)-1] != fmt.Sprint(len(got)) {
		t.Errorf("%d lines end with %s", len(got), got[len(got)-1])
	}
}

func mustRead(t *testing.T, path string) []byte {
	t.Helper()
	data, err := node.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// mustReadLog reads the runtime's own log.
func mustReadLog(t *testing.T) []byte {
	t.Helper()
	data, err := os.ReadFile(node.Runtime.Log)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

func TestResources(t *testing.T) {
	p := newPod(t, nil)
	limit := func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{
			CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 512, MemoryLimitInBytes: 20 << 20, MemorySwapLimitInBytes: 20 << 20,
		}
	}
	id, _ := p.start(limit)
	if r := p.status(id).GetResources().GetLinux(); r.GetMemoryLimitInBytes() != 20<<20 || r.GetCpuQuota() != 20000 || r.GetCpuShares() != 512 {
		t.Errorf("in force: %v", r)
	}
	if _, err := rs.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 30000, MemoryLimitInBytes: 30 << 20, MemorySwapLimitInBytes: 30 << 20},
	}); err != nil {
		t.Fatal(err)
	}
	if r := p.status(id).GetResources().GetLinux(); r.GetMemoryLimitInBytes() != 30<<20 || r.GetCpuQuota() != 30000 {
		t.Errorf("after the update: %v", r)
	}
	id, _ = p.start(func(c *runtimeapi.ContainerConfig) {
		limit(c)
		c.Command = []string{"sh", "-c", "dd if=/dev/zero of=/dev/null bs=60M"}
	})
	if s := p.exited(id); s.GetReason() != "OOMKilled" || s.GetExitCode() != 137 {
		t.Errorf("ate too much: %s, exit code %d", s.GetReason(), s.GetExitCode())
	}
}

func TestDevice(t *testing.T) {
	p := newPod(t, nil)
	id, _ := p.start(func(c *runtimeapi.ContainerConfig) {
		c.Devices = []*runtimeapi.Device{{HostPath: "/dev/loop-control", ContainerPath: "/dev/other", Permissions: "r"}}
	})
	p.sh(id, "test -c /dev/other && : </dev/other")
	p.fails(id, ": >/dev/other", "not permitted")
}

// TestEvents hears of a container from its creation to its removal.
func TestEvents(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	stream, err := rs.GetContainerEvents(ctx, &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	p := newPod(t, nil)
	id, _ := p.start(func(c *runtimeapi.ContainerConfig) { c.Command = []string{"true"} })
	p.exited(id)
	if _, err := rs.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	var got []string
	for !slices.Contains(got, "CONTAINER_DELETED_EVENT") {
		e, err := stream.Recv()
		if err != nil {
			t.Fatalf("after %v: %v", got, err)
		}
		if e.GetContainerId() == id {
			got = append(got, e.GetContainerEventType().String())
		}
	}
	want := []string{"CONTAINER_CREATED_EVENT", "CONTAINER_STARTED_EVENT", "CONTAINER_STOPPED_EVENT", "CONTAINER_DELETED_EVENT"}
	if !slices.Equal(got, want) {
		t.Errorf("heard %v", got)
	}
}
