// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Box is a set of namespaces with an init of its own. Its processes are children
// of the process that made the box, but live in the box's pid namespace: when the
// init ends, and it ends when its maker does, the kernel ends them all.
type Box struct {
	Name string
	// PID is the init's process id as the machine sees it.
	PID int

	// cgroup is where the box's processes are in the v2 hierarchy; empty: where
	// the harness is.
	cgroup string
	// namespaces is what a process enters to be in the box.
	namespaces int
	pidfd      int
	init       *exec.Cmd
	life       *os.File
	procs      []*Proc
}

// boxSpec is what the init is told.
type boxSpec struct {
	Hostname string
	Mounts   []mountSpec
	// Sysfs asks for a sysfs that shows the box's network devices, with the
	// machine's cgroups bound back and a bpffs of its own.
	Sysfs bool
	// Cgroup is the cgroup in every hierarchy that the box sees as the root of all, in a cgroup
	// namespace; empty: the box sees the machine's.
	Cgroup string
}

// mountSpec is one mount; Type is bind, tmpfs or overlay (over Target itself).
type mountSpec struct {
	Type, Source, Target string
}

// initArg is argv[1] of a box's init.
const initArg = "cluster-box-init"

const boxNamespaces = unix.CLONE_NEWNET | unix.CLONE_NEWNS | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWIPC

// newBox starts a box from the running program, whose main calls Init first.
func newBox(ctx context.Context, name string, spec boxSpec, log string) (_ *Box, retErr error) {
	self, err := os.Executable()
	if err != nil {
		return nil, err
	}
	data, err := json.Marshal(spec)
	if err != nil {
		return nil, err
	}
	lifeR, lifeW, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	defer func() { _ = lifeR.Close() }()
	readyR, readyW, err := os.Pipe()
	if err != nil {
		return nil, errors.Join(err, lifeW.Close())
	}
	defer func() { _ = readyR.Close() }()
	logFile, err := os.OpenFile(log, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, errors.Join(err, lifeW.Close(), readyW.Close())
	}
	defer func() { _ = logFile.Close() }()

	argv, namespaces := []string{self, initArg, string(data)}, boxNamespaces
	if spec.Cgroup != "" {
		argv, namespaces = inOwnCgroup(spec.Cgroup, argv), boxNamespaces|unix.CLONE_NEWCGROUP
	}
	cmd := exec.Command(argv[0], argv[1:]...) //nolint:noctx // outlives ctx; ends with the life pipe
	cmd.ExtraFiles = []*os.File{lifeR, readyW}
	cmd.Stdout, cmd.Stderr = logFile, logFile
	cmd.SysProcAttr = &unix.SysProcAttr{Cloneflags: boxNamespaces, Setsid: true}
	err = cmd.Start()
	closeErr := readyW.Close()
	if err != nil {
		return nil, errors.Join(fmt.Errorf("start init of %s: %w", name, err), closeErr, lifeW.Close())
	}
	b := &Box{Name: name, PID: cmd.Process.Pid, namespaces: namespaces, init: cmd, life: lifeW, pidfd: -1}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, b.Close(context.WithoutCancel(ctx)))
		}
	}()
	if b.pidfd, err = unix.PidfdOpen(b.PID, 0); err != nil {
		return nil, fmt.Errorf("open init of %s: %w", name, err)
	}
	answer, err := io.ReadAll(readyR)
	if err != nil || string(answer) != "ready" {
		return nil, fmt.Errorf("init of %s: %s (see %s)", name, strings.TrimSpace(string(answer)), log)
	}
	return b, nil
}

// inside runs f on a thread that has entered the given namespaces of the box. The
// thread is not used for anything else afterwards.
func (b *Box) inside(flags int, f func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		if unix.Gettid() == os.Getpid() {
			// The first thread never ends, so it must not go anywhere: it waits
			// here while another does it.
			done <- b.inside(flags, f)
			runtime.UnlockOSThread() //nolint:forbidigo // it went nowhere
			return
		}
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- fmt.Errorf("unshare: %w", err)
			return
		}
		if err := unix.Setns(b.pidfd, flags); err != nil {
			done <- fmt.Errorf("enter %s: %w", b.Name, err)
			return
		}
		done <- f()
	}()
	return <-done
}

// InNet runs f in the box's network namespace; sockets it opens belong there.
func (b *Box) InNet(f func() error) error { return b.inside(unix.CLONE_NEWNET, f) }

// InMount runs f in the box's mount namespace: paths are those of the box.
func (b *Box) InMount(f func() error) error { return b.inside(unix.CLONE_NEWNS, f) }

// Command prepares a command that StartIn or Run starts inside the box.
func (b *Box) Command(ctx context.Context, name string, args ...string) *exec.Cmd {
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	return cmd
}

// Start starts a prepared command in all namespaces of the box, and in its cgroup.
func (b *Box) Start(cmd *exec.Cmd) error {
	if b.cgroup != "" {
		dir, err := os.Open(b.cgroup)
		if err != nil {
			return err
		}
		defer func() { _ = dir.Close() }()
		cmd.SysProcAttr.UseCgroupFD, cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	return b.inside(b.namespaces, cmd.Start)
}

// Run runs a program in the box and returns what it printed; the error of a
// program that fails has its last words.
func (b *Box) Run(ctx context.Context, name string, args ...string) (string, error) {
	return b.runIn(ctx, b.namespaces, "", append([]string{name}, args...))
}

// ip runs a batch of ip(8) commands in the box's network namespace only, so
// that process ids mean what they mean on the machine.
func (b *Box) ip(ctx context.Context, batch ...string) error {
	_, err := b.runIn(ctx, unix.CLONE_NEWNET, strings.Join(batch, "\n"), []string{"ip", "-batch", "-"})
	return err
}

func (b *Box) runIn(ctx context.Context, flags int, stdin string, argv []string) (string, error) {
	cmd := b.Command(ctx, argv[0], argv[1:]...)
	var out, errOut bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = strings.NewReader(stdin), &out, &errOut
	if err := b.inside(flags, cmd.Start); err != nil {
		return "", fmt.Errorf("%s in %s: %w", argv[0], b.Name, err)
	}
	if err := cmd.Wait(); err != nil {
		return out.String(), fmt.Errorf("%s in %s: %w: %s", strings.Join(argv, " "), b.Name, err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// Processes returns the process ids, as the machine sees them, of the box's processes with
// that command name; all of them when it is empty.
func (b *Box) Processes(comm string) ([]int, error) {
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", b.PID))
	if err != nil {
		return nil, err
	}
	dirs, err := filepath.Glob("/proc/[0-9]*")
	if err != nil {
		return nil, err
	}
	var out []int
	for _, d := range dirs {
		ns, err1 := os.Readlink(d + "/ns/pid")
		name, err2 := os.ReadFile(d + "/comm")
		if err1 != nil || err2 != nil || ns != want || comm != "" && strings.TrimSpace(string(name)) != comm {
			continue // of another box, or just ended
		}
		pid, err := strconv.Atoi(filepath.Base(d))
		if err != nil {
			return nil, err
		}
		out = append(out, pid)
	}
	return out, nil
}

// Close ends everything in the box and waits until it is gone. Closing twice is
// no error.
func (b *Box) Close(context.Context) error {
	if b.init == nil {
		return nil
	}
	for _, p := range b.procs {
		p.abandon()
	}
	err := errors.Join(b.life.Close(), b.init.Process.Kill())
	_ = b.init.Wait() // it was killed: its status says only that
	b.init = nil
	for _, p := range b.procs {
		<-p.gone
	}
	if b.pidfd >= 0 {
		err = errors.Join(err, unix.Close(b.pidfd))
	}
	return err
}
