// SPDX-License-Identifier: Apache-2.0

// Package reap starts helper processes and collects the ends of all children of this process, those that it started and those
// that fell to it as the subreaper of a pod.
package reap

import (
	"context"
	"fmt"
	"os"
	"os/signal"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Exit is the end of a process.
type Exit struct {
	// Status is the exit code, 128 + the signal for a killed process.
	Status uint32
	At     time.Time
}

// Reaper collects children. There may be only one in a process: wait4(-1) takes everybody's.
type Reaper struct {
	mu sync.Mutex // guards what follows
	// waiting are the processes that somebody asked for.
	waiting map[int]chan Exit
	// early are ends that came while a start was under way and that may turn out to be of interest.
	early    map[int]Exit
	starting int
}

// New returns a Reaper; Run makes it work.
func New() *Reaper {
	return &Reaper{waiting: map[int]chan Exit{}, early: map[int]Exit{}}
}

// Subreaper makes orphans below this process its children.
func Subreaper() error {
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		return fmt.Errorf("become subreaper: %w", err)
	}
	return nil
}

// Run collects until ctx ends.
func (r *Reaper) Run(ctx context.Context) {
	ch := make(chan os.Signal, 1) // one pending signal stands for any number of children
	signal.Notify(ch, unix.SIGCHLD)
	defer signal.Stop(ch)
	for {
		r.collect()
		select {
		case <-ch:
		case <-ctx.Done():
			return
		}
	}
}

func (r *Reaper) collect() {
	r.mu.Lock()
	defer r.mu.Unlock()
	for {
		var ws unix.WaitStatus
		pid, err := unix.Wait4(-1, &ws, unix.WNOHANG, nil)
		if err == unix.EINTR {
			continue
		}
		if err != nil || pid <= 0 {
			return
		}
		e := Exit{Status: uint32(ws.ExitStatus()), At: time.Now()} //nolint:gosec // 0..255
		if ws.Signaled() {
			e.Status = 128 + uint32(ws.Signal()) //nolint:gosec // 1..64
		}
		if ch, ok := r.waiting[pid]; ok {
			delete(r.waiting, pid)
			ch <- e
		} else if r.starting > 0 {
			r.early[pid] = e
		}
	}
}

// Starting keeps the ends of all processes until the returned function is called, so that Wait misses none of a process whose
// number is not known yet.
func (r *Reaper) Starting() (done func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.starting++
	return func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		if r.starting--; r.starting == 0 {
			clear(r.early)
		}
	}
}

// Wait returns where the end of a child will be sent, once. Call it between Starting and its end.
func (r *Reaper) Wait(pid int) <-chan Exit {
	r.mu.Lock()
	defer r.mu.Unlock()
	ch := make(chan Exit, 1)
	if e, ok := r.early[pid]; ok {
		delete(r.early, pid)
		ch <- e
		return ch
	}
	r.waiting[pid] = ch
	return ch
}

// Signal signals a process that Wait was called for. It cannot meet another process: the number is free only when the process
// is collected. False means that it has been.
func (r *Reaper) Signal(pid int, sig unix.Signal) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.waiting[pid]; !ok {
		return false, nil
	}
	if err := unix.Kill(pid, sig); err != nil {
		return true, fmt.Errorf("signal process %d: %w", pid, err)
	}
	return true, nil
}

// Holding calls fn while a process that Wait was called for cannot be collected, so that its number is its own. False means
// that it has been.
func (r *Reaper) Holding(pid int, fn func() error) (bool, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.waiting[pid]; !ok {
		return false, nil
	}
	return true, fn()
}

// Command is a helper process.
type Command struct {
	Path string
	Args []string // with the name first
	Dir  string
	// Files are descriptors 0, 1, 2, ...; they stay open here.
	Files []uintptr
}

// Do starts a helper and waits for its end, or kills it when ctx ends first.
func (r *Reaper) Do(ctx context.Context, c Command) (Exit, error) {
	done := r.Starting()
	pid, err := syscall.ForkExec(c.Path, c.Args, &syscall.ProcAttr{Dir: c.Dir, Env: os.Environ(), Files: c.Files, Sys: &syscall.SysProcAttr{}})
	if err != nil {
		done()
		return Exit{}, fmt.Errorf("start %s: %w", c.Path, err)
	}
	ch := r.Wait(pid)
	done()
	select {
	case e := <-ch:
		return e, nil
	case <-ctx.Done():
		_ = unix.Kill(pid, unix.SIGKILL)
		<-ch
		return Exit{}, fmt.Errorf("%s: %w", c.Path, ctx.Err())
	}
}
