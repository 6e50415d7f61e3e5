// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Box is one node: a set of namespaces with an init.
type Box struct {
	Name string
	// PID is the init's, as the machine sees it.
	PID int
	// Group is the node's cgroup in every hierarchy, Cgroup its v2 directory.
	Group, Cgroup string

	procs []*Proc
}

const all = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// Path is a path of the box as the machine sees it.
func (b *Box) Path(path string) string {
	return filepath.Join("/proc", strconv.Itoa(b.PID), "root", path)
}

// inside runs f on a thread that has entered namespaces of the box, and maybe a
// network namespace of one of its pods, and that ends afterwards.
func (b *Box) inside(flags int, netns string, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == os.Getpid() {
			// The first thread never ends: another one goes.
			done <- b.inside(flags, netns, f)
			runtime.UnlockOSThread() //nolint:forbidigo // it went nowhere
			return
		}
		if err := b.enter(flags, netns); err != nil {
			done <- err
			return
		}
		done <- f()
	}()
	return <-done
}

func (b *Box) enter(flags int, netns string) error {
	fd, err := unix.PidfdOpen(b.PID, 0)
	if err != nil {
		return fmt.Errorf("open init of %s: %w", b.Name, err)
	}
	defer unix.Close(fd) //nolint:errcheck // only read
	if err := unix.Unshare(unix.CLONE_FS); err != nil {
		return fmt.Errorf("unshare: %w", err)
	}
	pod := -1
	if netns != "" {
		if pod, err = unix.Open(b.Path(netns), unix.O_RDONLY|unix.O_CLOEXEC, 0); err != nil {
			return fmt.Errorf("open %s in %s: %w", netns, b.Name, err)
		}
		defer unix.Close(pod) //nolint:errcheck // only read
	}
	if err := unix.Setns(fd, flags); err != nil {
		return fmt.Errorf("enter %s: %w", b.Name, err)
	}
	if pod >= 0 {
		if err := unix.Setns(pod, unix.CLONE_NEWNET); err != nil {
			return fmt.Errorf("enter %s in %s: %w", netns, b.Name, err)
		}
	}
	return nil
}

// Listen listens in the box's network.
func (b *Box) Listen(ctx context.Context, addr string) (l net.Listener, err error) {
	err = b.inside(unix.CLONE_NEWNET, "", func() error {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		return err
	})
	return l, err
}

// Start starts a command in all namespaces of the box, in its cgroup, and, with
// netns, in the network of a pod.
func (b *Box) Start(cmd *exec.Cmd, netns string) error {
	group := filepath.Join(b.Cgroup, "system")
	dir, err := os.Open(group)
	if err != nil {
		return fmt.Errorf("open cgroup of %s: %w", b.Name, err)
	}
	defer func() { _ = dir.Close() }()
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &unix.SysProcAttr{}
	}
	cmd.SysProcAttr.Setsid = true
	cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	if err := b.inside(all, netns, cmd.Start); err != nil {
		return fmt.Errorf("start %s in %s: %w", filepath.Base(cmd.Path), b.Name, err)
	}
	return nil
}

// Run runs a shell script in the box and returns what it prints.
func (b *Box) Run(ctx context.Context, script string) (string, error) {
	return b.RunIn(ctx, "", script)
}

// RunIn is Run in the network of a pod.
func (b *Box) RunIn(ctx context.Context, netns, script string) (string, error) {
	cmd := exec.CommandContext(ctx, "/bin/sh", "-ec", script)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := b.Start(cmd, netns); err != nil {
		return "", err
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%q in %s: %w: %s", script, b.Name, err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// IP runs a batch of ip(8) commands in the box's network, where process ids mean
// what they mean on the machine.
func (b *Box) IP(ctx context.Context, batch ...string) error {
	cmd := exec.CommandContext(ctx, "ip", "-batch", "-")
	var errOut bytes.Buffer
	cmd.Stdin, cmd.Stderr = strings.NewReader(strings.Join(batch, "\n")), &errOut
	err := b.inside(unix.CLONE_NEWNET, "", cmd.Start)
	if err == nil {
		err = cmd.Wait()
	}
	if err != nil {
		return fmt.Errorf("ip %q in %s: %w: %s", batch, b.Name, err, strings.TrimSpace(errOut.String()))
	}
	return nil
}

// Write writes a file of the box with its directories.
func (b *Box) Write(path string, data []byte) error {
	path = b.Path(path)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return err
	}
	return os.WriteFile(path, data, 0o600)
}

// Wire joins two boxes by a veth, each end named eth0, and gives them addresses.
func Wire(ctx context.Context, x, y *Box, addrX, addrY string) error {
	const dev = "eth0"
	return errors.Join(
		x.IP(ctx, fmt.Sprintf("link add %s type veth peer name %s netns %d", dev, dev, y.PID),
			"addr add "+addrX+" dev "+dev, "link set "+dev+" up", "link set lo up"),
		y.IP(ctx, "addr add "+addrY+" dev "+dev, "link set "+dev+" up", "link set lo up"),
	)
}
