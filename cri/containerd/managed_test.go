// SPDX-License-Identifier: Apache-2.0

package containerd_test

import (
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/cri/containerd"
)

// binaries is where `make deps` puts the programs that tests run.
func binaries() string {
	dir := os.Getenv("NODEAGENT_CACHE")
	if dir == "" {
		dir = "/var/cache/nodeagent"
	}
	return filepath.Join(dir, "bin")
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
		t.Skip("needs root, and NODEAGENT_SKIP_ROOT=1")
	}
	t.Fatal("needs root; set NODEAGENT_SKIP_ROOT=1 to leave the root tests out")
}

func managed(t *testing.T) containerd.Config {
	t.Helper()
	dir := t.TempDir()
	cfg := containerd.Default()
	cfg.Managed = true
	cfg.Path = binaries()
	cfg.Address = filepath.Join(dir, "c.sock")
	cfg.Root = filepath.Join(dir, "root")
	cfg.State = filepath.Join(dir, "state")
	return cfg
}

func supervise(t *testing.T, cfg containerd.Config, dir string) *containerd.Supervisor {
	t.Helper()
	s, err := containerd.NewSupervisor(cfg, containerd.SupervisorDeps{Log: slog.New(slog.DiscardHandler), Dir: dir})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func recordedPID(t *testing.T, dir string) int {
	t.Helper()
	data, err := os.ReadFile(filepath.Join(dir, "containerd.json"))
	if err != nil {
		t.Fatal(err)
	}
	var rec struct{ PID int }
	if err := json.Unmarshal(data, &rec); err != nil {
		t.Fatal(err)
	}
	return rec.PID
}

// eventually waits for a condition, a minute at most.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-ctx.Done():
			t.Fatalf("never came: %s", what)
		case <-tick.C:
		}
	}
}

func alive(pid int) bool { return syscall.Kill(pid, 0) == nil }

func TestRootManagedContainerdIsTakenOverAndRestarted(t *testing.T) {
	needRoot(t)
	cfg, dir := managed(t), t.TempDir()
	supervise(t, cfg, dir).Abandon()
	pid := recordedPID(t, dir)

	second := supervise(t, cfg, dir)
	if got := recordedPID(t, dir); got != pid {
		t.Fatalf("process %d was started beside %d", got, pid)
	}
	client, err := containerd.New(cfg, containerd.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	if err := client.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := client.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}

	for n := 1; n <= 2; n++ { // first the adopted process, then a child
		if err := syscall.Kill(recordedPID(t, dir), syscall.SIGKILL); err != nil {
			t.Fatal(err)
		}
		eventually(t, "restart after kill -9", func() bool {
			return second.Restarts() == n && second.Ready(t.Context()) == nil
		})
	}
	last := recordedPID(t, dir)
	if err := second.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	if alive(last) {
		t.Errorf("process %d is alive after Stop", last)
	}
}

func TestRootChangedConfigurationReplacesContainerd(t *testing.T) {
	needRoot(t)
	cfg, dir := managed(t), t.TempDir()
	supervise(t, cfg, dir).Abandon()
	pid := recordedPID(t, dir)
	cfg.Root = filepath.Join(t.TempDir(), "elsewhere")
	s := supervise(t, cfg, dir)
	if recordedPID(t, dir) == pid {
		t.Error("a containerd with another root was taken over")
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestManagedContainerdThatIsAbsent(t *testing.T) {
	cfg := containerd.Default()
	cfg.Managed, cfg.Binary = true, "no-such-containerd"
	s, err := containerd.NewSupervisor(cfg, containerd.SupervisorDeps{Log: slog.New(slog.DiscardHandler), Dir: t.TempDir()})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err == nil || !strings.Contains(err.Error(), "find no-such-containerd: not in ") {
		t.Errorf("got %v", err)
	}
}

func TestClientWithoutContainerd(t *testing.T) {
	cfg := containerd.Default()
	cfg.Address, cfg.DialTimeout = filepath.Join(t.TempDir(), "none.sock"), 100*time.Millisecond
	c, err := containerd.New(cfg, containerd.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err == nil || !strings.Contains(err.Error(), cfg.Address) {
		t.Errorf("got %v", err)
	}
	if errors.Is(err, containerd.ErrTooOld) {
		t.Error("absent is not old")
	}
}
