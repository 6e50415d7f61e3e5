// SPDX-License-Identifier: Apache-2.0

package file

import (
	"context"
	"fmt"
	"os"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

var _ backend.Porter = (*Backend)(nil)

// Export copies the image to dst.
func (b *Backend) Export(ctx context.Context, obj backend.Object, dst *os.File, progress func(int64) error) error {
	src, err := os.OpenFile(image(obj), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("export %s: %w", obj.ID, backend.ErrMissing)
	}
	defer func() { _ = src.Close() }()
	if err := src.Sync(); err != nil {
		return err
	}
	if err := mount.CopySparse(dst, src, stoppable(ctx, progress)); err != nil {
		return err
	}
	return dst.Sync()
}

// Import fills the image from src; what src leaves out stays zero.
func (b *Backend) Import(ctx context.Context, obj backend.Object, src *os.File, progress func(int64) error) error {
	dst, err := os.OpenFile(image(obj), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if err != nil {
		return fmt.Errorf("import %s: %w", obj.ID, backend.ErrMissing)
	}
	defer func() { _ = dst.Close() }()
	if err := mount.CopyData(dst, src, stoppable(ctx, progress)); err != nil {
		return spaceError(err)
	}
	return spaceError(dst.Sync())
}

func stoppable(ctx context.Context, progress func(int64) error) func(int64) error {
	return func(done int64) error {
		if err := ctx.Err(); err != nil {
			return err
		}
		if progress == nil {
			return nil
		}
		return progress(done)
	}
}
