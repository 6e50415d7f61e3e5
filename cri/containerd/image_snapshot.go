// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"

	"github.com/containerd/containerd/v2/client"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/containerd/v2/core/snapshots"
	"github.com/containerd/errdefs"
)

// SnapshotUsage is what one snapshot alone occupies.
type SnapshotUsage struct {
	Key string
	// Committed snapshots are image layers, others belong to containers.
	Committed bool
	Bytes     int64
	Inodes    int64
}

// UnpackImage makes the snapshots of an image's layers in a snapshotter; those
// that exist are kept. The content must be there.
func (c *Client) UnpackImage(ctx context.Context, rec ImageRecord, snapshotter string) error {
	if c.c == nil {
		return ErrNotConnected
	}
	img := client.NewImage(c.c, images.Image{Name: rec.Name, Target: rec.Target})
	if err := img.Unpack(ctx, snapshotter); err != nil {
		return fmt.Errorf("unpack image %s into %s: %w", rec.Name, snapshotter, err)
	}
	return nil
}

// HasSnapshot tells whether a snapshotter has a snapshot of that key.
func (c *Client) HasSnapshot(ctx context.Context, snapshotter, key string) (bool, error) {
	if c.c == nil {
		return false, ErrNotConnected
	}
	_, err := c.c.SnapshotService(snapshotter).Stat(ctx, key)
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("stat snapshot %s: %w", key, err)
	}
	return true, nil
}

// SnapshotUsages measures all snapshots of a snapshotter. That of a container
// walks its files, so call it in the background. Committed ones never change:
// those in known are not asked for again. Snapshots that vanish meanwhile are
// left out.
func (c *Client) SnapshotUsages(ctx context.Context, snapshotter string, known map[string]SnapshotUsage) ([]SnapshotUsage, error) {
	if c.c == nil {
		return nil, ErrNotConnected
	}
	s := c.c.SnapshotService(snapshotter)
	var all []SnapshotUsage
	err := s.Walk(ctx, func(_ context.Context, info snapshots.Info) error {
		all = append(all, SnapshotUsage{Key: info.Name, Committed: info.Kind == snapshots.KindCommitted})
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("walk snapshots of %s: %w", snapshotter, err)
	}
	kept := all[:0]
	for _, u := range all {
		if old, ok := known[u.Key]; ok && u.Committed && old.Committed {
			kept = append(kept, old)
			continue
		}
		usage, err := s.Usage(ctx, u.Key)
		if errdefs.IsNotFound(err) {
			continue
		}
		if err != nil {
			return nil, fmt.Errorf("usage of snapshot %s: %w", u.Key, err)
		}
		u.Bytes, u.Inodes = usage.Size, usage.Inodes
		kept = append(kept, u)
	}
	return kept, nil
}

// SnapshotterRoot returns the directory in which a snapshotter keeps its data;
// errdefs.ErrNotFound when there is no such snapshotter.
func (c *Client) SnapshotterRoot(ctx context.Context, snapshotter string) (string, error) {
	return c.pluginRoot(ctx, "io.containerd.snapshotter.v1", snapshotter)
}

// pluginRoot returns the directory of a plugin.
func (c *Client) pluginRoot(ctx context.Context, kind, id string) (string, error) {
	if c.c == nil {
		return "", ErrNotConnected
	}
	resp, err := c.c.IntrospectionService().Plugins(ctx, fmt.Sprintf("type==%s,id==%s", kind, id))
	if err != nil {
		return "", fmt.Errorf("look up plugin %s.%s: %w", kind, id, err)
	}
	for _, p := range resp.Plugins {
		if p.ID == id && p.InitErr == nil {
			return p.Exports["root"], nil
		}
	}
	return "", fmt.Errorf("plugin %s.%s: %w", kind, id, errdefs.ErrNotFound)
}

// ViewImage makes a read-only snapshot of an image's layers under key and
// returns how to mount it; an existing one is returned again. A lease of the
// same id keeps it until RemoveView.
func (c *Client) ViewImage(ctx context.Context, snapshotter, key, chainID string) ([]mount.Mount, error) {
	if c.c == nil {
		return nil, ErrNotConnected
	}
	_, err := c.c.LeasesService().Create(ctx, leases.WithID(key))
	if err != nil && !errdefs.IsAlreadyExists(err) {
		return nil, fmt.Errorf("create lease of view %s: %w", key, err)
	}
	ctx = leases.WithLease(ctx, key)
	s := c.c.SnapshotService(snapshotter)
	mounts, err := s.View(ctx, key, chainID)
	if errdefs.IsAlreadyExists(err) {
		mounts, err = s.Mounts(ctx, key)
	}
	if err != nil {
		return nil, fmt.Errorf("view image snapshot %s: %w", chainID, err)
	}
	return mounts, nil
}

// RemoveView removes what ViewImage made; absent is success.
func (c *Client) RemoveView(ctx context.Context, snapshotter, key string) error {
	if c.c == nil {
		return ErrNotConnected
	}
	var errs []error
	if err := c.c.SnapshotService(snapshotter).Remove(ctx, key); err != nil && !errdefs.IsNotFound(err) {
		errs = append(errs, fmt.Errorf("remove view %s: %w", key, err))
	}
	return errors.Join(append(errs, c.DeleteLeases(ctx, key))...)
}
