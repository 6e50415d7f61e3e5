// SPDX-License-Identifier: Apache-2.0

// Package image serves read-only volumes from file-system images: data sets,
// models, packages. An image lies below the pool's images directory and is named
// by the class's image parameter; erofs images are mounted straight from the
// file, without a loop device, so that all users share one page cache.
package image

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

// Directory is where a pool's images lie, below its path.
const Directory = "images"

// OptionImage is the object option that names the image.
const OptionImage = "image"

// Backend mounts images below one directory.
type Backend struct{ root string }

var _ backend.Backend = (*Backend)(nil)

// New returns the backend of the pool at root.
func New(root string) *Backend { return &Backend{root: root} }

// Probe makes sure of erofs and makes the images directory.
func (b *Backend) Probe(context.Context) (backend.Features, error) {
	if err := mount.ProbeFS("erofs"); err != nil {
		return backend.Features{}, fmt.Errorf("erofs: %w: %w", backend.ErrNotSupported, err)
	}
	if err := os.Mkdir(filepath.Join(b.root, Directory), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return backend.Features{}, err
	}
	return backend.Features{HardLimit: true, Reserve: true, Mount: true, ReadOnly: true, OwnSuperblock: true, MinBytes: 4096}, nil
}

// Space never runs out: volumes take none.
func (b *Backend) Space(context.Context) (backend.Space, error) {
	s, err := mount.StatSpace(b.root)
	return backend.Space{Total: s.Total, Free: s.Total}, err
}

// path resolves an object's image and makes sure that it is one.
func (b *Backend) path(obj backend.Object) (string, error) {
	name := obj.Options[OptionImage]
	if name == "" || !filepath.IsLocal(name) {
		return "", fmt.Errorf("image %q of %s is not a name below %s: %w", name, obj.ID, Directory, backend.ErrNotSupported)
	}
	root, err := os.OpenRoot(filepath.Join(b.root, Directory))
	if err != nil {
		return "", err
	}
	defer func() { _ = root.Close() }()
	st, err := root.Stat(name) // refuses links that lead out
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("image %q of %s: %w", name, obj.ID, backend.ErrMissing)
	}
	if err != nil {
		return "", fmt.Errorf("image %q of %s: %w", name, obj.ID, err)
	}
	if !st.Mode().IsRegular() {
		return "", fmt.Errorf("image %q of %s is not a file: %w", name, obj.ID, backend.ErrNotSupported)
	}
	return filepath.Join(b.root, Directory, name), nil
}

// Create makes sure that the image can be mounted.
func (b *Backend) Create(ctx context.Context, obj backend.Object, from *backend.Object) error {
	if from != nil {
		return fmt.Errorf("copy %s: %w", from.ID, backend.ErrNotSupported)
	}
	return b.Check(ctx, obj)
}

// Destroy leaves the image alone: it is not the volume's.
func (b *Backend) Destroy(context.Context, backend.Object) error { return nil }

// Grow is refused.
func (b *Backend) Grow(_ context.Context, obj backend.Object) error {
	return fmt.Errorf("grow %s: an image does not grow: %w", obj.ID, backend.ErrNotSupported)
}

// Usage is nothing: the image would be there anyway.
func (b *Backend) Usage(context.Context, backend.Object, bool) (backend.Usage, error) {
	return backend.Usage{}, nil
}

// Attach says how to mount the image.
func (b *Backend) Attach(ctx context.Context, obj backend.Object, _ backend.AttachOptions) (*backend.Attachment, error) {
	if err := b.Check(ctx, obj); err != nil {
		return nil, err
	}
	path, err := b.path(obj)
	if err != nil {
		return nil, err
	}
	return &backend.Attachment{Kind: backend.Filesystem, Path: path, FSType: "erofs", Options: []string{"ro"}}, nil
}

// Attached says whether the image is mounted anywhere.
func (b *Backend) Attached(_ context.Context, obj backend.Object) ([]*backend.Attachment, error) {
	path, err := b.path(obj)
	if err != nil {
		return nil, nil //nolint:nilerr // what is not there is not attached; Check tells
	}
	all, err := mount.Table("")
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if e.Type == "erofs" && e.Source == path {
			return []*backend.Attachment{{Kind: backend.Filesystem, Path: path, FSType: "erofs"}}, nil
		}
	}
	return nil, nil
}

// Refresh has nothing to do.
func (b *Backend) Refresh(context.Context, backend.Object) error { return nil }

// Detach has nothing to do.
func (b *Backend) Detach(context.Context, backend.Object) error { return nil }

// Check looks at the image's signature.
func (b *Backend) Check(_ context.Context, obj backend.Object) error {
	path, err := b.path(obj)
	if err != nil {
		return err
	}
	format, err := mount.Detect(path)
	if errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("image of %s: %w", obj.ID, backend.ErrMissing)
	}
	if err != nil {
		return err
	}
	if format != "erofs" {
		return fmt.Errorf("image of %s carries %q, not erofs: %w", obj.ID, format, backend.ErrNotSupported)
	}
	return nil
}
