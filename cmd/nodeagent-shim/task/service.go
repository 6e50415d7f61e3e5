// SPDX-License-Identifier: Apache-2.0

// Package task is containerd's task service (containerd.task.v3) for the containers of one pod.
//
// It promises that the output of a container reaches its log whoever else is alive: neither containerd nor nodeagent is on the
// way. The end of a container's first process is told last of all its processes' ends, and only once.
package task

import (
	"context"
	"fmt"
	"os"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/enter"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/oci"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/reap"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/ttrpc"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/wire"
)

// ServiceName is the task service's name on the wire.
const ServiceName = "containerd.task.v3.Task"

// Deps are what a Service needs of its process.
type Deps struct {
	// Namespace is containerd's namespace of the containers.
	Namespace string
	Reaper    *reap.Reaper
	// Events takes the events; it must not block.
	Events func(Event)
	// Stop ends the process; called when containerd asks for it and no container is left.
	Stop func()
	// Held says that somebody holds the shim for a container that is to come, until Release.
	Held bool
	// Bundle is told of each container's directory before it is made; nil when nobody wants to know.
	Bundle func(dir string) error
	// Idle is called after work that leaves garbage behind.
	Idle func()
}

// Service is the task service.
type Service struct {
	deps    Deps
	program enter.Program // of all containers

	mu         sync.Mutex // guards what follows
	containers map[string]*container
	links      map[string]*linkServer // by the pod's directory
	sandboxes  map[string]*sandbox    // of containerd's Sandbox API
	// expected is until when a container may still come, though there is none; stopping is final.
	expected time.Time
	stopping bool
}

// ExpectMethod is our own addition: a start action that finds this shim asks it to wait for the container that is to come,
// so that the end of the pod's last container does not end the shim under the next one.
const ExpectMethod = "nodeagent.shim.v1.Shim/Expect"

// expectation is how long a container may take to come.
const expectation = 15 * time.Second

// orphaned is how long a shim without a container waits for one, or for its end.
const orphaned = time.Minute

// New returns a Service without containers.
func New(deps Deps) *Service {
	s := &Service{deps: deps, containers: map[string]*container{}, links: map[string]*linkServer{}, sandboxes: map[string]*sandbox{}}
	if !deps.Held {
		s.expireLater()
	}
	return s
}

// Release ends a shim that was held and got no container.
func (s *Service) Release() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopIfIdle()
}

// expireLater ends a shim that has no container for long and that nobody ends: containerd died between its start and its use.
func (s *Service) expireLater() {
	time.AfterFunc(orphaned, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stopIfIdle()
	})
}

// Methods are the service's methods by their full names.
func (s *Service) Methods() map[string]ttrpc.Handler {
	methods := map[string]func(context.Context, *request) (wire.Message, error){
		"Create": s.create, "Start": s.start, "Delete": s.delete, "Exec": s.exec, "State": s.state, "Kill": s.kill,
		"Wait": s.wait, "Pids": s.pids, "ResizePty": s.resize, "CloseIO": s.closeIO, "Pause": s.pause, "Resume": s.resume,
		"Update": s.update, "Checkpoint": s.checkpoint, "Connect": s.connect, "Shutdown": s.shutdown, "Stats": s.stats,
	}
	out := s.sandboxMethods()
	out[ExpectMethod] = s.expect
	for name, fn := range methods {
		out[ServiceName+"/"+name] = func(ctx context.Context, body []byte) (wire.Message, error) {
			r, err := readRequest(name, body)
			if err != nil {
				return nil, fmt.Errorf("%s: %w: %w", name, err, errdefs.ErrInvalidArgument)
			}
			return fn(ctx, r)
		}
	}
	return out
}

func (s *Service) container(id string) (*container, error) {
	s.mu.Lock()
	c := s.containers[id]
	s.mu.Unlock()
	if c != nil {
		<-c.ready
	}
	if c == nil || c.init == nil {
		return nil, fmt.Errorf("container %s: %w", id, errdefs.ErrNotFound)
	}
	return c, nil
}

func (s *Service) process(r *request) (*container, *process, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, nil, err
	}
	p, err := c.process(r.ExecID)
	return c, p, err
}

func (s *Service) create(ctx context.Context, r *request) (wire.Message, error) {
	c := &container{s: s, id: r.ID, bundle: r.Bundle, execs: map[string]*process{}, ready: make(chan struct{})}
	// The name is taken before the work begins; everybody else waits until it is done.
	defer close(c.ready)
	s.mu.Lock()
	if s.stopping {
		s.mu.Unlock()
		return nil, fmt.Errorf("the shim ends: %w", errdefs.ErrUnavailable)
	}
	if s.containers[r.ID] != nil {
		s.mu.Unlock()
		return nil, fmt.Errorf("container %s: %w", r.ID, errdefs.ErrAlreadyExists)
	}
	s.containers[r.ID] = c
	s.expected = time.Time{} // it came
	s.mu.Unlock()
	var err error
	if s.deps.Bundle != nil {
		err = s.deps.Bundle(r.Bundle)
	}
	if err == nil {
		err = c.create(ctx, r)
	}
	if err != nil {
		s.forget(r.ID)
		return nil, err
	}
	s.deps.Idle()
	var m wire.Message
	m.Uint(1, uint64(c.init.pid)) //nolint:gosec // process numbers are positive
	return m, nil
}

func (s *Service) forget(id string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.containers, id)
	if len(s.containers) == 0 {
		s.expireLater()
	}
}

func (s *Service) start(ctx context.Context, r *request) (wire.Message, error) {
	_, p, err := s.process(r)
	if err != nil {
		return nil, err
	}
	if err := p.start(ctx); err != nil {
		return nil, err
	}
	s.deps.Idle()
	var m wire.Message
	m.Uint(1, uint64(p.pid)) //nolint:gosec // process numbers are positive
	return m, nil
}

func (s *Service) delete(ctx context.Context, r *request) (wire.Message, error) {
	c, p, err := s.process(r)
	if err != nil {
		return nil, err
	}
	if r.ExecID != "" {
		err = c.deleteExec(p)
	} else {
		err = c.delete(ctx)
	}
	if err != nil {
		return nil, err
	}
	s.deps.Idle()
	var m wire.Message
	m.Uint(1, uint64(p.pid)) //nolint:gosec // process numbers are positive
	m.Uint(2, uint64(p.exit.Status))
	m.Time(3, p.exit.At)
	return m, nil
}

func (s *Service) exec(_ context.Context, r *request) (wire.Message, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	return nil, c.addExec(r)
}

func (s *Service) state(_ context.Context, r *request) (wire.Message, error) {
	c, p, err := s.process(r)
	if err != nil {
		return nil, err
	}
	v := p.view()
	var m wire.Message
	m.String(1, r.ID)
	m.String(2, c.bundle)
	m.Uint(3, uint64(v.pid)) //nolint:gosec // process numbers are positive
	m.Uint(4, uint64(v.state))
	m.String(5, p.stdin)
	m.String(6, p.stdout)
	m.String(7, p.stderr)
	m.Bool(8, p.terminal)
	m.Uint(9, uint64(v.exit.Status))
	m.Time(10, v.exit.At)
	m.String(11, r.ExecID)
	return m, nil
}

func (s *Service) kill(ctx context.Context, r *request) (wire.Message, error) {
	c, p, err := s.process(r)
	if err != nil {
		return nil, err
	}
	if r.All && r.ExecID == "" {
		return nil, c.killAll(ctx, r.Signal)
	}
	return nil, p.kill(ctx, r.Signal)
}

func (s *Service) wait(ctx context.Context, r *request) (wire.Message, error) {
	_, p, err := s.process(r)
	if err != nil {
		return nil, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	var m wire.Message
	m.Uint(1, uint64(p.exit.Status))
	m.Time(2, p.exit.At)
	return m, nil
}

func (s *Service) pids(ctx context.Context, r *request) (wire.Message, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	pids, err := c.rt.Pids(ctx, c.id)
	if err != nil {
		return nil, err
	}
	names := c.execNames()
	var m wire.Message
	for _, pid := range pids {
		var info wire.Message
		info.Uint(1, uint64(pid)) //nolint:gosec // process numbers are positive
		if name := names[pid]; name != "" {
			var details wire.Message
			details.String(1, name)
			info.Any(2, wire.Any{Type: "containerd.runc.v1.ProcessDetails", Value: details})
		}
		m.Bytes(1, info)
	}
	return m, nil
}

func (s *Service) resize(_ context.Context, r *request) (wire.Message, error) {
	_, p, err := s.process(r)
	if err != nil {
		return nil, err
	}
	return nil, p.resize(r.Width, r.Height)
}

func (s *Service) closeIO(_ context.Context, r *request) (wire.Message, error) {
	_, p, err := s.process(r)
	if err != nil {
		return nil, err
	}
	if r.Stdin {
		p.closeStdin()
	}
	return nil, nil //nolint:nilnil // an empty message
}

func (s *Service) pause(ctx context.Context, r *request) (wire.Message, error) {
	return s.freeze(ctx, r, true)
}

func (s *Service) resume(ctx context.Context, r *request) (wire.Message, error) {
	return s.freeze(ctx, r, false)
}

func (s *Service) freeze(ctx context.Context, r *request, frozen bool) (wire.Message, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	return nil, c.freeze(ctx, frozen)
}

func (s *Service) update(ctx context.Context, r *request) (wire.Message, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	return nil, c.rt.Update(ctx, c.id, r.Any.Value)
}

func (s *Service) checkpoint(ctx context.Context, r *request) (wire.Message, error) {
	c, err := s.container(r.ID)
	if err != nil {
		return nil, err
	}
	dump, err := readCheckpoint(r.Any)
	if err != nil {
		return nil, err
	}
	dump.ImagePath = r.Path
	if err := c.rt.Dump(ctx, c.id, dump); err != nil {
		return nil, err
	}
	s.deps.Events(checkpointed(c.id, r.Path))
	return nil, nil //nolint:nilnil // an empty message
}

func readCheckpoint(a wire.Any) (oci.Checkpoint, error) {
	var c oci.Checkpoint
	err := wire.Read(a.Value, func(field int, v wire.Value) error {
		switch field {
		case 1:
			c.Exit = v.Bool()
		case 2:
			c.OpenTCP = v.Bool()
		case 3:
			c.UnixSockets = v.Bool()
		case 4:
			c.Terminal = v.Bool()
		case 5:
			c.FileLocks = v.Bool()
		case 6:
			c.EmptyNamespaces = append(c.EmptyNamespaces, v.String())
		case 7:
			c.CgroupsMode = v.String()
		case 9:
			c.WorkPath = v.String()
		case 10:
			c.ParentPath = v.String()
		}
		return nil
	})
	return c, err
}

func (s *Service) connect(_ context.Context, r *request) (wire.Message, error) {
	var m wire.Message
	m.Uint(1, uint64(os.Getpid())) //nolint:gosec // process numbers are positive
	if c, err := s.container(r.ID); err == nil {
		m.Uint(2, uint64(c.init.view().pid)) //nolint:gosec // process numbers are positive
	}
	return m, nil
}

func (s *Service) expect(context.Context, []byte) (wire.Message, error) { return nil, s.waitForNext() }

// waitForNext promises that the shim lives long enough for the next container, or refuses.
func (s *Service) waitForNext() error {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return fmt.Errorf("the shim ends: %w", errdefs.ErrUnavailable)
	}
	s.expected = time.Now().Add(expectation)
	return nil
}

// shutdown ends the shim when no container is left and none is expected.
func (s *Service) shutdown(context.Context, *request) (wire.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.stopIfIdle()
	return nil, nil //nolint:nilnil // an empty message
}

// stopIfIdle is called with the lock held.
func (s *Service) stopIfIdle() {
	if len(s.containers) > 0 || len(s.sandboxes) > 0 || s.stopping {
		return
	}
	if wait := time.Until(s.expected); wait > 0 {
		time.AfterFunc(wait, func() {
			s.mu.Lock()
			defer s.mu.Unlock()
			s.stopIfIdle()
		})
		return
	}
	s.stopping = true
	for _, l := range s.links {
		l.close()
	}
	go s.deps.Stop() // after the answer
}

// stats is not served: nodeagent reads cgroups itself, and their message types would triple the shim.
func (s *Service) stats(context.Context, *request) (wire.Message, error) {
	return nil, fmt.Errorf("statistics of the shim: %w", errdefs.ErrNotImplemented)
}
