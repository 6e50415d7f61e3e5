// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Host runs things on the node.
type Host interface {
	// HasSystemd reports whether systemd runs the node.
	HasSystemd() bool
	// Systemctl calls systemctl.
	Systemctl(ctx context.Context, args ...string) error
	// Run runs a program until it ends; it is asked to end when ctx does.
	Run(ctx context.Context, argv []string, stdout, stderr io.Writer) error
}

// stopTime is what a program has to end in after it was asked.
const stopTime = 25 * time.Second

// host is the node: this one, or, from a pod, the one whose root is mounted.
type host struct{ root string }

var _ Host = (*host)(nil)

func newHost(root string) *host { return &host{root: root} }

func (h *host) HasSystemd() bool {
	info, err := os.Stat(filepath.Join(h.root, "run/systemd/system"))
	return err == nil && info.IsDir()
}

func (h *host) Systemctl(ctx context.Context, args ...string) error {
	var out bytes.Buffer
	if err := h.Run(ctx, append([]string{"systemctl"}, args...), &out, &out); err != nil {
		return fmt.Errorf("systemctl %v: %w: %s", args, err, bytes.TrimSpace(out.Bytes()))
	}
	return nil
}

func (h *host) Run(ctx context.Context, argv []string, stdout, stderr io.Writer) error {
	if h.root == "/" {
		return run(ctx, argv, stdout, stderr)
	}
	if err := h.reachable(); err != nil {
		return err
	}
	// The thread goes to the node's mount namespace and never comes back: it
	// ends with its goroutine, which waits for the program.
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		if err := enterMounts(); err != nil {
			result <- err
			return
		}
		result <- run(ctx, argv, stdout, stderr)
	}()
	return <-result
}

// reachable reports whether process 1, as seen here, is the node's.
func (h *host) reachable() error {
	mine, err := os.Stat(h.root)
	if err != nil {
		return fmt.Errorf("look at the node's root: %w", err)
	}
	first, err := os.Stat("/proc/1/root")
	if err != nil {
		return fmt.Errorf("look at process 1: %w", err)
	}
	if !os.SameFile(mine, first) {
		return fmt.Errorf("%s is not the root of process 1: the pod needs hostPID, and the node's / mounted there", h.root)
	}
	return nil
}

// enterMounts moves this thread to the mount namespace of process 1.
func enterMounts() error {
	fd, err := unix.Open("/proc/1/ns/mnt", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("open the node's mount namespace: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	// Threads share their root and working directory; one that does cannot move.
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("part from the other threads: %w", err)
	}
	if err := unix.Setns(fd, unix.CLONE_NEWNS); err != nil {
		return fmt.Errorf("enter the node's mount namespace: %w", err)
	}
	return unix.Chdir("/")
}

func run(ctx context.Context, argv []string, stdout, stderr io.Writer) error {
	path, err := find(argv[0])
	if err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, path, argv[1:]...)
	cmd.Stdout, cmd.Stderr = stdout, stderr
	// The pod's PATH says nothing of the node's programs.
	cmd.Env = append(os.Environ(), "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = stopTime
	if err := cmd.Run(); err != nil && (ctx.Err() == nil || !asked(err)) {
		return err
	}
	return nil
}

// asked reports whether a program ended as it was told to.
func asked(err error) bool {
	if exit, ok := errors.AsType[*exec.ExitError](err); ok {
		s, ok := exit.Sys().(syscall.WaitStatus)
		return ok && (s.Signaled() && s.Signal() == syscall.SIGTERM || s.ExitStatus() == 0)
	}
	return errors.Is(err, context.Canceled)
}

// find looks for a program where a node has it; exec.LookPath goes by the
// pod's PATH.
func find(name string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, dir := range []string{"/usr/bin", "/bin", "/usr/sbin", "/sbin", "/usr/local/bin", "/run/current-system/sw/bin"} {
		path := filepath.Join(dir, name)
		if info, err := os.Stat(path); err == nil && info.Mode().IsRegular() {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s on the node: %w", name, exec.ErrNotFound)
}
