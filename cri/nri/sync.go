// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"fmt"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"

	"github.com/nodeagent/nodeagent/cri/store"
)

// synchronize gives a plugin all pods and containers that live, and takes its
// changes. No event is delivered meanwhile; see deliver. The changes are made
// afterwards: they wait for containers of which the verbs may wait for this.
func (a *Adapter) synchronize(ctx context.Context, tell adaptation.SyncCB) error {
	pods, containers, err := a.snapshot(ctx)
	if err != nil {
		return err
	}
	updates, err := tell(ctx, pods, containers)
	if err != nil {
		return err
	}
	if len(updates) > 0 {
		a.background(func(ctx context.Context) { a.apply(ctx, updates) })
	}
	return nil
}

// update makes changes that a plugin asks for out of itself.
func (a *Adapter) update(ctx context.Context, updates []*adaptation.ContainerUpdate) ([]*adaptation.ContainerUpdate, error) {
	failed := a.apply(ctx, updates)
	if len(failed) > 0 {
		return failed, fmt.Errorf("%d of %d changes failed: %w", len(failed), len(updates), errdefs.ErrFailedPrecondition)
	}
	return nil, nil
}

// snapshot is what lives: what the records say, and what is in flight.
func (a *Adapter) snapshot(ctx context.Context) ([]*adaptation.PodSandbox, []*adaptation.Container, error) {
	f := a.inFlight()
	var pods []*adaptation.PodSandbox
	for _, sb := range a.deps.Store.Sandboxes.Select(func(s *store.Sandbox) bool { return s.State != store.SandboxCreating }) {
		delete(f.pods, sb.ID)
		pods = append(pods, podMessage(sb))
	}
	for _, p := range f.pods {
		pods = append(pods, p)
	}
	var containers []*adaptation.Container
	for _, c := range a.deps.Store.Containers.Select(func(c *store.Container) bool {
		return c.State == store.ContainerCreated || c.State == store.ContainerRunning
	}) {
		s, err := a.deps.Runtime.Spec(ctx, c.ID)
		if errdefs.IsNotFound(err) {
			continue // it is being removed
		}
		if err != nil {
			return nil, nil, err
		}
		delete(f.containers, c.ID)
		msg := containerMessage(c, s)
		if f.starting[c.ID] {
			msg.State = adaptation.ContainerState_CONTAINER_RUNNING
		}
		containers = append(containers, msg)
	}
	for _, c := range f.containers {
		containers = append(containers, c)
	}
	return pods, containers, nil
}
