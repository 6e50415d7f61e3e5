// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/protobuf/encoding/protojson"

	"github.com/nodeagent/nodeagent/cri/checkpoint"
	"github.com/nodeagent/nodeagent/cri/store"
)

// Checkpoint writes the state of a running container into a new archive at
// location. The container is frozen meanwhile and then goes on.
func (m *Manager) Checkpoint(ctx context.Context, ref, location string) error {
	c, err := m.Running(ref)
	if err != nil {
		return err
	}
	if !filepath.IsAbs(location) {
		return fmt.Errorf("location: %q is not an absolute path: %w", location, errdefs.ErrInvalidArgument)
	}
	return m.CheckpointAll(ctx, map[string]*store.Container{location: c})
}

// CheckpointAll writes the states of running containers, each to its location, as
// they are at one moment: all are frozen before the first is looked at. All go on
// before it returns, whatever happened; with an error no archive is left.
func (m *Manager) CheckpointAll(ctx context.Context, targets map[string]*store.Container) (retErr error) {
	var done []string
	defer func() {
		for _, location := range done {
			if retErr != nil {
				retErr = errors.Join(retErr, os.Remove(location))
			}
		}
	}()
	byID := func(a, b *store.Container) int { return strings.Compare(a.ID, b.ID) }
	for _, c := range slices.SortedFunc(maps.Values(targets), byID) {
		unlock, err := m.frozen.Lock(ctx, c.ID)
		if err != nil {
			return err
		}
		defer unlock()
		// Deferred before it is frozen: one that failed to freeze may be frozen in part.
		defer func() { retErr = errors.Join(retErr, m.thaw(ctx, c.ID)) }()
		if err := m.deps.Containerd.PauseTask(ctx, c.ID); err != nil {
			return err
		}
	}
	for location, c := range targets {
		if err := m.checkpoint(ctx, c, location); err != nil {
			return err
		}
		done = append(done, location)
	}
	return nil
}

// thaw lets a frozen container go on, also when the call's time is over.
func (m *Manager) thaw(ctx context.Context, id string) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanupTimeout)
	defer cancel()
	err := m.deps.Containerd.ResumeTask(ctx, id)
	if errdefs.IsNotFound(err) {
		return nil // it was killed meanwhile
	}
	return err
}

// checkpoint writes the archive of a frozen container.
func (m *Manager) checkpoint(ctx context.Context, c *store.Container, location string) (retErr error) {
	if _, err := os.Lstat(location); err == nil {
		return fmt.Errorf("archive %s exists: %w", location, errdefs.ErrAlreadyExists)
	}
	h, err := m.deps.Handler(c.Handler)
	if err != nil {
		return err
	}
	// Beside what the container has on disk: memory is large.
	if err := os.MkdirAll(m.root(c.ID), 0o700); err != nil {
		return fmt.Errorf("make directory of checkpoint: %w", err)
	}
	dir, err := os.MkdirTemp(m.root(c.ID), "checkpoint-")
	if err != nil {
		return fmt.Errorf("make directory of checkpoint: %w", err)
	}
	defer func() { retErr = errors.Join(retErr, os.RemoveAll(dir)) }()
	images := filepath.Join(dir, checkpoint.Images)
	if err := os.Mkdir(images, 0o700); err != nil {
		return fmt.Errorf("make directory of checkpoint: %w", err)
	}
	if err := m.deps.Containerd.DumpTask(ctx, c.ID, h.Runtime, images, dir); err != nil {
		return m.cannot(ctx, dir, err)
	}
	if err := m.describe(ctx, c, dir); err != nil {
		return err
	}
	return checkpoint.Write(ctx, location, dir)
}

// describe writes all of a checkpoint but what CRIU does.
func (m *Manager) describe(ctx context.Context, c *store.Container, dir string) error {
	f, err := os.Create(filepath.Join(dir, checkpoint.RootFSDiff))
	if err != nil {
		return fmt.Errorf("write checkpoint: %w", err)
	}
	err = m.deps.Containerd.WriteDiff(ctx, c.Snapshotter, c.SnapshotKey, f)
	if err := errors.Join(err, f.Close()); err != nil {
		return err
	}
	s, err := m.deps.Containerd.Spec(ctx, c.ID)
	if err != nil {
		return err
	}
	h, err := m.deps.Handler(c.Handler)
	if err != nil {
		return err
	}
	for name, v := range map[string]any{
		checkpoint.Spec: s,
		checkpoint.Config: checkpoint.ContainerConfig{
			ID: c.ID, Name: c.Config.M.GetMetadata().GetName(), RootfsImage: c.Config.M.GetImage().GetImage(),
			RootfsImageName: c.ImageName, RootfsImageRef: c.ImageRef, OCIRuntime: h.Runtime.Type,
			CreatedTime: time.Unix(0, c.CreatedAt), CheckpointedAt: time.Now(),
		},
	} {
		b, err := json.Marshal(v)
		if err == nil {
			err = os.WriteFile(filepath.Join(dir, name), b, 0o600)
		}
		if err != nil {
			return fmt.Errorf("write checkpoint: %s: %w", name, err)
		}
	}
	b, err := protojson.Marshal(c.Config.M)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, checkpoint.Status), b, 0o600)
	}
	if err != nil {
		return fmt.Errorf("write checkpoint: %s: %w", checkpoint.Status, err)
	}
	return copyLog(c.LogPath, filepath.Join(dir, checkpoint.Log))
}

// copyLog copies the container's log as far as it has been written; none is fine.
func copyLog(from, to string) error {
	src, err := os.Open(from)
	if err != nil {
		return nil // a container need not have a log
	}
	defer src.Close() //nolint:errcheck // read-only
	dst, err := os.OpenFile(to, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("copy log into checkpoint: %w", err)
	}
	_, err = io.Copy(dst, src)
	return errors.Join(err, dst.Close())
}

// maxReason is how much of CRIU's log an error carries.
const maxReason = 2 << 10

// cannot is the error of a dump that failed, with CRIU's own reason.
func (m *Manager) cannot(ctx context.Context, dir string, cause error) error {
	if ctx.Err() != nil {
		return errors.Join(ctx.Err(), cause)
	}
	reason := checkpoint.Reason(filepath.Join(dir, "dump.log"), maxReason)
	if reason == "" {
		return fmt.Errorf("%w: %w", cause, errdefs.ErrFailedPrecondition)
	}
	return fmt.Errorf("CRIU: %s: %w: %w", reason, cause, errdefs.ErrFailedPrecondition)
}
