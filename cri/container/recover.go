// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"time"

	"github.com/containerd/containerd/api/types/task"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/store"
)

// Recover compares the records with containerd: half-made containers are
// undone, running ones are watched again, exits that happened meanwhile are
// recorded, and containers that only containerd remembers (after a reboot)
// are listed as exited, in sandboxes that are not ready. It runs before the
// first call. What concerns a single container is logged and left to the
// kubelet's remove; it does not keep the daemon from serving the others.
func (m *Manager) Recover(ctx context.Context) error {
	tasks, err := m.deps.Containerd.Tasks(ctx)
	if err != nil {
		return err
	}
	for _, c := range m.deps.Store.Containers.Select(nil) {
		t, has := tasks[c.ID]
		if err := m.recoverOne(ctx, c, t, has); err != nil {
			m.deps.Log.WarnContext(ctx, "container not recovered", "container", c.ID, "err", err)
		}
	}
	// Listed only now: the half-made ones have just been removed there.
	known, err := m.deps.Containerd.ListContainers(ctx, fmt.Sprintf("labels.%q==%s", labelKind, kindContainer))
	if err != nil {
		return err
	}
	for _, k := range known {
		if _, ok := m.deps.Store.Containers.Get(k.ID); ok {
			continue
		}
		if err := m.remember(ctx, k); err != nil {
			m.deps.Log.WarnContext(ctx, "container of containerd not adopted", "container", k.ID, "err", err)
		}
	}
	if err := m.prune(ctx); err != nil {
		m.deps.Log.WarnContext(ctx, "leftovers of containers stay", "err", err)
	}
	return nil
}

func (m *Manager) recoverOne(ctx context.Context, c *store.Container, t containerd.TaskState, hasTask bool) error {
	switch c.State {
	case store.ContainerCreating:
		if err := m.discard(ctx, c); err != nil {
			return errors.Join(err, m.markHalfMade(c.ID, err))
		}
		m.deps.Log.InfoContext(ctx, "half-made container undone", "container", c.ID)
		return m.deps.Store.Containers.Delete(c.ID)
	case store.ContainerCreated:
		if !hasTask {
			return nil
		}
		if t.Status == task.Status_CREATED || t.Status == task.Status_UNKNOWN {
			return m.killTask(ctx, c.ID) // its start was cut short, and never answered
		}
		cgroup := cgroupOf(t.PID)
		before := m.oom.before(c.ID, cgroup)
		if _, err := m.deps.Store.Containers.Update(c.ID, func(c *store.Container) error {
			c.State, c.StartedAt, c.PID, c.Cgroup, c.OOMBefore = store.ContainerRunning, time.Now().UnixNano(), t.PID, cgroup, before
			return nil
		}); err != nil {
			return err
		}
		return m.rewatch(c)
	case store.ContainerRunning:
		return m.rewatch(c)
	case store.ContainerExited:
		if hasTask {
			return m.killTask(ctx, c.ID)
		}
	}
	return nil
}

// rewatch takes up the streams and the watch of a container that ran when the
// daemon ended. Whether it still does is for the watch to find out. A recovery
// that is tried again finds it watched.
func (m *Manager) rewatch(c *store.Container) error {
	if m.life(c.ID) != nil {
		return nil
	}
	s, err := m.deps.Streams.Reattach(c, m.dir(c))
	if err != nil {
		s = nothing{} // its output is lost, its exit is not
		err = fmt.Errorf("take up streams of container %s: %w", c.ID, err)
	}
	l := m.begin(c.ID, s)
	m.follow(l)
	return err
}

// remember makes the record of a container that only containerd knows.
func (m *Manager) remember(ctx context.Context, k containerd.Container) error {
	raw, ok := k.Extensions[extensionRecord]
	if !ok {
		m.deps.Log.DebugContext(ctx, "container of another runtime left alone", "container", k.ID)
		return nil
	}
	var c store.Container
	if err := json.Unmarshal(raw, &c); err != nil {
		return fmt.Errorf("decode record: %w", err)
	}
	var sb store.Sandbox
	if err := json.Unmarshal(k.Extensions[extensionPod], &sb); err != nil {
		return fmt.Errorf("decode record of its sandbox: %w", err)
	}
	if err := m.killTask(ctx, k.ID); err != nil {
		return err
	}
	if _, ok := m.deps.Store.Sandboxes.Get(sb.ID); !ok {
		sb.State, sb.Addrs = store.SandboxNotReady, nil
		if err := m.deps.Store.Sandboxes.Put(&sb); err != nil {
			return err
		}
	}
	c.State, c.FinishedAt = store.ContainerExited, max(time.Now().UnixNano(), c.CreatedAt)
	c.ExitCode, c.Reason = store.ExitUnknown, store.ReasonUnknown
	c.Message = "the node was restarted while the container was known"
	c.PID = 0
	return m.deps.Store.Containers.Put(&c)
}

// prune removes writable layers and directories that no container owns.
func (m *Manager) prune(ctx context.Context) error {
	var errs []error
	used := map[string]bool{m.deps.Containerd.Snapshotter(""): true}
	for _, c := range m.deps.Store.Containers.Select(nil) {
		used[c.Snapshotter] = true
	}
	for snapshotter := range used {
		keys, err := m.deps.Containerd.ContainerSnapshots(ctx, snapshotter)
		errs = append(errs, err)
		for _, k := range keys {
			if _, ok := m.deps.Store.Containers.Get(k); !ok {
				errs = append(errs, m.deps.Containerd.RemoveSnapshot(ctx, snapshotter, k))
			}
		}
	}
	kept, err := m.deps.Containerd.KeptTasks(ctx)
	errs = append(errs, err)
	for _, id := range kept {
		if c, ok := m.deps.Store.Containers.Get(id); !ok || c.State == store.ContainerExited {
			errs = append(errs, m.deps.Containerd.ReleaseTask(ctx, id))
		}
	}
	entries, err := os.ReadDir(m.cfg.RootDir)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		errs = append(errs, fmt.Errorf("look for leftovers of containers: %w", err))
	}
	for _, e := range entries {
		if _, ok := m.deps.Store.Containers.Get(e.Name()); !ok {
			errs = append(errs, os.RemoveAll(m.root(e.Name())))
		}
	}
	return errors.Join(errs...)
}
