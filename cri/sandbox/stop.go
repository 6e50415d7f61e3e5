// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cri/nri"
	"github.com/nodeagent/nodeagent/cri/steps"
	"github.com/nodeagent/nodeagent/cri/store"
)

// Stop ends the sandbox's containers and its network and releases its
// namespaces. The unknown and the stopped are stopped already.
func (m *Manager) Stop(ctx context.Context, ref string) error {
	sb, err := m.deps.Store.Sandboxes.Find(ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.ends.Do(ctx, "stop sandbox "+sb.ID, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, m.locked(ctx, sb.ID, m.stop)
	})
	return err
}

// Remove stops the sandbox and forgets it and its containers. The unknown is
// removed already.
func (m *Manager) Remove(ctx context.Context, ref string) error {
	sb, err := m.deps.Store.Sandboxes.Find(ref)
	if errdefs.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return err
	}
	_, err = m.ends.Do(ctx, "remove sandbox "+sb.ID, func(ctx context.Context) (struct{}, error) {
		return struct{}{}, m.locked(ctx, sb.ID, m.remove)
	})
	return err
}

// locked runs fn for a sandbox of which nobody else changes the state; nothing
// is done when it has gone meanwhile.
func (m *Manager) locked(ctx context.Context, id string, fn func(context.Context, *store.Sandbox) error) error {
	unlock, err := m.locks.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	sb, ok := m.deps.Store.Sandboxes.Get(id)
	if !ok {
		return nil
	}
	if sb.State == store.SandboxCreating {
		return fmt.Errorf("sandbox %s is being made: %w", id, errdefs.ErrFailedPrecondition)
	}
	return fn(ctx, sb)
}

// stop goes on past errors, so that one thing that cannot be released does not
// keep the others.
func (m *Manager) stop(ctx context.Context, sb *store.Sandbox) error {
	ctx, end := m.deps.Stages.Time(ctx, "StopPodSandbox", sb.ID)
	defer end()
	wasReady := sb.State == store.SandboxReady
	sb, err := m.deps.Store.Sandboxes.Update(sb.ID, func(s *store.Sandbox) error {
		s.State = store.SandboxNotReady
		return nil
	})
	if err != nil {
		return err
	}
	if wasReady {
		defer m.deps.Notify(sb, runtimeapi.ContainerEventType_CONTAINER_STOPPED_EVENT)
	}
	ctx = steps.Stage(ctx, "stop containers")
	// Containers first: what runs in the namespaces must not lose its network
	// before it has ended.
	if err := m.deps.Containers.StopAll(ctx, sb.ID); err != nil {
		return fmt.Errorf("stop containers of sandbox %s: %w", sb.ID, err)
	}
	m.deps.Shims.Release(sb.ID)
	if wasReady {
		m.tell(ctx, nri.SandboxStopped, sb)
	}
	var errs []error
	if sb.Process {
		ctx = steps.Stage(ctx, "remove process")
		errs = append(errs, m.endProcess(ctx, sb))
	}
	if sb.NetworkUp {
		ctx = steps.Stage(ctx, "detach network")
		errs = append(errs, m.detach(ctx, sb.ID))
	}
	if err := errors.Join(errs...); err != nil {
		return err // the namespace stays until its network is gone
	}
	ctx = steps.Stage(ctx, "release namespaces")
	errs = append(errs, m.deps.Volumes.UnmountVolumes(ctx, sb.ID), dropNamespaces(m.pins(sb.ID)), m.Dir(sb.ID).release())
	_, err = m.deps.Store.Sandboxes.Update(sb.ID, func(s *store.Sandbox) error {
		s.NetworkUp = false
		s.Process = false
		return nil
	})
	return errors.Join(append(errs, err)...)
}

func (m *Manager) detach(ctx context.Context, id string) error {
	if err := m.deps.Network.Detach(ctx, cni.Key{ContainerID: id, IfName: ifName}); err != nil {
		return fmt.Errorf("detach network of sandbox %s: %w", id, err)
	}
	return nil
}

func (m *Manager) remove(ctx context.Context, sb *store.Sandbox) error {
	if err := m.stop(ctx, sb); err != nil {
		return err
	}
	ctx, end := m.deps.Stages.Time(ctx, "RemovePodSandbox", sb.ID)
	defer end()
	ctx = steps.Stage(ctx, "remove containers")
	if err := m.deps.Containers.RemoveAll(ctx, sb.ID); err != nil {
		return fmt.Errorf("remove containers of sandbox %s: %w", sb.ID, err)
	}
	steps.Stage(ctx, "remove files")
	if err := m.Dir(sb.ID).remove(); err != nil {
		return err
	}
	last, ok := m.deps.Store.Sandboxes.Get(sb.ID)
	if err := m.forget(sb.ID); err != nil {
		return err
	}
	if ok {
		m.deps.Notify(last, runtimeapi.ContainerEventType_CONTAINER_DELETED_EVENT)
		m.tell(ctx, nri.SandboxRemoved, last)
	}
	return nil
}
