// SPDX-License-Identifier: Apache-2.0

package task

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/ttrpc"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/wire"
)

// SandboxService is the sandbox service's name on the wire (containerd.runtime.sandbox.v1).
const SandboxService = "containerd.runtime.sandbox.v1.Sandbox"

// The states of a sandbox as the CRI names them.
const (
	sandboxReady    = "SANDBOX_READY"
	sandboxNotReady = "SANDBOX_NOTREADY"
)

// linger is how long the shim outlives its last sandbox.
const linger = 200 * time.Millisecond

// sandbox is one that a client of containerd's Sandbox API made. It has no process: it holds the shim, in which its containers
// join, and ends with them when it is stopped. nodeagent itself has no need of it.
type sandbox struct {
	created, exited time.Time
	started         bool
	done            chan struct{} // closed when it is stopped
}

// sandboxMethods are the service's methods by their full names. Metrics and updates are not served.
func (s *Service) sandboxMethods() map[string]ttrpc.Handler {
	out := map[string]ttrpc.Handler{}
	for name, fn := range map[string]func(ctx context.Context, id string) (wire.Message, error){
		"CreateSandbox": s.createSandbox, "StartSandbox": s.startSandbox, "Platform": s.platform, "StopSandbox": s.stopSandbox,
		"WaitSandbox": s.waitSandbox, "SandboxStatus": s.sandboxStatus, "PingSandbox": s.ping, "ShutdownSandbox": s.shutdownSandbox,
	} {
		out[SandboxService+"/"+name] = func(ctx context.Context, body []byte) (wire.Message, error) {
			id := ""
			err := wire.Read(body, func(field int, v wire.Value) error {
				if field == 1 {
					id = v.String()
				}
				return nil
			})
			if err != nil || id == "" {
				return nil, fmt.Errorf("%s: no sandbox is named: %w", name, errors.Join(err, errdefs.ErrInvalidArgument))
			}
			return fn(ctx, id)
		}
	}
	return out
}

// sandbox finds one and copies what changes.
func (s *Service) sandbox(id string) (*sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.sandboxes[id]
	if b == nil {
		return nil, fmt.Errorf("sandbox %s: %w", id, errdefs.ErrNotFound)
	}
	view := *b
	return &view, nil
}

func (s *Service) createSandbox(_ context.Context, id string) (wire.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.stopping {
		return nil, fmt.Errorf("the shim ends: %w", errdefs.ErrUnavailable)
	}
	if s.sandboxes[id] != nil {
		return nil, fmt.Errorf("sandbox %s: %w", id, errdefs.ErrAlreadyExists)
	}
	s.sandboxes[id] = &sandbox{created: time.Now(), done: make(chan struct{})}
	return nil, nil //nolint:nilnil // an empty message
}

// startSandbox answers with the shim's own process: there is no other.
func (s *Service) startSandbox(_ context.Context, id string) (wire.Message, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	b := s.sandboxes[id]
	if b == nil {
		return nil, fmt.Errorf("sandbox %s: %w", id, errdefs.ErrNotFound)
	}
	if b.started || !b.exited.IsZero() {
		return nil, fmt.Errorf("sandbox %s was started before: %w", id, errdefs.ErrFailedPrecondition)
	}
	b.started = true
	var m wire.Message
	m.Uint(1, uint64(os.Getpid())) //nolint:gosec // process numbers are positive
	m.Time(2, b.created)
	return m, nil
}

func (s *Service) platform(_ context.Context, id string) (wire.Message, error) {
	if _, err := s.sandbox(id); err != nil {
		return nil, err
	}
	var m, p wire.Message
	p.String(1, runtime.GOOS)
	p.String(2, runtime.GOARCH)
	m.Bytes(1, p)
	return m, nil
}

func (s *Service) ping(_ context.Context, id string) (wire.Message, error) {
	_, err := s.sandbox(id)
	return nil, err
}

func (s *Service) sandboxStatus(_ context.Context, id string) (wire.Message, error) {
	b, err := s.sandbox(id)
	if err != nil {
		return nil, err
	}
	state := sandboxNotReady
	if b.started && b.exited.IsZero() {
		state = sandboxReady
	}
	var m wire.Message
	m.String(1, id)
	m.Uint(2, uint64(os.Getpid())) //nolint:gosec // process numbers are positive
	m.String(3, state)
	m.Time(5, b.created)
	m.Time(6, b.exited)
	return m, nil
}

func (s *Service) waitSandbox(ctx context.Context, id string) (wire.Message, error) {
	b, err := s.sandbox(id)
	if err != nil {
		return nil, err
	}
	select {
	case <-b.done:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	if b, err = s.sandbox(id); err != nil {
		return nil, err
	}
	var m wire.Message
	m.Time(2, b.exited)
	return m, nil
}

// stopSandbox kills the shim's containers and waits for their ends. A stopped one is stopped already.
func (s *Service) stopSandbox(ctx context.Context, id string) (wire.Message, error) {
	if _, err := s.sandbox(id); err != nil {
		return nil, err
	}
	s.mu.Lock()
	containers := slices.Collect(maps.Values(s.containers))
	s.mu.Unlock()
	for _, c := range containers {
		<-c.ready
		if c.init == nil || c.init.view().pid == 0 {
			continue
		}
		if err := c.init.kill(ctx, uint32(unix.SIGKILL)); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
			return nil, err
		}
		select {
		case <-c.init.done:
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if b := s.sandboxes[id]; b != nil && b.exited.IsZero() {
		b.exited = time.Now()
		close(b.done)
	}
	return nil, nil //nolint:nilnil // an empty message
}

// shutdownSandbox forgets a sandbox, stopping it first; the shim ends with its last sandbox and container.
func (s *Service) shutdownSandbox(ctx context.Context, id string) (wire.Message, error) {
	if _, err := s.stopSandbox(ctx, id); err != nil && !errors.Is(err, errdefs.ErrNotFound) {
		return nil, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.sandboxes, id)
	// containerd's client takes an answer for none when the connection ends with it.
	time.AfterFunc(linger, func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.stopIfIdle()
	})
	return nil, nil //nolint:nilnil // an empty message
}
