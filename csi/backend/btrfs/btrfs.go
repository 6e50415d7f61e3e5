// SPDX-License-Identifier: Apache-2.0

// Package btrfs keeps each payload in a subvolume, data, with a quota group's
// limit on what it references. Snapshots and clones are the file system's own:
// atomic, immediate, and sharing blocks.
//
// Volumes are directories of one file system: no raw blocks, no mount context of
// their own, no freeze, and the pool's space is promised by the ledger alone.
package btrfs

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

const dataName = "data"

// Backend keeps subvolumes below one directory of a btrfs file system.
type Backend struct{ root string }

var (
	_ backend.Backend     = (*Backend)(nil)
	_ backend.Snapshotter = (*Backend)(nil)
	_ backend.Measurer    = (*Backend)(nil)
)

// New returns the backend of the pool at root.
func New(root string) *Backend { return &Backend{root: root} }

func data(o backend.Object) string { return filepath.Join(o.Dir, dataName) }

// Probe makes sure of btrfs and turns its quota groups on.
func (b *Backend) Probe(context.Context) (backend.Features, error) {
	s, err := mount.StatSpace(b.root)
	if err != nil {
		return backend.Features{}, err
	}
	if s.Magic != magic {
		return backend.Features{}, fmt.Errorf("%s is not on btrfs: %w", b.root, backend.ErrNotSupported)
	}
	if err := enableQuota(b.root); err != nil {
		return backend.Features{}, fmt.Errorf("quota groups of %s: %w: %w", b.root, backend.ErrNotSupported, err)
	}
	return backend.Features{
		HardLimit: true, Reserve: true, Mount: true, Snapshots: true, Instant: true, OnlineGrow: true, MinBytes: 1 << 20,
		Notes: []string{"space is reserved by the ledger, not by the file system"},
	}, nil
}

// Space measures the pool's file system.
func (b *Backend) Space(context.Context) (backend.Space, error) {
	s, err := mount.StatSpace(b.root)
	if err != nil {
		return backend.Space{}, err
	}
	return backend.Space{Total: s.Total, Free: s.Available, ReadOnly: s.ReadOnly}, nil
}

// Create makes the subvolume, from another one if asked.
func (b *Backend) Create(_ context.Context, obj backend.Object, from *backend.Object) error {
	if err := destroySubvolume(data(obj)); err != nil {
		return err
	}
	var err error
	if from == nil {
		err = createSubvolume(data(obj))
	} else {
		err = snapshot(data(*from), data(obj), false)
	}
	if err == nil {
		err = limit(data(obj), obj.Bytes)
	}
	if err == nil {
		err = syncFS(obj.Dir)
	}
	return translate(err)
}

// Snapshot makes dst a read-only snapshot of src.
func (b *Backend) Snapshot(_ context.Context, src, dst backend.Object) error {
	err := snapshot(data(src), data(dst), true)
	if err == nil {
		err = syncFS(dst.Dir)
	}
	return translate(err)
}

// Destroy removes the subvolume.
func (b *Backend) Destroy(_ context.Context, obj backend.Object) error {
	return translate(destroySubvolume(data(obj)))
}

// Grow raises the limit.
func (b *Backend) Grow(_ context.Context, obj backend.Object) error {
	return translate(limit(data(obj), obj.Bytes))
}

// Usage reads the quota group.
func (b *Backend) Usage(_ context.Context, obj backend.Object, _ bool) (backend.Usage, error) {
	referenced, exclusive, err := usage(data(obj))
	if err != nil {
		return backend.Usage{}, translate(err)
	}
	return backend.Usage{Allocated: referenced, Debt: max(obj.Bytes-exclusive, 0)}, nil
}

// Measure returns what the volume uses of its limit.
func (b *Backend) Measure(_ context.Context, obj backend.Object) (used, most int64, err error) {
	used, _, err = usage(data(obj))
	return used, obj.Bytes, translate(err)
}

// Attach returns the subvolume's directory.
func (b *Backend) Attach(ctx context.Context, obj backend.Object, o backend.AttachOptions) (*backend.Attachment, error) {
	if err := b.Check(ctx, obj); err != nil {
		return nil, err
	}
	return &backend.Attachment{Kind: backend.Directory, Path: data(obj)}, nil
}

// Attached is what Attach returns: a directory is always there.
func (b *Backend) Attached(ctx context.Context, obj backend.Object) ([]*backend.Attachment, error) {
	if err := b.Check(ctx, obj); err != nil {
		return nil, nil //nolint:nilerr // what is not there is not attached; Check tells
	}
	return []*backend.Attachment{{Kind: backend.Directory, Path: data(obj)}}, nil
}

// Refresh has nothing to do: the limit is seen at once.
func (b *Backend) Refresh(context.Context, backend.Object) error { return nil }

// Detach has nothing to do.
func (b *Backend) Detach(context.Context, backend.Object) error { return nil }

// Check makes sure that the directory is a subvolume.
func (b *Backend) Check(_ context.Context, obj backend.Object) error {
	var st unix.Stat_t
	err := unix.Lstat(data(obj), &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("subvolume of %s: %w", obj.ID, backend.ErrMissing)
	case err != nil:
		return fmt.Errorf("subvolume of %s: %w", obj.ID, err)
	case st.Mode&unix.S_IFMT != unix.S_IFDIR || st.Ino != firstFreeInode:
		return fmt.Errorf("%s is not a subvolume: %w", data(obj), backend.ErrDamaged)
	}
	return nil
}

func translate(err error) error {
	switch {
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %w", backend.ErrNoSpace, err)
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("%w: %w", backend.ErrMissing, err)
	case errors.Is(err, unix.EBUSY):
		return fmt.Errorf("%w: %w", backend.ErrBusy, err)
	default:
		return err
	}
}
