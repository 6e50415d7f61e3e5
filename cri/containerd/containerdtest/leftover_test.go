// SPDX-License-Identifier: Apache-2.0

package containerdtest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// TestRootLeftovers ends what a test would leave that was cut short: a process that was started for it, a
// child of that, and their cgroup.
func TestRootLeftovers(t *testing.T) {
	NeedRoot(t)
	dir := t.TempDir()
	group := "/sys/fs/cgroup/pids/" + Name(t)
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.procs"); err == nil {
		group = "/sys/fs/cgroup/" + Name(t)
	}
	if err := os.Mkdir(group, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.Remove(group) })
	ready := filepath.Join(t.TempDir(), "ready")
	if err := unix.Mkfifo(ready, 0o600); err != nil {
		t.Fatal(err)
	}
	script := "echo $$ >" + group + "/cgroup.procs; sleep 1000 & echo $! >" + ready + "; wait"
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", script, dir)
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	said, err := os.ReadFile(ready)
	if err != nil {
		t.Fatal(err)
	}
	child, err := strconv.Atoi(strings.TrimSpace(string(said)))
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	if left := endLeft(dir); len(left) != 2 {
		t.Errorf("killed %v", left)
	}
	if err := <-ended; err == nil {
		t.Error("it ended well")
	}
	if err := unix.Kill(child, 0); !errors.Is(err, unix.ESRCH) && parent(child) == os.Getpid() {
		t.Errorf("the child lives: %v", err)
	}
	if _, err := os.Stat(group); !os.IsNotExist(err) {
		t.Errorf("the cgroup is left: %v", err)
	}
	if left := endLeft(dir); left != nil {
		t.Errorf("again %v", left)
	}
}
