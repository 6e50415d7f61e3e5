// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/nri"
	"github.com/nodeagent/nodeagent/cri/steps"
	"github.com/nodeagent/nodeagent/cri/store"
)

// cleanupTimeout bounds what is done for a container after an error.
const cleanupTimeout = time.Minute

// Start runs a created container. When that fails the container has exited
// with code 128 and reason StartError, and may not be started again.
func (m *Manager) Start(ctx context.Context, ref string) error {
	c, err := m.deps.Store.Containers.Find(ref)
	if err != nil {
		return err
	}
	_, err = m.calls.Do(ctx, "start container "+c.ID, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, m.locked(ctx, c.ID, m.start)
	})
	return err
}

func (m *Manager) start(ctx context.Context, c *store.Container) error {
	if c.State != store.ContainerCreated {
		return fmt.Errorf("container %s is %s and cannot be started: %w", c.ID, c.State, errdefs.ErrFailedPrecondition)
	}
	sb, ok := m.deps.Store.Sandboxes.Get(c.SandboxID)
	if !ok || sb.State != store.SandboxReady {
		return fmt.Errorf("sandbox %s of container %s is not ready: %w", c.SandboxID, c.ID, errdefs.ErrFailedPrecondition)
	}
	ctx, end := m.deps.Stages.Time(ctx, "StartContainer", c.ID)
	defer end()
	l, err := m.run(ctx, c)
	if err == nil {
		return nil
	}
	m.clean(ctx, c.ID, l)
	if m.closing() {
		return err // the daemon stops: as if the call had not been made
	}
	failed, uerr := m.deps.Store.Containers.Update(c.ID, func(c *store.Container) error {
		now := time.Now().UnixNano()
		c.State, c.StartedAt, c.FinishedAt = store.ContainerExited, now, now
		c.ExitCode, c.Reason, c.Message = store.ExitStartError, store.ReasonStartError, err.Error()
		return nil
	})
	if uerr == nil {
		m.deps.Notify(failed, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
		m.tell(ctx, nri.ContainerStopped, failed)
	}
	return errors.Join(err, uerr)
}

// run makes the task and starts it. The life that it returns with an error is
// to be cleaned.
func (m *Manager) run(ctx context.Context, c *store.Container) (*life, error) {
	if err := m.deps.Plugins.Tell(ctx, nri.ContainerStart, m.sandboxOf(c), c); err != nil {
		return nil, err
	}
	ctx = steps.Stage(ctx, "open streams")
	h, err := m.deps.Handler(c.Handler)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(m.dir(c), 0o700); err != nil {
		return nil, fmt.Errorf("make container directory: %w", err)
	}
	s, err := m.deps.Streams.Open(c, m.dir(c))
	if err != nil {
		return nil, fmt.Errorf("open streams of container %s: %w", c.ID, err)
	}
	l := m.begin(c.ID, s)
	ctx = steps.Stage(ctx, "find mounts")
	rootfs, err := m.rootfs(ctx, c)
	if err != nil {
		return l, err
	}
	m.mounts.drop(c.ID) // it is started once
	ctx = steps.Stage(ctx, "create task")
	h.Runtime.RestoreFrom = c.RestoreFrom
	pid, err := m.createTask(ctx, c, h.Runtime, rootfs, s.Paths())
	if err != nil {
		return l, err
	}
	if err := s.Connected(); err != nil {
		return l, fmt.Errorf("hand over streams of container %s: %w", c.ID, err)
	}
	ctx = steps.Stage(ctx, "start process")
	cgroup := cgroupOf(pid)
	before := m.oom.before(c.ID, cgroup)
	if c.RestoreFrom == "" { // a restored one has been started by containerd
		if _, err := m.deps.Containerd.StartProcess(ctx, containerd.Process{ContainerID: c.ID}); err != nil {
			return l, err
		}
	}
	ctx = steps.Stage(ctx, "commit")
	running, err := m.deps.Store.Containers.Update(c.ID, func(c *store.Container) error {
		c.State, c.StartedAt, c.PID, c.Cgroup, c.OOMBefore = store.ContainerRunning, time.Now().UnixNano(), pid, cgroup, before
		return nil
	})
	if err != nil {
		return l, err
	}
	m.deps.Notify(running, runtimeapi.ContainerEventType_CONTAINER_STARTED_EVENT)
	m.follow(l)
	m.tell(ctx, nri.ContainerStarted, running)
	return l, nil
}

// createTask makes the task, and the record that keeps it over a restart of
// containerd. In a shim that runs already that record comes first, because it
// is how containerd knows that there is one; else it must come after.
func (m *Manager) createTask(ctx context.Context, c *store.Container, r containerd.Runtime, rootfs []mount.Mount, s containerd.Streams) (uint32, error) {
	cd := m.deps.Containerd
	if r.Address = m.shimOf(ctx, c, r); r.Address != "" {
		if err := cd.KeepTask(ctx, c.ID, r); err != nil {
			return 0, err
		}
		pid, err := cd.CreateTask(ctx, c.ID, r, rootfs, s)
		m.deps.Shims.Joined(c.SandboxID)
		return pid, err
	}
	pid, err := cd.CreateTask(ctx, c.ID, r, rootfs, s)
	if err != nil {
		return 0, err
	}
	return pid, cd.KeepTask(ctx, c.ID, r)
}

// shimOf is the address of the pod's shim, or "" when containerd finds or starts it.
func (m *Manager) shimOf(ctx context.Context, c *store.Container, r containerd.Runtime) string {
	if sb := m.sandboxOf(c); !r.Joins || sb == nil || sb.Process {
		return "" // the process's task has made the shim, as containerd does it
	}
	return m.deps.Shims.Join(ctx, c.SandboxID, c.Handler)
}

// clean takes back what a failed start has done.
func (m *Manager) clean(ctx context.Context, id string, l *life) {
	if l == nil {
		return
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	if err := m.killTask(ctx, id); err != nil {
		m.deps.Log.WarnContext(ctx, "task of a container that did not start stays", "container", id, "err", err)
	}
	if err := l.streams.Close(); err != nil {
		m.deps.Log.DebugContext(ctx, "close streams", "container", id, "err", err)
	}
	m.end(l)
}

// killTask ends and removes a task in whatever state; the absent is removed already.
func (m *Manager) killTask(ctx context.Context, id string) error {
	if err := m.endTask(ctx, id); err != nil {
		return err
	}
	return m.deps.Containerd.ReleaseTask(ctx, id)
}

func (m *Manager) endTask(ctx context.Context, id string) error {
	_, err := m.deps.Containerd.DeleteTask(ctx, id)
	if err == nil || errdefs.IsNotFound(err) {
		return nil
	}
	if !errdefs.IsFailedPrecondition(err) {
		return err
	}
	p := containerd.Process{ContainerID: id}
	if err := m.deps.Containerd.KillProcess(ctx, p, killSignal); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if _, err := m.deps.Containerd.WaitProcess(ctx, p); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	if _, err := m.deps.Containerd.DeleteTask(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return err
	}
	return nil
}
