// SPDX-License-Identifier: Apache-2.0

package reap_test

import (
	"context"
	"os"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/reap"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// TestReaper is one test, for there may be only one reaper in a process.
func TestReaper(t *testing.T) {
	if err := reap.Subreaper(); err != nil {
		t.Fatal(err)
	}
	r := reap.New()
	ctx, cancel := context.WithCancel(t.Context())
	stopped := make(chan struct{})
	go func() {
		defer close(stopped)
		r.Run(ctx)
	}()
	defer func() { cancel(); <-stopped }()
	t.Run("commands", func(t *testing.T) { commands(ctx, t, r) })
	t.Run("orphan", func(t *testing.T) { orphan(ctx, t, r) })
	t.Run("signal", func(t *testing.T) { signalled(t, r) })
}

func sh(script string) reap.Command {
	return reap.Command{Path: "/bin/sh", Args: []string{"sh", "-c", script}, Files: []uintptr{0, 1, 2}}
}

func commands(ctx context.Context, t *testing.T, r *reap.Reaper) {
	t.Helper()
	for script, want := range map[string]uint32{"exit 0": 0, "exit 7": 7, "kill -9 $$": 137} {
		if e, err := r.Do(ctx, sh(script)); err != nil || e.Status != want {
			t.Errorf("%s: %v, %v", script, e, err)
		}
	}
	if _, err := r.Do(ctx, reap.Command{Path: "/does/not/exist"}); err == nil {
		t.Error("ran nothing")
	}
	short, stop := context.WithCancel(ctx)
	stop()
	if _, err := r.Do(short, sh("exec sleep 1000")); err == nil {
		t.Error("outlived its context")
	}
}

// orphan falls to us; its end is kept though it comes before anybody asks.
func orphan(ctx context.Context, t *testing.T, r *reap.Reaper) {
	t.Helper()
	read, write, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := r.Starting()
	c := sh("p=$$; (while [ -d /proc/$p ]; do :; done; exit 5) & echo $!")
	c.Files[1] = write.Fd()
	if _, err := r.Do(ctx, c); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 16)
	n, err := read.Read(buf)
	if err != nil {
		t.Fatal(err)
	}
	pid := 0
	for _, b := range buf[:n-1] {
		pid = pid*10 + int(b-'0')
	}
	e := <-r.Wait(pid)
	done()
	if e.Status != 5 || e.At.IsZero() {
		t.Errorf("orphan: %v", e)
	}
	_ = read.Close()
	_ = write.Close()
}

// signalled is a child that a signal reaches once.
func signalled(t *testing.T, r *reap.Reaper) {
	t.Helper()
	done := r.Starting()
	pid, err := syscall.ForkExec("/bin/sleep", []string{"sleep", "1000"}, &syscall.ProcAttr{Files: []uintptr{0, 1, 2}})
	if err != nil {
		t.Fatal(err)
	}
	ended := r.Wait(pid)
	done()
	if alive, err := r.Signal(pid, unix.SIGTERM); !alive || err != nil {
		t.Errorf("signal: %v, %v", alive, err)
	}
	if e := <-ended; e.Status != 143 {
		t.Errorf("signalled: %v", e)
	}
	if alive, err := r.Signal(pid, unix.SIGTERM); alive || err != nil {
		t.Errorf("signal to a dead process: %v, %v", alive, err)
	}
}
