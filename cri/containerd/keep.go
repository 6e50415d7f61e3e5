// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"

	"github.com/containerd/containerd/v2/core/sandbox"
	"github.com/containerd/errdefs"
)

// A containerd that starts looks at the shims of an earlier one and ends those
// that have no process, and with them goes the exit code of a container that
// ended meanwhile. It spares the shims of sandboxes, which it knows by a record
// in its sandbox store with the shim's id (core/runtime/v2/shim_load.go,
// shouldCleanupShim). KeepTask writes such a record for a container.

// KeepTask makes a restarted containerd keep the container's task until its
// exit was read.
func (c *Client) KeepTask(ctx context.Context, id string, r Runtime) error {
	_, err := c.c.SandboxStore().Create(ctx, sandbox.Sandbox{
		ID: id, Runtime: sandbox.RuntimeOpts{Name: r.Type}, Labels: map[string]string{LabelContainer: id},
	})
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("keep task %s over restarts of containerd: %w", id, err)
	}
	return nil
}

// ReleaseTask takes KeepTask back; what was never kept is released already.
func (c *Client) ReleaseTask(ctx context.Context, id string) error {
	if err := c.c.SandboxStore().Delete(ctx, id); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("release task %s: %w", id, err)
	}
	return nil
}

// KeptTasks lists the ids of kept tasks.
func (c *Client) KeptTasks(ctx context.Context) ([]string, error) {
	list, err := c.c.SandboxStore().List(ctx, fmt.Sprintf("labels.%q", LabelContainer))
	if err != nil {
		return nil, fmt.Errorf("list kept tasks: %w", err)
	}
	var ids []string
	for _, s := range list {
		if s.Labels[LabelContainer] == s.ID {
			ids = append(ids, s.ID)
		}
	}
	return ids, nil
}
