// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"fmt"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/store"
)

// queuedEvents is how many events wait for one listener; a listener that falls
// further behind is disconnected and has to list anew.
const queuedEvents = 1024

// events hands each event to all listeners.
type events struct {
	// mu guards what follows.
	mu        sync.Mutex
	listeners map[chan *runtimeapi.ContainerEventResponse]struct{}
	closed    bool
}

func newEvents() *events {
	return &events{listeners: map[chan *runtimeapi.ContainerEventResponse]struct{}{}}
}

// wanted tells whether anybody listens.
func (e *events) wanted() bool {
	e.mu.Lock()
	defer e.mu.Unlock()
	return len(e.listeners) > 0
}

// send never blocks.
func (e *events) send(ev *runtimeapi.ContainerEventResponse) {
	e.mu.Lock()
	defer e.mu.Unlock()
	for l := range e.listeners {
		select {
		case l <- ev:
		default:
			delete(e.listeners, l)
			close(l)
		}
	}
}

func (e *events) listen() (chan *runtimeapi.ContainerEventResponse, error) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.closed {
		return nil, fmt.Errorf("the daemon stops: %w", errdefs.ErrUnavailable)
	}
	l := make(chan *runtimeapi.ContainerEventResponse, queuedEvents)
	e.listeners[l] = struct{}{}
	return l, nil
}

func (e *events) leave(l chan *runtimeapi.ContainerEventResponse) {
	e.mu.Lock()
	defer e.mu.Unlock()
	if _, ok := e.listeners[l]; ok {
		delete(e.listeners, l)
		close(l)
	}
}

// close disconnects all listeners.
func (e *events) close() {
	e.mu.Lock()
	defer e.mu.Unlock()
	e.closed = true
	for l := range e.listeners {
		delete(e.listeners, l)
		close(l)
	}
}

// GetContainerEvents tells of each change of a sandbox or container from now on.
func (s *Server) GetContainerEvents(_ *runtimeapi.GetEventsRequest, out grpc.ServerStreamingServer[runtimeapi.ContainerEventResponse]) error {
	l, err := s.events.listen()
	if err != nil {
		return err
	}
	defer s.events.leave(l)
	for {
		select {
		case ev, ok := <-l:
			if !ok {
				return fmt.Errorf("events were lost; list anew: %w", errdefs.ErrUnavailable)
			}
			if err := out.Send(ev); err != nil {
				return err
			}
		case <-out.Context().Done():
			return nil
		}
	}
}

// sandboxChanged is called by the sandbox room after each change.
func (s *Server) sandboxChanged(sb *store.Sandbox, kind runtimeapi.ContainerEventType) {
	s.forget(sb.ID, kind)
	if s.events.wanted() {
		s.events.send(s.event(sb.ID, sb, kind))
	}
}

// containerChanged is called by the container room after each change.
func (s *Server) containerChanged(c *store.Container, kind runtimeapi.ContainerEventType) {
	s.forget(c.ID, kind)
	if !s.events.wanted() {
		return
	}
	sb, ok := s.store.Sandboxes.Get(c.SandboxID)
	if !ok {
		sb = &store.Sandbox{ID: c.SandboxID, State: store.SandboxNotReady}
		sb.Config.M = &runtimeapi.PodSandboxConfig{}
	}
	s.events.send(s.event(c.ID, sb, kind))
}

// forget closes the counters of what does not run any more.
func (s *Server) forget(id string, kind runtimeapi.ContainerEventType) {
	if kind == runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT || kind == runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT {
		s.stats.Forget(id)
	}
}

func (s *Server) event(id string, sb *store.Sandbox, kind runtimeapi.ContainerEventType) *runtimeapi.ContainerEventResponse {
	return &runtimeapi.ContainerEventResponse{
		ContainerId: id, ContainerEventType: kind, CreatedAt: time.Now().UnixNano(),
		PodSandboxStatus: sandboxStatus(sb), ContainersStatuses: s.statusesOf(sb.ID),
	}
}
