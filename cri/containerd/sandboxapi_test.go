// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/containerd/v2/pkg/cio"
	"github.com/containerd/containerd/v2/pkg/namespaces"
	"github.com/containerd/containerd/v2/pkg/oci"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/containerd/containerdtest"
)

// apiClient is a client of a private containerd that has nodeagent's shim, and the shim's path.
func apiClient(t *testing.T) (*client.Client, string) {
	t.Helper()
	d := containerdtest.Start(t)
	d.Import(t, nil)
	shim := filepath.Join(t.TempDir(), "nodeagent-shim")
	build := exec.CommandContext(t.Context(), "go", "build", "-o", shim, "../../cmd/nodeagent-shim")
	build.Env = append(os.Environ(), "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("build the shim: %v: %s", err, out)
	}
	c, err := client.New(d.Config.Address, client.WithDefaultNamespace(containerd.Namespace))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Close() })
	return c, shim
}

// inside runs a container in a sandbox.
func inside(ctx context.Context, t *testing.T, c *client.Client, sandboxID, shim string) (client.Container, client.Task, <-chan client.ExitStatus) {
	t.Helper()
	image, err := c.GetImage(ctx, containerdtest.Busybox)
	if err != nil {
		t.Fatal(err)
	}
	ct, err := c.NewContainer(ctx, "inside", client.WithSandbox(sandboxID), client.WithRuntime(shim, nil),
		client.WithNewSnapshot("inside", image), client.WithNewSpec(oci.WithImageConfig(image), oci.WithProcessArgs("sleep", "1000")))
	if err != nil {
		t.Fatal(err)
	}
	task, err := ct.NewTask(ctx, cio.NullIO)
	if err != nil {
		t.Fatal(err)
	}
	ended, err := task.Wait(ctx)
	if err == nil {
		err = task.Start(ctx)
	}
	if err != nil {
		t.Fatal(err)
	}
	return ct, task, ended
}

// TestRootSandboxAPI drives nodeagent's shim by containerd's Sandbox API, as a client of containerd does that is not nodeagent.
func TestRootSandboxAPI(t *testing.T) {
	c, shim := apiClient(t)
	ctx := namespaces.WithNamespace(t.Context(), containerd.Namespace)
	const id = "box"
	record := sandbox.Sandbox{ID: id, Runtime: sandbox.RuntimeOpts{Name: shim}, Sandboxer: "shim"}
	if _, err := c.SandboxStore().Create(ctx, record); err != nil {
		t.Fatal(err)
	}
	ctl := c.SandboxController("shim")
	if err := ctl.Create(ctx, record); err != nil {
		t.Fatal(err)
	}
	started, err := ctl.Start(ctx, id)
	if err != nil || started.Pid == 0 {
		t.Fatalf("start: %+v, %v", started, err)
	}
	state := func(want string) {
		t.Helper()
		if s, err := ctl.Status(ctx, id, false); err != nil || s.State != want {
			t.Errorf("status: %+v, %v, want %s", s, err, want)
		}
	}
	state("SANDBOX_READY")
	ct, task, ended := inside(ctx, t, c, id, shim)
	if err := ctl.Stop(ctx, id); err != nil {
		t.Fatal(err)
	}
	if e := <-ended; e.ExitCode() != 137 {
		t.Errorf("the container of a stopped sandbox: %d", e.ExitCode())
	}
	if _, err := ctl.Wait(ctx, id); err != nil {
		t.Errorf("wait: %v", err)
	}
	state("SANDBOX_NOTREADY")
	fd, err := unix.PidfdOpen(int(started.Pid), 0)
	if err != nil {
		t.Fatalf("the shim of a sandbox that is only stopped: %v", err)
	}
	defer func() { _ = unix.Close(fd) }()
	if _, err := task.Delete(ctx); err != nil {
		t.Errorf("delete task: %v", err)
	}
	if err := errors.Join(ct.Delete(ctx, client.WithSnapshotCleanup), ctl.Shutdown(ctx, id), c.SandboxStore().Delete(ctx, id)); err != nil {
		t.Error(err)
	}
	gone := []unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}} //nolint:gosec // descriptors are small
	if n, err := unix.Poll(gone, 20_000); n != 1 {
		t.Errorf("the shim of a sandbox that was shut down still runs: %v", err)
	}
}
