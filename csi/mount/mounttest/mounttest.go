// SPDX-License-Identifier: Apache-2.0

// Package mounttest gives tests of the storage room a mount namespace of their
// own, file systems on loop devices, and a check that nothing is left of them.
package mounttest

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/mount"
)

const insideEnv = "NODEAGENT_TEST_MOUNTNS"

// Main runs m in a private mount namespace and fails when a mount, a loop device
// or a goroutine is left. Without root it runs m in place: tests that need root call Root.
func Main(m *testing.M) int {
	if os.Getuid() != 0 {
		return m.Run()
	}
	if os.Getenv(insideEnv) == "" {
		return reexec()
	}
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		fmt.Fprintln(os.Stderr, "make mounts private:", err)
		return 1
	}
	base := filepath.Join(os.TempDir(), fmt.Sprintf("csi-test-%d", os.Getpid()))
	if err := os.MkdirAll(base, 0o700); err != nil {
		fmt.Fprintln(os.Stderr, err)
		return 1
	}
	_ = os.Setenv("TMPDIR", base)
	code := m.Run()
	if left := leftovers(base); len(left) > 0 {
		fmt.Fprintf(os.Stderr, "left behind by the tests:\n\t%s\n", strings.Join(left, "\n\t"))
		code = max(code, 1)
	}
	if err := goleak.Find(); err != nil {
		fmt.Fprintln(os.Stderr, err)
		code = max(code, 1)
	}
	_ = os.RemoveAll(base)
	return code
}

func reexec() int {
	//nolint:noctx // lives as long as the test binary
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), insideEnv+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Unshareflags: syscall.CLONE_NEWNS}
	if err := cmd.Run(); err != nil {
		if cmd.ProcessState != nil && cmd.ProcessState.ExitCode() > 0 {
			return cmd.ProcessState.ExitCode()
		}
		fmt.Fprintln(os.Stderr, "run tests in a mount namespace:", err)
		return 1
	}
	return 0
}

// leftovers lists mounts below base and loop devices whose backing file is.
func leftovers(base string) []string {
	var out []string
	entries, err := mount.Table(base)
	if err != nil {
		return []string{err.Error()}
	}
	for _, e := range entries {
		out = append(out, "mount "+e.Point)
	}
	files, _ := filepath.Glob("/sys/block/loop*/loop/backing_file")
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && strings.Contains(string(b), base) {
			out = append(out, "loop "+f+" "+strings.TrimSpace(string(b)))
		}
	}
	return out
}

// Root skips a test only when NODEAGENT_SKIP_ROOT=1, and fails it when there is
// no root and nobody said so.
func Root(tb testing.TB) {
	tb.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
		tb.Skip("needs root; NODEAGENT_SKIP_ROOT=1")
	}
	tb.Fatal("needs root (set NODEAGENT_SKIP_ROOT=1 to leave such tests out)")
}

// FileSystem makes a file system of this type and size on a loop device and
// mounts it on a directory of the test's; "" stays on the test's own directory.
func FileSystem(tb testing.TB, fsType string, size int64) string {
	tb.Helper()
	dir := filepath.Join(tb.TempDir(), "pool")
	if err := os.MkdirAll(dir, 0o700); err != nil {
		tb.Fatal(err)
	}
	if fsType == "" {
		return dir
	}
	ctx := tb.Context()
	if fsType == "tmpfs" {
		if err := mount.Mount(mount.FS{Type: "tmpfs", Source: "pool", Options: []string{fmt.Sprintf("size=%d", size)}}, dir); err != nil {
			tb.Fatal(err)
		}
		tb.Cleanup(func() { unmount(tb, dir) })
		return dir
	}
	img := dir + ".img"
	f, err := os.OpenFile(img, os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		tb.Fatal(err)
	}
	if err := f.Truncate(size); err != nil {
		tb.Fatal(err)
	}
	_ = f.Close()
	l, err := mount.AttachLoop(ctx, img, mount.LoopOptions{BlockSize: 4096, DirectIO: true, AutoClear: true})
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if err := mount.MakeFS(ctx, l.Path, mount.FormatOptions{Type: fsType}); err != nil {
		tb.Fatal(err)
	}
	if err := mount.Mount(mount.FS{Type: fsType, Source: l.Path}, dir); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { unmount(tb, dir) })
	return dir
}

// Disks makes blank loop devices to stand for disks.
func Disks(tb testing.TB, n int, size int64) []string {
	tb.Helper()
	dir := tb.TempDir()
	var out []string
	for i := range n {
		img := filepath.Join(dir, fmt.Sprintf("disk%d", i))
		f, err := os.OpenFile(img, os.O_RDWR|os.O_CREATE, 0o600)
		if err == nil {
			err = f.Truncate(size)
		}
		if err != nil {
			tb.Fatal(err)
		}
		_ = f.Close()
		l, err := mount.AttachLoop(tb.Context(), img, mount.LoopOptions{BlockSize: 4096, DirectIO: true})
		if err != nil {
			tb.Fatal(err)
		}
		_ = l.Close()
		tb.Cleanup(func() {
			if err := mount.DetachLoop(context.WithoutCancel(tb.Context()), l); err != nil {
				tb.Errorf("the test left a disk busy: %v", err)
			}
		})
		out = append(out, l.Path)
	}
	return out
}

func unmount(tb testing.TB, dir string) {
	tb.Helper()
	if err := mount.Unmount(dir); err != nil {
		tb.Errorf("the test left its pool busy: %v", err)
		_ = unix.Unmount(dir, unix.MNT_DETACH)
	}
}
