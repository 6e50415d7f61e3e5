// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/checkpoint"
)

// restoring is the checkpoint that a container is made from.
type restoring struct {
	// source is an archive, or a directory of an archive's files.
	source string
	// strict means that the process has to be the one that was asked for.
	strict bool
}

// findImage finds what the container is made from: an image, or the checkpoint in
// an image or in an archive on this node, and then the image of that.
func (b *building) findImage(ctx context.Context, asked *runtimeapi.ImageSpec) error {
	if b.restore != nil {
		return b.findRestored(ctx)
	}
	ref := asked.GetImage()
	if !filepath.IsAbs(ref) {
		var err error
		if b.image, err = b.m.deps.Images.Resolve(ctx, ref); err != nil {
			return fmt.Errorf("image %q: %w", ref, err)
		}
		if !b.image.Checkpoint {
			return nil
		}
		ref, _, err = b.m.deps.Images.MountVolume(ctx, b.sb, &runtimeapi.Mount{Image: asked})
		if err != nil {
			return err
		}
	}
	b.restore = &restoring{source: ref}
	return b.findRestored(ctx)
}

// findRestored finds the image that the checkpointed container was made from.
func (b *building) findRestored(ctx context.Context) error {
	cfg, err := checkpoint.ReadConfig(b.restore.source)
	if err != nil {
		return err
	}
	var errs []error
	for _, name := range slices.Compact([]string{cfg.RootfsImageRef, cfg.RootfsImageName, cfg.RootfsImage}) {
		if name == "" {
			continue
		}
		image, err := b.m.deps.Images.Resolve(ctx, name)
		if err == nil {
			b.image = image
			return nil
		}
		errs = append(errs, err)
	}
	return fmt.Errorf("the image of checkpoint %s is not on this node: %w", b.restore.source, errors.Join(append(errs, errdefs.ErrNotFound)...))
}

// checkRestored refuses a process that is another than the checkpointed one, where that is asked for.
func (b *building) checkRestored(s *specs.Spec) error {
	if b.restore == nil || !b.restore.strict {
		return nil
	}
	old, err := checkpoint.ReadSpec(b.restore.source)
	if err != nil {
		return err
	}
	var errs []error
	differ := func(field string, a, b any) {
		errs = append(errs, fmt.Errorf("%s: the checkpointed process has %v, not %v: %w", field, a, b, errdefs.ErrFailedPrecondition))
	}
	if old.Process == nil {
		return fmt.Errorf("checkpoint %s has no process: %w", b.restore.source, errdefs.ErrInvalidArgument)
	}
	if !slices.Equal(old.Process.Args, s.Process.Args) {
		differ("command", old.Process.Args, s.Process.Args)
	}
	if old.Process.Cwd != s.Process.Cwd {
		differ("working_dir", old.Process.Cwd, s.Process.Cwd)
	}
	if old.Process.User.UID != s.Process.User.UID || old.Process.User.GID != s.Process.User.GID {
		differ("linux.security_context.run_as_user", old.Process.User.UID, s.Process.User.UID)
	}
	return errors.Join(errs...)
}

// restoreDir holds an unpacked checkpoint until the container has started.
func (m *Manager) restoreDir(id string) string { return filepath.Join(m.root(id), "restore") }

// unpackCheckpoint brings the checkpoint's files to where the restore finds them.
// containerd writes the diff that is beside CRIU's images into the root file system.
func (b *building) unpackCheckpoint(ctx context.Context) error {
	dir := b.restore.source
	info, err := os.Stat(dir)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	if !info.IsDir() {
		dir = b.m.restoreDir(b.c.ID)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return fmt.Errorf("make directory of checkpoint: %w", err)
		}
		if err := checkpoint.Unpack(ctx, b.restore.source, dir); err != nil {
			return err
		}
	}
	b.c.RestoreFrom = filepath.Join(dir, checkpoint.Images)
	if _, err := os.Stat(filepath.Join(b.c.RestoreFrom, "inventory.img")); err != nil {
		return fmt.Errorf("checkpoint %s is none of CRIU's: %w: %w", b.restore.source, err, errdefs.ErrInvalidArgument)
	}
	return nil
}
