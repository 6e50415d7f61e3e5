// SPDX-License-Identifier: Apache-2.0

// Package file keeps each payload in one image file, data.img, and attaches it
// through a loop device with direct I/O and 4096-byte logical blocks from birth.
//
// Images are reserved (fallocated) unless thin. Snapshots are reflinks where the
// pool's file system has them (XFS, btrfs) and sparse copies elsewhere; both are
// independent of their source from the first moment.
package file

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// BlockSize is the logical block size of every device and the granularity of
// every size. 512 would be changed to 4096 by the kernel after the first reflink.
const BlockSize = 4096

// imageName is the payload's file in the object's directory.
const imageName = "data.img"

// OptionCowExtent names the class parameter for XFS's copy-on-write extent size.
const OptionCowExtent = "cowExtentSize"

// Backend keeps images below one directory.
type Backend struct {
	root string
	// features of the last Probe; written before any other verb runs.
	features backend.Features
}

var (
	_ backend.Backend     = (*Backend)(nil)
	_ backend.Snapshotter = (*Backend)(nil)
	_ backend.Differ      = (*Backend)(nil)
	_ backend.Sharer      = (*Backend)(nil)
	_ backend.Recogniser  = (*Backend)(nil)
)

// New returns the backend of the pool at root.
func New(root string) *Backend { return &Backend{root: root} }

// featuresName remembers what a probe found, for a start on a full pool.
const featuresName = ".features.json"

// Probe tries reflink, reservation and direct I/O on files of its own. On a pool
// too full for them it believes the last probe: a full pool has to serve, or
// nobody could free anything.
func (b *Backend) Probe(ctx context.Context) (backend.Features, error) {
	f, err := b.probe(ctx)
	memory := filepath.Join(b.root, featuresName)
	if err := spaceError(err); errors.Is(err, backend.ErrNoSpace) {
		text, rerr := os.ReadFile(memory)
		if rerr == nil {
			rerr = json.Unmarshal(text, &f)
		}
		if rerr != nil {
			return f, errors.Join(err, rerr)
		}
		f.Notes = append(f.Notes, "the pool is too full to be probed: this is what the last probe found")
		b.features = f
		return f, nil
	}
	if err != nil {
		return f, fmt.Errorf("probe pool %s: %w", b.root, err)
	}
	b.features = f
	if text, err := json.Marshal(f); err == nil {
		_ = os.WriteFile(memory, text, 0o600) // without it, only a full pool suffers
	}
	return f, nil
}

func (b *Backend) probe(ctx context.Context) (backend.Features, error) {
	f := backend.Features{
		HardLimit: true, Block: true, Mount: true, Snapshots: true, Delta: true, OnlineGrow: true, OwnSuperblock: true,
		MinBytes: 4 << 20,
	}
	src := filepath.Join(b.root, ".probe")
	dst := src + "-clone"
	defer func() { _ = os.Remove(src); _ = os.Remove(dst) }()
	_ = os.Remove(src)
	_ = os.Remove(dst)
	img, err := os.OpenFile(src, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return f, err
	}
	defer func() { _ = img.Close() }()
	switch err := mount.Reserve(img, 1<<20); {
	case errors.Is(err, mount.ErrNotSupported):
		f.Notes = append(f.Notes, "no fallocate: volumes cannot be reserved")
		if err := img.Truncate(1 << 20); err != nil {
			return f, err
		}
	case err != nil:
		return f, err
	default:
		f.Reserve = true
	}
	if _, err := img.WriteAt(make([]byte, BlockSize), 0); err != nil {
		return f, err
	}
	if to, err := os.OpenFile(dst, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600); err == nil {
		f.Instant = mount.Clone(to, img) == nil
		_ = to.Close()
	}
	if !f.Instant {
		f.Notes = append(f.Notes, "no reflink: snapshots and clones are sparse copies")
	}
	l, err := mount.AttachLoop(ctx, src, mount.LoopOptions{BlockSize: BlockSize, DirectIO: true, AutoClear: true})
	switch {
	case err == nil:
		f.DirectIO = true
		_ = l.Close()
	case errors.Is(err, mount.ErrDirectIO):
		f.Notes = append(f.Notes, "no direct I/O: volumes go through the page cache twice")
	default:
		return f, err
	}
	return f, nil
}

// Space measures the pool's file system.
func (b *Backend) Space(context.Context) (backend.Space, error) {
	s, err := mount.StatSpace(b.root)
	if err != nil {
		return backend.Space{}, err
	}
	return backend.Space{Total: s.Total, Free: s.Available, ReadOnly: s.ReadOnly}, nil
}

func image(o backend.Object) string { return filepath.Join(o.Dir, imageName) }

// Create makes the image, from another one if asked.
func (b *Backend) Create(ctx context.Context, obj backend.Object, from *backend.Object) (retErr error) {
	f, err := os.OpenFile(image(obj), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("create image: %w", spaceError(err))
	}
	defer func() {
		if err := f.Close(); err != nil && retErr == nil {
			retErr = err
		}
	}()
	if from != nil {
		if err := b.fill(ctx, f, *from); err != nil {
			return err
		}
	}
	if err := b.size(f, obj); err != nil {
		return err
	}
	if v := obj.Options[OptionCowExtent]; v != "" && b.features.Instant {
		n, err := strconv.ParseInt(v, 10, 32)
		if err != nil {
			return fmt.Errorf("copy-on-write extent size %q: %w", v, err)
		}
		if err := mount.SetCowExtentSize(f, n); err != nil {
			return err
		}
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync image: %w", spaceError(err))
	}
	return nil
}

// fill makes f a copy of from's image.
func (b *Backend) fill(ctx context.Context, f *os.File, from backend.Object) error {
	src, err := os.OpenFile(image(from), os.O_RDONLY|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("source %s: %w", from.ID, backend.ErrMissing)
	}
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	if err := f.Truncate(0); err != nil {
		return err
	}
	if b.features.Instant {
		return spaceError(mount.Clone(f, src))
	}
	// Blocks that the loop device wrote with direct I/O are on disk; the rest of
	// the source's dirty pages (imports) go first.
	if err := src.Sync(); err != nil {
		return err
	}
	return spaceError(mount.CopySparse(f, src, func(int64) error { return ctx.Err() }))
}

// size gives f its length and, unless thin, its blocks.
func (b *Backend) size(f *os.File, obj backend.Object) error {
	st, err := f.Stat()
	if err != nil {
		return err
	}
	if !obj.Thin && b.features.Reserve {
		return spaceError(mount.Reserve(f, max(obj.Bytes, st.Size())))
	}
	if st.Size() >= obj.Bytes {
		return nil
	}
	return spaceError(f.Truncate(obj.Bytes))
}

// Snapshot makes dst an image of src now. The caller has frozen the file system
// if it wants a clean one; the cut itself is atomic where the pool has reflinks.
func (b *Backend) Snapshot(ctx context.Context, src, dst backend.Object) error {
	f, err := os.OpenFile(image(dst), os.O_RDWR|os.O_CREATE|unix.O_NOFOLLOW, 0o600)
	if err != nil {
		return fmt.Errorf("create snapshot image: %w", spaceError(err))
	}
	defer func() { _ = f.Close() }()
	if err := b.fill(ctx, f, src); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync snapshot image: %w", spaceError(err))
	}
	return nil
}

// Destroy frees the devices and removes the image.
func (b *Backend) Destroy(ctx context.Context, obj backend.Object) error {
	if err := b.Detach(ctx, obj); err != nil {
		return err
	}
	// XFS frees an unlinked file's blocks some time later, a truncated one's now:
	// the space is there for the next volume when we answer.
	if f, err := os.OpenFile(image(obj), os.O_WRONLY|unix.O_NOFOLLOW, 0); err == nil {
		if err := errors.Join(f.Truncate(0), f.Close()); err != nil {
			return fmt.Errorf("free image: %w", err)
		}
	}
	if err := os.Remove(image(obj)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove image: %w", err)
	}
	return nil
}

// Grow extends the image; devices see it after Refresh.
func (b *Backend) Grow(_ context.Context, obj backend.Object) error {
	f, err := os.OpenFile(image(obj), os.O_RDWR|unix.O_NOFOLLOW, 0)
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("grow %s: %w", obj.ID, backend.ErrMissing)
	}
	if err != nil {
		return err
	}
	defer func() { _ = f.Close() }()
	if err := b.size(f, obj); err != nil {
		return err
	}
	if err := f.Sync(); err != nil {
		return fmt.Errorf("sync image: %w", spaceError(err))
	}
	return nil
}

// Usage reads the image's block count, or follows its extents when thorough.
func (b *Backend) Usage(_ context.Context, obj backend.Object, thorough bool) (backend.Usage, error) {
	var st unix.Stat_t
	err := unix.Stat(image(obj), &st)
	if errors.Is(err, unix.ENOENT) {
		return backend.Usage{}, fmt.Errorf("measure %s: %w", obj.ID, backend.ErrMissing)
	}
	if err != nil {
		return backend.Usage{}, fmt.Errorf("measure %s: %w", obj.ID, err)
	}
	u := backend.Usage{Allocated: st.Blocks * 512}
	u.Debt = max(obj.Bytes-u.Allocated, 0)
	if thorough && b.features.Instant {
		ext, err := mount.FileUsage(image(obj))
		if err != nil {
			return u, err
		}
		u.Debt, u.Shared = max(obj.Bytes-ext.Allocated, 0), ext.Shared
	}
	return u, nil
}

// spaceError marks the errno of a full pool.
func spaceError(err error) error {
	if errors.Is(err, unix.ENOSPC) || errors.Is(err, unix.EDQUOT) || errors.Is(err, unix.EFBIG) {
		return fmt.Errorf("%w: %w", backend.ErrNoSpace, err)
	}
	return err
}
