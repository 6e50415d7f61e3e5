// SPDX-License-Identifier: Apache-2.0

package file

import (
	"context"
	"errors"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// Attach binds the image to a loop device, or returns the one that stands.
func (b *Backend) Attach(ctx context.Context, obj backend.Object, o backend.AttachOptions) (*backend.Attachment, error) {
	if err := b.Check(ctx, obj); err != nil {
		return nil, err
	}
	loops, err := b.loops(obj)
	if err != nil {
		return nil, err
	}
	for _, l := range loops {
		if l.ReadOnly == o.ReadOnly && (o.Transient || !l.AutoClear) {
			return attachment(l)
		}
	}
	l, err := mount.AttachLoop(ctx, image(obj), mount.LoopOptions{
		BlockSize: BlockSize, DirectIO: b.features.DirectIO, ReadOnly: o.ReadOnly, AutoClear: o.Transient,
	})
	if err != nil {
		return nil, err
	}
	return &backend.Attachment{Kind: backend.Device, Path: l.Path, Rdev: l.Rdev, Hold: l}, nil
}

// attachment holds a device that stands, so that it does not clear itself
// between the look and the mount.
func attachment(l *mount.Loop) (*backend.Attachment, error) {
	f, err := os.OpenFile(l.Path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("hold %s: %w", l.Path, err)
	}
	if again, err := mount.LoopAt(l.Number); err != nil || again.Backing != l.Backing {
		_ = f.Close()
		return nil, fmt.Errorf("hold %s: %w", l.Path, backend.ErrBusy)
	}
	return &backend.Attachment{Kind: backend.Device, Path: l.Path, Rdev: l.Rdev, Hold: f}, nil
}

func (b *Backend) loops(obj backend.Object) ([]*mount.Loop, error) {
	id, err := mount.StatFileID(image(obj))
	if errors.Is(err, os.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	return mount.LoopsOf(id, obj.ID) // the directory is named by the id in each of its places
}

// Is asks the one device.
func (b *Backend) Is(obj backend.Object, rdev uint64) (bool, error) {
	l, err := mount.LoopOf(rdev)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	id, err := mount.StatFileID(image(obj))
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return err == nil && l.Backing == id, err
}

// Attached lists the image's loop devices.
func (b *Backend) Attached(_ context.Context, obj backend.Object) ([]*backend.Attachment, error) {
	loops, err := b.loops(obj)
	if err != nil {
		return nil, err
	}
	out := make([]*backend.Attachment, 0, len(loops))
	for _, l := range loops {
		out = append(out, &backend.Attachment{Kind: backend.Device, Path: l.Path, Rdev: l.Rdev})
	}
	return out, nil
}

// Refresh makes every device of the image see its new size.
func (b *Backend) Refresh(_ context.Context, obj backend.Object) error {
	loops, err := b.loops(obj)
	if err != nil {
		return err
	}
	for _, l := range loops {
		if err := mount.GrowLoop(l); err != nil {
			return err
		}
	}
	return nil
}

// Detach frees every device of the image.
func (b *Backend) Detach(ctx context.Context, obj backend.Object) error {
	loops, err := b.loops(obj)
	if err != nil {
		return err
	}
	var errs []error
	for _, l := range loops {
		if err := mount.DetachLoop(ctx, l); err != nil {
			if errors.Is(err, mount.ErrBusy) {
				err = fmt.Errorf("%w: %w", backend.ErrBusy, err)
			}
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Check compares the image with what was promised.
func (b *Backend) Check(_ context.Context, obj backend.Object) error {
	var st unix.Stat_t
	err := unix.Lstat(image(obj), &st)
	switch {
	case errors.Is(err, unix.ENOENT):
		return fmt.Errorf("image of %s: %w", obj.ID, backend.ErrMissing)
	case err != nil:
		return fmt.Errorf("image of %s: %w", obj.ID, err)
	case st.Mode&unix.S_IFMT != unix.S_IFREG:
		return fmt.Errorf("image of %s is not a regular file: %w", obj.ID, backend.ErrDamaged)
	case st.Size < obj.Bytes:
		return fmt.Errorf("image of %s has %d of %d bytes: %w", obj.ID, st.Size, obj.Bytes, backend.ErrDamaged)
	}
	return nil
}
