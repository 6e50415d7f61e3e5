// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/nri"
	"github.com/nodeagent/nodeagent/cri/store"
)

// Delays between two tries to learn of an exit while containerd is away.
const (
	retryFirst = 50 * time.Millisecond
	retryLast  = 2 * time.Second
)

// follow watches a running container until it has ended or the manager closes.
func (m *Manager) follow(l *life) { m.background(func(ctx context.Context) { m.await(ctx, l) }) }

// await waits for the end of a running container and records it. It ends
// without a record only when the manager closes; recovery then finds the exit.
func (m *Manager) await(ctx context.Context, l *life) {
	var exit containerd.Exit
	ok := m.retry(ctx, l, "wait for container", func() error {
		e, err := m.deps.Containerd.WaitProcess(ctx, containerd.Process{ContainerID: l.id})
		if errdefs.IsNotFound(err) {
			e, err = containerd.Exit{Code: store.ExitUnknown, At: time.Now()}, nil
		}
		exit = e
		return err
	})
	if ok {
		m.retry(ctx, l, "record exit of container", func() error { return m.exited(ctx, l, exit) })
	}
}

// retry calls fn until it succeeds, less and less often; false when ctx ends first.
func (m *Manager) retry(ctx context.Context, l *life, what string, fn func() error) bool {
	delay := retryFirst
	for {
		err := fn()
		if err == nil {
			return true
		}
		if ctx.Err() != nil {
			return false
		}
		m.deps.Log.DebugContext(ctx, "cannot "+what, "container", l.id, "err", err) //nolint:sloglint // one of two constant texts
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return false
		}
		delay = min(2*delay, retryLast)
	}
}

// exited removes the task, reads the rest of its output and writes the record.
func (m *Manager) exited(ctx context.Context, l *life, exit containerd.Exit) error {
	unlock, err := m.locks.Lock(ctx, l.id)
	if err != nil {
		return err
	}
	defer unlock()
	c, ok := m.deps.Store.Containers.Get(l.id)
	if !ok || c.State != store.ContainerRunning {
		m.end(l)
		return nil
	}
	kills, read := oomKills(cgroupRoot, c.Cgroup) // the cgroup goes with the task
	last, err := m.deps.Containerd.DeleteTask(ctx, l.id)
	switch {
	case err == nil && exit.Code == store.ExitUnknown:
		exit.Code, exit.At = last.Code, last.At
	case err != nil && !errdefs.IsNotFound(err):
		return err
	}
	kills = m.oom.settle(ctx, c.ID, ending{cgroup: c.Cgroup, code: exit.Code, stopped: l.stopping()}, kills, read)
	drain, cancel := context.WithTimeout(ctx, m.cfg.DrainTimeout)
	defer cancel()
	if err := l.streams.Drain(drain); err != nil {
		m.deps.Log.InfoContext(ctx, "output of an exited container is held open", "container", l.id)
	}
	if err := l.streams.Close(); err != nil {
		m.deps.Log.WarnContext(ctx, "close streams of container", "container", l.id, "err", err)
	}
	done, err := m.deps.Store.Containers.Update(l.id, func(c *store.Container) error {
		c.State, c.ExitCode, c.FinishedAt = store.ContainerExited, int32(exit.Code), finished(exit.At, c.StartedAt) //nolint:gosec // codes fit a byte
		c.PID = 0
		c.Reason, c.Message = reason(exit.Code, kills > 0), oomMessage(kills)
		return nil
	})
	if err != nil {
		return err
	}
	m.tell(ctx, nri.ContainerStopped, done) // before the stop that waits for it returns
	m.end(l)
	if err := m.deps.Containerd.ReleaseTask(ctx, l.id); err != nil { // remove does it again
		m.deps.Log.DebugContext(ctx, "record of an ended task stays", "container", l.id, "err", err)
	}
	m.deps.Notify(done, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	return nil
}

// finished is the time of the exit; never before the start, whatever the shim's
// clock says.
func finished(at time.Time, started int64) int64 {
	if at.IsZero() || at.Unix() <= 0 {
		at = time.Now()
	}
	return max(at.UnixNano(), started)
}

func reason(code uint32, oom bool) string {
	switch {
	case oom && code != 0:
		return store.ReasonOOMKilled
	case code == 0:
		return store.ReasonCompleted
	default:
		return store.ReasonError
	}
}
