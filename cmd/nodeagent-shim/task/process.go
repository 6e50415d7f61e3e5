// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/enter"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/oci"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/reap"
)

// state is a process's state with the numbers of containerd.v1.types.Status.
type state int

const (
	stateNew     state = 0
	stateCreated state = 1
	stateRunning state = 2
	stateStopped state = 3
	statePaused  state = 4
)

// String is the state in words.
func (s state) String() string {
	return [...]string{"new", "created", "running", "stopped", "paused"}[s]
}

// process is the first process of a container (exec is empty) or one that exec makes.
type process struct {
	c                     *container
	exec                  string
	stdin, stdout, stderr string
	terminal              bool
	spec                  []byte
	// restore is set for a container that starts from a checkpoint.
	restore *oci.Checkpoint
	io      *stdio

	// died is closed when the process is reaped, done when its end may be told: exit is final then.
	died, done chan struct{}
	exit       reap.Exit

	// starting is held while the process is being started, so that its start is told before its end.
	starting sync.Mutex

	mu    sync.Mutex // guards what follows; never held for long, for a stuck start must not stop questions and kills
	state state
	pid   int
}

func newProcess(c *container, r *request) *process {
	return &process{
		c: c, exec: r.ExecID, stdin: r.In, stdout: r.Out, stderr: r.Err, terminal: r.Terminal, spec: r.Any.Value,
		io: &stdio{}, died: make(chan struct{}), done: make(chan struct{}),
	}
}

// view is a consistent copy of what changes.
type view struct {
	state state
	pid   int
	exit  reap.Exit
}

func (p *process) view() view {
	p.mu.Lock()
	defer p.mu.Unlock()
	v := view{state: p.state, pid: p.pid}
	if p.state == stateStopped {
		v.exit = p.exit
	}
	return v
}

// change sets the state to another one, unless the process has gone on meanwhile.
func (p *process) change(from, to state) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.state == from {
		p.state = to
	}
}

// launch has the OCI runtime make the process and begins to follow it and its streams.
func (p *process) launch(ctx context.Context, call func(context.Context, oci.Launch) error) (retErr error) {
	reaper := p.c.s.deps.Reaper
	defer reaper.Starting()()
	name := "init"
	if p.exec != "" {
		name = p.exec
	}
	l := oci.Launch{PidFile: filepath.Join(p.c.bundle, name+".pid")}
	defer func() { _ = os.Remove(l.PidFile) }()
	console, err := p.open()
	if err != nil {
		return err
	}
	defer func() {
		if retErr != nil {
			p.io.close()
		}
	}()
	if console != nil {
		defer console.close()
		l.Console = console.name
	}
	l.Stdio = p.io.child
	p.io.run()
	err = call(ctx, l)
	p.io.release()
	if err != nil {
		return err
	}
	pid, err := oci.ReadPid(l.PidFile)
	if err != nil {
		return err
	}
	if console != nil {
		terminal, err := console.receive()
		if err == nil {
			err = p.adopt(terminal)
		}
		if err != nil {
			_ = unix.Kill(pid, unix.SIGKILL) // not collected before Starting ends
			return err
		}
	}
	p.mu.Lock()
	p.pid = pid
	p.mu.Unlock()
	go p.watch(reaper.Wait(pid)) //nolint:contextcheck // the end of a process belongs to no call
	return nil
}

// watch follows the process to its end.
func (p *process) watch(ch <-chan reap.Exit) {
	e := <-ch
	close(p.died)
	p.starting.Lock()
	p.mu.Lock()
	p.exit, p.state = e, stateStopped
	p.mu.Unlock()
	p.starting.Unlock()
	if p.exec == "" {
		p.c.end()
		saveExit(p.c.bundle, p.pid, e)
		if p.c.oom.killed() {
			p.c.s.deps.Events(oom(p.c.id))
		}
	}
	close(p.done)
	p.io.ended()
	p.c.s.deps.Events(exited(p.c.id, p.exec, p.pid, e))
}

// start lets the process run.
func (p *process) start(ctx context.Context) error {
	p.starting.Lock()
	defer p.starting.Unlock()
	if v := p.view(); v.state != stateCreated {
		return fmt.Errorf("process of container %s is %s: %w", p.c.id, v.state, errdefs.ErrFailedPrecondition)
	}
	var err error
	switch {
	case p.exec != "":
		err = p.startExec(ctx)
	case p.restore != nil:
		err = p.launch(ctx, func(ctx context.Context, l oci.Launch) error { return p.c.rt.Restore(ctx, p.c.id, *p.restore, l) })
	default:
		done := p.c.capture(ctx)
		err = p.c.rt.Start(ctx, p.c.id, p.c.facts.hooked, p.died)
		done()
	}
	if err != nil {
		return err
	}
	p.change(stateCreated, stateRunning)
	p.c.s.deps.Events(started(p.c.id, p.exec, p.pid))
	return nil
}

func (p *process) startExec(ctx context.Context) error {
	select {
	case <-p.c.init.died:
		return fmt.Errorf("container %s is not running: %w", p.c.id, errdefs.ErrFailedPrecondition)
	default:
	}
	if err := p.enter(ctx); !errors.Is(err, enter.ErrUnable) {
		return err
	}
	return p.launch(ctx, func(ctx context.Context, l oci.Launch) error { return p.c.rt.Exec(ctx, p.c.id, p.spec, l) })
}

// kill signals the process.
func (p *process) kill(ctx context.Context, signal uint32) error {
	v := p.view()
	alive, err := p.c.s.deps.Reaper.Signal(v.pid, unix.Signal(signal))
	if err != nil {
		return err
	}
	if !alive {
		return fmt.Errorf("process of container %s has ended or not begun: %w", p.c.id, errdefs.ErrNotFound)
	}
	if v.state == statePaused && unix.Signal(signal) == unix.SIGKILL {
		// On cgroup v1 a frozen process does not die.
		if err := p.c.rt.Resume(ctx, p.c.id); err != nil {
			return err
		}
		p.change(statePaused, stateRunning)
	}
	return nil
}

func (p *process) resize(width, height uint32) error {
	return p.io.resize(width, height)
}

func (p *process) closeStdin() {
	p.io.closeStdin()
	if p.exec == "" {
		p.c.hub.closeStdin()
	}
}
