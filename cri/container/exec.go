// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/spec"
	"github.com/nodeagent/nodeagent/cri/store"
	"github.com/nodeagent/nodeagent/cri/stream"
)

// Runtime is the manager as the streaming server sees it.
type Runtime struct {
	m *Manager
}

var _ stream.Runtime = Runtime{}

// Runtime returns the view for the streaming server.
func (m *Manager) Runtime() Runtime { return Runtime{m} }

// NetNS returns the path of a ready sandbox's network namespace.
func (r Runtime) NetNS(_ context.Context, ref string) (string, error) {
	sb, err := r.m.deps.Store.Sandboxes.Find(ref)
	if err != nil {
		return "", err
	}
	if sb.State != store.SandboxReady {
		return "", fmt.Errorf("sandbox %s is not ready: %w", sb.ID, errdefs.ErrFailedPrecondition)
	}
	return sb.Namespaces.Net, nil
}

// Attach connects a client to a container's first process.
func (r Runtime) Attach(ctx context.Context, ref string, s stream.Streams) error {
	c, err := r.m.Running(ref)
	if err != nil {
		return err
	}
	l := r.m.life(c.ID)
	if l == nil {
		return fmt.Errorf("container %s has ended: %w", c.ID, errdefs.ErrFailedPrecondition)
	}
	return l.streams.Attach(ctx, s)
}

// Exec starts a command in a running container.
func (r Runtime) Exec(ctx context.Context, ref string, cmd stream.Command) (_ stream.Process, retErr error) {
	c, err := r.m.Running(ref)
	if err != nil {
		return nil, err
	}
	first, err := r.m.firstProcess(ctx, c.ID)
	if err != nil {
		return nil, err
	}
	e := &execution{
		m: r.m, p: containerd.Process{ContainerID: c.ID, ExecID: store.NewID()},
		dir: filepath.Join(r.m.dir(c), "exec"),
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, e.Delete(context.WithoutCancel(ctx)))
		}
	}()
	paths, err := e.open(cmd)
	if err != nil {
		return nil, err
	}
	process := spec.ExecProcess(first, cmd.Args, cmd.TTY)
	if err := e.start(ctx, process, paths); err != nil {
		if lost, loadErr := spec.RestoreAppArmor(r.m.deps.Spec.System, process.ApparmorProfile); !lost {
			return nil, errors.Join(err, loadErr)
		}
		if err := e.again(ctx, process, paths); err != nil {
			return nil, err
		}
	}
	e.connected()
	return e, nil
}

// firstProcess returns the specification of a running container's first
// process, which commands resemble. It is asked for once: probes come often.
func (m *Manager) firstProcess(ctx context.Context, id string) (*specs.Spec, error) {
	l := m.life(id)
	if l == nil {
		return nil, fmt.Errorf("container %s has ended: %w", id, errdefs.ErrFailedPrecondition)
	}
	l.mu.Lock()
	p := l.process
	l.mu.Unlock()
	if p != nil {
		return &specs.Spec{Process: p}, nil
	}
	s, err := m.deps.Containerd.Spec(ctx, id)
	if err != nil {
		return nil, err
	}
	l.mu.Lock()
	l.process = s.Process
	l.mu.Unlock()
	return &specs.Spec{Process: s.Process}, nil
}

// execution is one command in a container with its FIFOs.
type execution struct {
	m    *Manager
	p    containerd.Process
	dir  string
	made bool

	stdin   *os.File
	outputs []*os.File
	keepers []*os.File
	paths   []string
	copies  sync.WaitGroup
	drained chan struct{} // closed when all output is copied
}

var _ stream.Process = (*execution)(nil)

func (e *execution) start(ctx context.Context, process *specs.Process, paths containerd.Streams) error {
	if err := e.m.deps.Containerd.Exec(ctx, e.p, process, paths); err != nil {
		return err
	}
	e.made = true
	_, err := e.m.deps.Containerd.StartProcess(ctx, e.p)
	return err
}

// again starts the command as another process, at the same FIFOs.
func (e *execution) again(ctx context.Context, process *specs.Process, paths containerd.Streams) error {
	if e.made {
		if _, err := e.m.deps.Containerd.DeleteProcess(ctx, e.p); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	e.made, e.p.ExecID = false, store.NewID()
	return e.start(ctx, process, paths)
}

// open makes the FIFOs and begins to copy.
func (e *execution) open(cmd stream.Command) (containerd.Streams, error) {
	s := containerd.Streams{Terminal: cmd.TTY}
	if err := os.MkdirAll(e.dir, 0o700); err != nil {
		return s, fmt.Errorf("make directory of exec: %w", err)
	}
	var err error
	if cmd.Stdin != nil {
		s.Stdin = e.path("in")
		if e.stdin, err = openFIFO(s.Stdin, unix.O_RDWR, true); err != nil {
			return s, err
		}
		// Not waited for: only the client's end lets its Read return.
		go func() { _, _ = io.Copy(e.stdin, cmd.Stdin) }()
	}
	if cmd.Stdout != nil {
		s.Stdout = e.path("out")
		if err := e.copy(s.Stdout, cmd.Stdout); err != nil {
			return s, err
		}
	}
	if cmd.Stderr != nil && !cmd.TTY {
		s.Stderr = e.path("err")
		if err := e.copy(s.Stderr, cmd.Stderr); err != nil {
			return s, err
		}
	}
	e.drained = make(chan struct{})
	go func() {
		e.copies.Wait()
		close(e.drained)
	}()
	return s, nil
}

func (e *execution) path(name string) string {
	p := filepath.Join(e.dir, e.p.ExecID[:16]+"-"+name)
	e.paths = append(e.paths, p)
	return p
}

func (e *execution) copy(path string, w io.Writer) error {
	r, err := openFIFO(path, unix.O_RDONLY, true)
	if err != nil {
		return err
	}
	e.outputs = append(e.outputs, r)
	k, err := openFIFO(path, unix.O_WRONLY, false)
	if err != nil {
		return err
	}
	e.keepers = append(e.keepers, k)
	e.copies.Go(func() {
		_, _ = io.Copy(w, r)
		_, _ = io.Copy(io.Discard, r) // a client that went must not block the command
	})
	return nil
}

// connected lets the copies see the ends of the output.
func (e *execution) connected() {
	for _, k := range e.keepers {
		closer(k)
	}
	e.keepers = nil
}

// Wait returns the command's exit code.
func (e *execution) Wait(ctx context.Context) (uint32, error) {
	x, err := e.m.deps.Containerd.WaitProcess(ctx, e.p)
	return x.Code, err
}

// Drain waits for the rest of the output.
func (e *execution) Drain(ctx context.Context) error {
	select {
	case <-e.drained:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Resize sets the terminal's size.
func (e *execution) Resize(ctx context.Context, s stream.Size) error {
	return e.m.deps.Containerd.ResizeTerminal(ctx, e.p, uint32(s.Width), uint32(s.Height))
}

// CloseStdin ends the command's input.
func (e *execution) CloseStdin(ctx context.Context) error {
	if e.stdin != nil {
		closer(e.stdin)
	}
	return e.m.deps.Containerd.CloseStdin(ctx, e.p)
}

// Kill ends the command.
func (e *execution) Kill(ctx context.Context) error {
	err := e.m.deps.Containerd.KillProcess(ctx, e.p, killSignal)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// Delete removes the process from containerd and stops copying.
func (e *execution) Delete(ctx context.Context) error {
	var err error
	if e.made {
		if _, err = e.m.deps.Containerd.DeleteProcess(ctx, e.p); errdefs.IsNotFound(err) {
			err = nil
		}
	}
	e.connected()
	for _, f := range e.outputs {
		closer(f)
	}
	if e.stdin != nil {
		closer(e.stdin)
	}
	for _, p := range e.paths {
		_ = os.Remove(p) // absent when its FIFO was never made
	}
	e.copies.Wait()
	return err
}
