// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"fmt"
	"maps"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// LabelContainer marks a snapshot as the writable layer of a container, by id.
const LabelContainer = "nodeagent.dev/container"

// labelRoot keeps containerd's garbage collector away until the snapshot is
// removed by name; it spares the two writes of a lease.
const labelRoot = "containerd.io/gc.root"

// Snapshotter returns the configured snapshotter's name, or name itself when it is not empty.
func (c *Client) Snapshotter(name string) string {
	if name == "" {
		return c.cfg.Snapshotter
	}
	return name
}

// PrepareSnapshot makes the writable layer key over the image's topmost layer
// chainID ("" for an empty image), and returns the mounts that make it up. One that exists already is taken as it is.
func (c *Client) PrepareSnapshot(ctx context.Context, snapshotter, key, chainID string, labels map[string]string) ([]mount.Mount, error) {
	all := map[string]string{LabelContainer: key, labelRoot: time.Now().UTC().Format(time.RFC3339)}
	maps.Copy(all, labels)
	m, err := c.c.SnapshotService(snapshotter).Prepare(ctx, key, chainID, snapshots.WithLabels(all))
	switch {
	case errdefs.IsAlreadyExists(err):
		return c.SnapshotMounts(ctx, snapshotter, key)
	case err != nil:
		return nil, fmt.Errorf("prepare snapshot %s over %s: %w", key, chainID, err)
	}
	return m, nil
}

// SnapshotMounts returns the mounts that make up the snapshot.
func (c *Client) SnapshotMounts(ctx context.Context, snapshotter, key string) ([]mount.Mount, error) {
	m, err := c.c.SnapshotService(snapshotter).Mounts(ctx, key)
	if err != nil {
		return nil, fmt.Errorf("mounts of snapshot %s: %w", key, err)
	}
	return m, nil
}

// RemoveSnapshot removes the snapshot; the absent is removed already.
func (c *Client) RemoveSnapshot(ctx context.Context, snapshotter, key string) error {
	if err := c.c.SnapshotService(snapshotter).Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("remove snapshot %s: %w", key, err)
	}
	return nil
}

// ContainerSnapshots lists the keys of all snapshots that are labelled as a container's writable layer.
func (c *Client) ContainerSnapshots(ctx context.Context, snapshotter string) ([]string, error) {
	var keys []string
	err := c.c.SnapshotService(snapshotter).Walk(ctx, func(_ context.Context, i snapshots.Info) error {
		if i.Labels[LabelContainer] == i.Name {
			keys = append(keys, i.Name)
		}
		return nil
	}, fmt.Sprintf("labels.%q", LabelContainer))
	if err != nil {
		return nil, fmt.Errorf("list snapshots of containers: %w", err)
	}
	return keys, nil
}
