// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"math"
	"syscall"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/signal"
	"golang.org/x/sync/errgroup"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/nri"
	"github.com/nodeagent/nodeagent/cri/steps"
	"github.com/nodeagent/nodeagent/cri/store"
)

const killSignal = syscall.SIGKILL

// killPatience is how long a container may take to die of SIGKILL before stop
// sends it again.
const killPatience = 10 * time.Second

// Stop asks the container to end and kills it when grace has passed; it
// returns when the container has ended. A second call with less grace shortens
// the first one's. The unknown and whatever does not run are stopped already.
func (m *Manager) Stop(ctx context.Context, ref string, grace time.Duration) error {
	c, err := m.deps.Store.Containers.Find(ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return m.stopID(ctx, c.ID, grace)
}

// Grace turns seconds into a duration that does not overflow.
func Grace(seconds int64) time.Duration {
	const most = math.MaxInt64 / int64(time.Second)
	return time.Duration(min(max(seconds, 0), most)) * time.Second
}

func (m *Manager) stopID(ctx context.Context, id string, grace time.Duration) error {
	var l *life
	var sig syscall.Signal
	// Under the lock a start that is under way has ended.
	err := m.locked(ctx, id, func(_ context.Context, c *store.Container) error {
		if c.State == store.ContainerRunning {
			l, sig = m.life(id), stopSignal(c)
		}
		return nil
	})
	if err != nil || l == nil {
		if errdefs.IsNotFound(err) {
			return nil
		}
		return err
	}
	m.armStop(l, sig, grace)
	select {
	case <-l.exited:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("container %s has not ended yet: %w", id, ctx.Err())
	}
}

func stopSignal(c *store.Container) syscall.Signal {
	if s, err := signal.ParseSignal(c.StopSignal); err == nil {
		return s
	}
	return syscall.SIGTERM
}

// armStop begins the stop of a container, or brings its end forward.
func (m *Manager) armStop(l *life, sig syscall.Signal, grace time.Duration) {
	killAt := time.Now().Add(grace)
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.rearm != nil {
		if killAt.Before(l.killAt) {
			l.killAt = killAt
			select {
			case l.rearm <- struct{}{}:
			default: // one is on its way and will see the new time
			}
		}
		return
	}
	l.killAt, l.rearm = killAt, make(chan struct{}, 1)
	m.background(func(ctx context.Context) { m.stopper(ctx, l, sig, grace) })
}

// stopper runs until the container has ended; it does not end with the call
// that began it.
func (m *Manager) stopper(ctx context.Context, l *life, sig syscall.Signal, grace time.Duration) {
	if grace > 0 {
		if err := m.signal(ctx, l.id, sig); err != nil {
			m.deps.Log.WarnContext(ctx, "stop signal not delivered", "container", l.id, "err", err)
		}
	}
	timer := time.NewTimer(grace)
	defer timer.Stop()
	for {
		select {
		case <-l.exited:
			return
		case <-ctx.Done():
			return
		case <-l.rearm:
			l.mu.Lock()
			timer.Reset(time.Until(l.killAt))
			l.mu.Unlock()
		case <-timer.C:
			if err := m.signal(ctx, l.id, killSignal); err != nil {
				m.deps.Log.WarnContext(ctx, "container not killed", "container", l.id, "err", err)
			}
			timer.Reset(killPatience)
		}
	}
}

// signal sends a signal to the first process; one that has ended has it already.
func (m *Manager) signal(ctx context.Context, id string, sig syscall.Signal) error {
	err := m.deps.Containerd.KillProcess(ctx, containerd.Process{ContainerID: id}, sig)
	if errdefs.IsNotFound(err) {
		return nil
	}
	return err
}

// StopAll kills all containers of a sandbox at once and waits for them.
func (m *Manager) StopAll(ctx context.Context, sandboxID string) error {
	g, ctx := errgroup.WithContext(ctx)
	for _, c := range m.deps.Store.ContainersOf(sandboxID) {
		g.Go(func() error { return m.stopID(ctx, c.ID, 0) })
	}
	return g.Wait()
}

// Remove kills the container when it runs and forgets it. The unknown is
// removed already.
func (m *Manager) Remove(ctx context.Context, ref string) error {
	c, err := m.deps.Store.Containers.Find(ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	return m.removeID(ctx, c.ID)
}

func (m *Manager) removeID(ctx context.Context, id string) error {
	_, err := m.calls.Do(ctx, "remove container "+id, func(ctx context.Context) (struct{}, error) {
		if err := m.stopID(ctx, id, 0); err != nil {
			return struct{}{}, err
		}
		err := m.locked(ctx, id, m.remove)
		if errdefs.IsNotFound(err) {
			err = nil
		}
		return struct{}{}, err
	})
	return err
}

// RemoveAll removes all containers of a sandbox.
func (m *Manager) RemoveAll(ctx context.Context, sandboxID string) error {
	var errs []error
	for _, c := range m.deps.Store.ContainersOf(sandboxID) {
		errs = append(errs, m.removeID(ctx, c.ID))
	}
	return errors.Join(errs...)
}

func (m *Manager) remove(ctx context.Context, c *store.Container) error {
	if c.State == store.ContainerRunning {
		return fmt.Errorf("container %s runs again: %w", c.ID, errdefs.ErrFailedPrecondition)
	}
	ctx, end := m.deps.Stages.Time(ctx, "RemoveContainer", c.ID)
	defer end()
	if err := m.discard(ctx, c); err != nil {
		return err
	}
	steps.Stage(ctx, "forget")
	if err := m.deps.Store.Containers.Delete(c.ID); err != nil {
		return err
	}
	m.deps.Notify(c, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
	m.tell(ctx, nri.ContainerRemoved, c)
	return nil
}

// discard removes all that a container has but its record.
func (m *Manager) discard(ctx context.Context, c *store.Container) error {
	ctx = steps.Stage(ctx, "remove task")
	if err := m.killTask(ctx, c.ID); err != nil {
		return err
	}
	ctx = steps.Stage(ctx, "remove container")
	if err := m.deps.Containerd.DeleteContainer(ctx, c.ID); err != nil {
		return err
	}
	if c.SnapshotKey != "" {
		ctx = steps.Stage(ctx, "remove root file system")
		if err := m.deps.Containerd.RemoveSnapshot(ctx, c.Snapshotter, c.SnapshotKey); err != nil {
			return err
		}
	}
	m.releaseLabel(c)
	steps.Stage(ctx, "remove files")
	return m.removeDirs(c)
}

// releaseLabel gives back the SELinux label that only this container has.
func (m *Manager) releaseLabel(c *store.Container) {
	if c.OwnLabel != "" {
		m.deps.Spec.System.Release(c.OwnLabel)
	}
}
