// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/enter"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/oci"
	"github.com/nodeagent/nodeagent/cri/logs"
)

// The bounds of what is done for a container that has ended.
const (
	cleanupTimeout = 30 * time.Second
	drainTimeout   = 10 * time.Second
)

// container is one container of the pod.
type container struct {
	s      *Service
	id     string
	bundle string
	// ready is closed when create has come to its end; what follows is written before that and not changed.
	ready chan struct{}
	rt    *oci.Runtime
	init  *process
	facts facts
	log   *logs.Log
	hub   *hub
	oom   oomFile
	// entry makes further processes without the OCI runtime; nil when that makes them all.
	entry *enter.Container
	// runs is set once the first process is known to be the container's program.
	runs atomic.Bool

	busy sync.Mutex // held by delete and freeze, which exclude each other

	mu    sync.Mutex // guards execs and gone
	execs map[string]*process
	gone  bool
}

// facts is what matters here of the bundle's config.json.
type facts struct {
	// sharedPID says that the first process's end does not end all others.
	sharedPID bool
	// userns is the path of the user namespace, empty for the host's.
	userns string
	// hooked says that hooks are to be run once the container runs.
	hooked bool
}

func readFacts(bundle string) (facts, error) {
	var s struct {
		Linux struct {
			Namespaces []struct{ Type, Path string }
		}
		Hooks struct{ Poststart []struct{ Path string } }
	}
	raw, err := os.ReadFile(filepath.Join(bundle, "config.json"))
	if err != nil {
		return facts{}, fmt.Errorf("read spec: %w", err)
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return facts{}, fmt.Errorf("read spec: %w", err)
	}
	f := facts{sharedPID: true, hooked: len(s.Hooks.Poststart) > 0}
	for _, ns := range s.Linux.Namespaces {
		switch ns.Type {
		case "pid":
			f.sharedPID = ns.Path != ""
		case "user":
			f.userns = ns.Path
		}
	}
	return f, nil
}

func (c *container) rootfs() string { return filepath.Join(c.bundle, "rootfs") }

// create makes the container up to the point where its first process waits.
func (c *container) create(ctx context.Context, r *request) (retErr error) {
	var err error
	if c.rt, err = RuntimeOf(r.Any); err != nil {
		return fmt.Errorf("options: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if err := c.rt.Bind(c.s.deps.Reaper, c.s.deps.Namespace, c.bundle); err != nil {
		return err
	}
	if err := c.rt.Save(); err != nil {
		return err
	}
	if c.facts, err = readFacts(c.bundle); err != nil {
		return err
	}
	if len(r.Rootfs) > 0 {
		if err := oci.MountAll(r.Rootfs, c.rootfs(), c.facts.userns); err != nil {
			return err
		}
	}
	p := newProcess(c, r)
	// Its making is told before its end.
	p.starting.Lock()
	defer p.starting.Unlock()
	defer func() {
		if retErr != nil {
			c.undo(ctx, p)
		}
	}()
	if err := c.openOutput(r); err != nil {
		return err
	}
	if r.Checkpoint != "" {
		p.restore = &oci.Checkpoint{ImagePath: r.Checkpoint, WorkPath: filepath.Join(c.bundle, "work"), OpenTCP: true, UnixSockets: true, FileLocks: true}
	} else {
		err := p.launch(ctx, func(ctx context.Context, l oci.Launch) error { return c.rt.Create(ctx, c.id, l) })
		if err != nil {
			return err
		}
		c.oom = findOOM(p.pid)
	}
	c.entry = c.newEntry(r)
	p.state = stateCreated
	c.init = p
	c.s.deps.Events(created(r, p.pid))
	return nil
}

// undo takes back a create that failed.
func (c *container) undo(ctx context.Context, p *process) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	p.io.close()
	// The absent is removed already; what cannot be removed is left to the shim's delete action.
	_ = c.rt.Delete(ctx, c.id, true)
	p.io.drain(drainTimeout)
	if c.log != nil {
		_ = c.log.Close()
	}
	_ = oci.UnmountAll(c.rootfs())
}

func (c *container) process(exec string) (*process, error) {
	if exec == "" {
		return c.init, nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	p := c.execs[exec]
	if p == nil {
		return nil, fmt.Errorf("process %s of container %s: %w", exec, c.id, errdefs.ErrNotFound)
	}
	return p, nil
}

func (c *container) addExec(r *request) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.execs[r.ExecID] != nil {
		return fmt.Errorf("process %s of container %s: %w", r.ExecID, c.id, errdefs.ErrAlreadyExists)
	}
	if c.gone {
		return fmt.Errorf("container %s is not running: %w", c.id, errdefs.ErrFailedPrecondition)
	}
	p := newProcess(c, r)
	p.state = stateCreated
	c.execs[r.ExecID] = p
	c.s.deps.Events(execAdded(c.id, r.ExecID))
	return nil
}

func (c *container) deleteExec(p *process) error {
	switch p.view().state {
	case stateRunning, statePaused:
		return fmt.Errorf("process %s of container %s still runs: %w", p.exec, c.id, errdefs.ErrFailedPrecondition)
	case stateStopped:
		<-p.done
		p.io.drain(drainTimeout)
	default:
	}
	p.io.close()
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.execs, p.exec)
	return nil
}

// execNames are the ids of the processes that exec made, by process number.
func (c *container) execNames() map[int]string {
	c.mu.Lock()
	defer c.mu.Unlock()
	out := map[int]string{}
	for id, p := range c.execs {
		if v := p.view(); v.state == stateRunning {
			out[v.pid] = id
		}
	}
	return out
}

// delete removes a container that has ended or never ran.
func (c *container) delete(ctx context.Context) error {
	c.busy.Lock()
	defer c.busy.Unlock()
	p := c.init
	switch v := p.view(); {
	case v.state == stateRunning || v.state == statePaused:
		return fmt.Errorf("container %s still runs: %w", c.id, errdefs.ErrFailedPrecondition)
	case v.state == stateCreated && v.pid != 0:
		// It waits for a start that does not come.
		if _, err := c.s.deps.Reaper.Signal(v.pid, unix.SIGKILL); err != nil {
			return err
		}
		<-p.done
	case v.state == stateStopped:
		<-p.done
	default:
	}
	p.io.drain(drainTimeout)
	p.io.close()
	if c.log != nil {
		_ = c.log.Close() // what cannot be written is counted as dropped
	}
	c.hub.close()
	if err := c.rt.Delete(ctx, c.id, false); err != nil {
		return err
	}
	if err := oci.RemoveRoot(c.rootfs()); err != nil {
		return err
	}
	c.s.forget(c.id)
	c.s.deps.Events(deleted(c.id, p.pid, p.exit))
	return nil
}

// killAll signals every process of the container.
func (c *container) killAll(ctx context.Context, signal uint32) error {
	if unix.Signal(signal) == unix.SIGKILL && c.facts.sharedPID {
		return c.rt.KillAll(ctx, c.id)
	}
	pids, err := c.rt.Pids(ctx, c.id)
	if err != nil {
		return err
	}
	for _, pid := range pids {
		if err := unix.Kill(pid, unix.Signal(signal)); err != nil && err != unix.ESRCH {
			return fmt.Errorf("signal process %d: %w", pid, err)
		}
	}
	return nil
}

func (c *container) freeze(ctx context.Context, frozen bool) error {
	c.busy.Lock()
	defer c.busy.Unlock()
	from, to, call, event := stateRunning, statePaused, c.rt.Pause, paused
	if !frozen {
		from, to, call, event = statePaused, stateRunning, c.rt.Resume, resumed
	}
	if v := c.init.view(); v.state != from {
		return fmt.Errorf("container %s is %s: %w", c.id, v.state, errdefs.ErrFailedPrecondition)
	}
	if err := call(ctx, c.id); err != nil {
		return err
	}
	c.init.change(from, to)
	c.s.deps.Events(event(c.id))
	return nil
}

// end is called once, when the first process has ended: it ends the others and waits until they are told of.
func (c *container) end() {
	c.mu.Lock()
	c.gone = true
	execs := make([]*process, 0, len(c.execs))
	for _, p := range c.execs {
		execs = append(execs, p)
	}
	c.mu.Unlock()
	if c.facts.sharedPID {
		ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
		defer cancel()
		_ = c.rt.KillAll(ctx, c.id) // an empty container is what we want
	}
	for _, p := range execs {
		if p.view().state == stateRunning {
			<-p.done
		}
	}
}
