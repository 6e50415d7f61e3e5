// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// managedProcess is one containerd process, a child or one taken over.
type managedProcess struct {
	pid    int
	pidfd  int
	binary string
	// done is closed when the process has ended.
	done chan struct{}
}

// processRecord is what a later nodeagent needs to take a process over.
type processRecord struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
	Sum   string `json:"sum"`
}

func (s *Supervisor) recordPath() string { return filepath.Join(s.dir, "containerd.json") }

// spawn starts containerd in a session of its own. It keeps nodeagent's
// standard error, not a pipe: a pipe would end it when nodeagent dies.
func (s *Supervisor) spawn(conf, sum string) (*managedProcess, error) {
	bin, err := s.lookPath(s.cfg.Binary)
	if err != nil {
		return nil, err
	}
	cmd := exec.Command(bin, "--config", conf) //nolint:noctx // it outlives every context, by design
	cmd.Env = slices.Concat(os.Environ(), s.env, []string{"PATH=" + s.searchPath()})
	cmd.Stdout, cmd.Stderr = os.Stderr, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start managed containerd: %w", err)
	}
	run, err := open(cmd.Process.Pid, bin)
	if err != nil {
		return nil, errors.Join(err, cmd.Process.Kill(), cmd.Wait())
	}
	go func() {
		_ = cmd.Wait() // how it ended is in its own messages
		close(run.done)
	}()
	if err := s.record(run.pid, sum); err != nil {
		s.log.Warn("record managed containerd", "err", err)
	}
	return run, nil
}

func open(pid int, bin string) (*managedProcess, error) {
	fd, err := unix.PidfdOpen(pid, 0)
	if err != nil {
		return nil, fmt.Errorf("open process %d: %w", pid, err)
	}
	return &managedProcess{pid: pid, pidfd: fd, binary: bin, done: make(chan struct{})}, nil
}

func (s *Supervisor) record(pid int, sum string) error {
	start, err := processStart(pid)
	if err != nil {
		return err
	}
	data, err := json.Marshal(processRecord{PID: pid, Start: start, Sum: sum})
	if err != nil {
		return fmt.Errorf("encode record: %w", err)
	}
	return writeFile(s.recordPath(), data)
}

// adopt takes over the process that an earlier nodeagent recorded. One with
// another configuration is ended first; nil means that a new one is needed.
func (s *Supervisor) adopt(ctx context.Context, sum string) *managedProcess {
	data, err := os.ReadFile(s.recordPath())
	if err != nil {
		return nil
	}
	var rec processRecord
	if err := json.Unmarshal(data, &rec); err != nil {
		s.log.WarnContext(ctx, "ignore record of managed containerd", "path", s.recordPath(), "err", err)
		return nil
	}
	run, err := open(rec.PID, s.cfg.Binary)
	if err != nil {
		return nil
	}
	// The pid is held by pidfd from here on: if it started then, it is the one.
	if start, err := processStart(rec.PID); err != nil || start != rec.Start {
		_ = unix.Close(run.pidfd)
		return nil
	}
	go run.poll()
	if rec.Sum == sum {
		s.log.InfoContext(ctx, "took over the running containerd", "pid", rec.PID)
		return run
	}
	s.log.InfoContext(ctx, "configuration changed, ending the running containerd", "pid", rec.PID)
	if err := run.end(ctx, s.cfg.StopTimeout); err != nil {
		s.log.WarnContext(ctx, "end the running containerd", "pid", rec.PID, "err", err)
	}
	return nil
}

// poll waits for a process that is not our child.
func (p *managedProcess) poll() {
	defer close(p.done)
	for {
		_, err := unix.Poll([]unix.PollFd{{Fd: int32(p.pidfd), Events: unix.POLLIN}}, -1)
		if !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

// end asks the process to stop and, after timeout, makes it.
func (p *managedProcess) end(ctx context.Context, timeout time.Duration) error {
	err := signalProcess(p.pidfd, unix.SIGTERM)
	timer := time.NewTimer(timeout)
	defer timer.Stop()
	select {
	case <-p.done:
	case <-timer.C:
		err = errors.Join(err, fmt.Errorf("containerd, process %d, did not stop within %s", p.pid, timeout),
			signalProcess(p.pidfd, unix.SIGKILL))
		<-p.done
	case <-ctx.Done():
		err = errors.Join(err, ctx.Err(), signalProcess(p.pidfd, unix.SIGKILL))
		<-p.done
	}
	return errors.Join(err, unix.Close(p.pidfd))
}

func answers(ctx context.Context, address string) error {
	var d net.Dialer
	c, err := d.DialContext(ctx, "unix", address)
	if err != nil {
		return err
	}
	return c.Close()
}

func (s *Supervisor) searchPath() string {
	return strings.TrimPrefix(s.cfg.Path+":"+os.Getenv("PATH"), ":")
}

// lookPath finds a program in Path, then in PATH.
func (s *Supervisor) lookPath(name string) (string, error) {
	if filepath.IsAbs(name) {
		if _, err := os.Stat(name); err != nil {
			return "", fmt.Errorf("find %s: %w", name, err)
		}
		return name, nil
	}
	for _, dir := range filepath.SplitList(s.searchPath()) {
		path := filepath.Join(dir, name)
		if fi, err := os.Stat(path); err == nil && fi.Mode().IsRegular() && fi.Mode()&0o111 != 0 {
			return path, nil
		}
	}
	return "", fmt.Errorf("find %s: not in %s", name, s.searchPath())
}
