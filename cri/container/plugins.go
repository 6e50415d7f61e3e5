// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/nri"
	"github.com/nodeagent/nodeagent/cri/store"
)

// tell tells plugins what has happened; that cannot fail any more.
func (m *Manager) tell(ctx context.Context, e nri.ContainerEvent, c *store.Container) {
	if err := m.deps.Plugins.Tell(ctx, e, m.sandboxOf(c), c); err != nil {
		m.deps.Log.WarnContext(ctx, "plugin failed over what has happened to a container", "container", c.ID, "err", err)
	}
}

// sandboxOf is the container's sandbox, or what is known of one that has gone.
func (m *Manager) sandboxOf(c *store.Container) *store.Sandbox {
	if sb, ok := m.deps.Store.Sandboxes.Get(c.SandboxID); ok {
		return sb
	}
	sb := &store.Sandbox{ID: c.SandboxID, State: store.SandboxNotReady}
	sb.Config.M = &runtimeapi.PodSandboxConfig{}
	return sb
}
