// SPDX-License-Identifier: Apache-2.0

// Package image serves read-only volumes from file-system images: data sets,
// models, packages. An image lies below the pool's images directory and is named
// by the class's image parameter. erofs images are mounted straight from the file by
// Linux 6.12 and later, squashfs images and erofs ones elsewhere through a read-only
// loop device; either way all users share one page cache.
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

const (
	erofs    = "erofs"
	squashfs = "squashfs"
)

// Backend mounts images below one directory.
type Backend struct {
	root string
	// missing says, of the kinds of image that this kernel cannot mount, why; set by
	// Probe, before any other verb runs.
	missing map[string]error
	// wantsDevice says that this kernel mounts erofs from devices only; set with missing.
	wantsDevice bool
}

var _ backend.Backend = (*Backend)(nil)

// New returns the backend of the pool at root.
func New(root string) *Backend { return &Backend{root: root} }

// Probe asks the kernel which images it mounts, and makes the images directory. A
// pool needs one of them; images of the other are refused one by one.
func (b *Backend) Probe(context.Context) (backend.Features, error) {
	f := backend.Features{HardLimit: true, Reserve: true, Mount: true, ReadOnly: true, OwnSuperblock: true, MinBytes: 4096}
	b.missing = map[string]error{}
	for _, kind := range []string{erofs, squashfs} {
		if err := mount.ProbeFS(kind); err != nil {
			b.missing[kind] = err
			f.Notes = append(f.Notes, fmt.Sprintf("no %s: %v", kind, err))
		}
	}
	if len(b.missing) == 2 {
		return f, fmt.Errorf("%w: %w: %w", backend.ErrNotSupported, b.missing[erofs], b.missing[squashfs])
	}
	if err := os.Mkdir(filepath.Join(b.root, Directory), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return backend.Features{}, err
	}
	if b.missing[erofs] == nil {
		straight, err := b.mountsFiles()
		if err != nil {
			return f, err
		}
		if b.wantsDevice = !straight; b.wantsDevice {
			f.Notes = append(f.Notes, "this kernel mounts erofs from devices only: images go through loop devices")
		}
	}
	return f, nil
}

// mountsFiles tries erofs with an empty file.
func (b *Backend) mountsFiles() (bool, error) {
	probe := filepath.Join(b.root, ".probe")
	if err := os.WriteFile(probe, make([]byte, 4096), 0o600); err != nil {
		return false, err
	}
	defer func() { _ = os.Remove(probe) }()
	return mount.MountsFiles(erofs, probe)
}

// looped says whether images of this kind are mounted through a loop device.
func (b *Backend) looped(kind string) bool { return kind == squashfs || b.wantsDevice }

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
	path, kind, err := b.find(obj)
	if err != nil {
		return nil, err
	}
	if b.looped(kind) {
		return b.attachLoop(ctx, path, kind)
	}
	return &backend.Attachment{Kind: backend.Filesystem, Path: path, FSType: erofs, Options: []string{"ro"}}, nil
}

// attachLoop is for file systems that want a device: a new one for each, which goes
// with its mount; the pages are the file's.
func (b *Backend) attachLoop(ctx context.Context, path, kind string) (*backend.Attachment, error) {
	l, err := mount.AttachLoop(ctx, path, mount.LoopOptions{BlockSize: 512, ReadOnly: true, AutoClear: true})
	if err != nil {
		return nil, err
	}
	return &backend.Attachment{Kind: backend.Device, Path: l.Path, Rdev: l.Rdev, FSType: kind, Options: []string{"ro"}, Hold: l}, nil
}

// Attached says whether the image is mounted anywhere.
func (b *Backend) Attached(_ context.Context, obj backend.Object) ([]*backend.Attachment, error) {
	path, kind, err := b.find(obj)
	if err != nil {
		return nil, nil //nolint:nilerr // what is not there is not attached; Check tells
	}
	if b.looped(kind) {
		return loopsOf(path, kind)
	}
	all, err := mount.Table("")
	if err != nil {
		return nil, err
	}
	for _, e := range all {
		if e.Type == erofs && e.Source == path {
			return []*backend.Attachment{{Kind: backend.Filesystem, Path: path, FSType: erofs}}, nil
		}
	}
	return nil, nil
}

func loopsOf(path, kind string) ([]*backend.Attachment, error) {
	id, err := mount.StatFileID(path)
	if err != nil {
		return nil, err
	}
	loops, err := mount.LoopsOf(id, filepath.Base(path))
	if err != nil {
		return nil, err
	}
	var out []*backend.Attachment
	for _, l := range loops {
		out = append(out, &backend.Attachment{Kind: backend.Device, Path: l.Path, Rdev: l.Rdev, FSType: kind})
	}
	return out, nil
}

// Refresh has nothing to do.
func (b *Backend) Refresh(context.Context, backend.Object) error { return nil }

// Detach has nothing to do.
func (b *Backend) Detach(context.Context, backend.Object) error { return nil }

// Check looks at the image's signature.
func (b *Backend) Check(_ context.Context, obj backend.Object) error {
	_, _, err := b.find(obj)
	return err
}

// find resolves an object's image and says of which kind it is.
func (b *Backend) find(obj backend.Object) (path, kind string, err error) {
	path, err = b.path(obj)
	if err != nil {
		return "", "", err
	}
	kind, err = mount.Detect(path)
	switch {
	case errors.Is(err, unix.ENOENT):
		return "", "", fmt.Errorf("image of %s: %w", obj.ID, backend.ErrMissing)
	case err != nil:
		return "", "", err
	case kind != erofs && kind != squashfs:
		return "", "", fmt.Errorf("image of %s carries %q, neither erofs nor squashfs: %w", obj.ID, kind, backend.ErrNotSupported)
	case b.missing[kind] != nil:
		return "", "", fmt.Errorf("image of %s is %s, which this kernel does not mount: %w: %w", obj.ID, kind, backend.ErrNotSupported, b.missing[kind])
	}
	return path, kind, nil
}
