// SPDX-License-Identifier: Apache-2.0

// Package disk gives whole disks and partitions to volumes, one each. A disk is
// taken only when it is blank and nobody uses it, and is zeroed before it can be
// taken again.
//
// Which volume has which disk is in a file of the volume's directory, written
// before the disk is first touched.
package disk

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// claimName is the file that says which disk a volume has.
const claimName = "disk"

// Backend hands out the devices of one pool.
type Backend struct {
	root    string
	devices []string
	// choosing serialises the choice of a disk among concurrent creations.
	choosing chan struct{}
}

var _ backend.Backend = (*Backend)(nil)

// New returns the backend of these devices, with its records below root. Stable
// names (/dev/disk/by-id) survive a reboot, /dev/sdX may not.
func New(root string, devices []string) *Backend {
	return &Backend{root: root, devices: devices, choosing: make(chan struct{}, 1)}
}

// Probe makes sure that the devices are block devices. One that is missing is
// noted; its volume says so itself.
func (b *Backend) Probe(context.Context) (backend.Features, error) {
	f := backend.Features{
		HardLimit: true, Reserve: true, Block: true, Mount: true, OwnSuperblock: true, DirectIO: true, MinBytes: 1 << 20,
	}
	for _, d := range b.devices {
		at, err := mount.At(devicePath(d))
		if err == nil && !at.Device {
			err = errors.New("not a block device")
		}
		if err != nil {
			f.Notes = append(f.Notes, fmt.Sprintf("%s: %v", d, err))
		}
	}
	return f, nil
}

// devicePath follows the links of stable names.
func devicePath(path string) string {
	if p, err := filepath.EvalSymlinks(path); err == nil {
		return p
	}
	return path
}

// free lists the disks that can be taken, with their sizes.
func (b *Backend) free() (map[string]int64, error) {
	taken, err := b.taken()
	if err != nil {
		return nil, err
	}
	out := map[string]int64{}
	for _, d := range b.devices {
		if taken[d] {
			continue
		}
		if err := mount.Unused(devicePath(d)); err != nil {
			continue
		}
		if format, err := mount.Detect(devicePath(d)); err != nil || format != mount.FormatBlank {
			continue // somebody's data: never ours to take
		}
		if n, err := mount.DeviceSize(devicePath(d)); err == nil {
			out[d] = n
		}
	}
	return out, nil
}

// taken reads every object's claim, in whatever state the object is.
func (b *Backend) taken() (map[string]bool, error) {
	claims, err := filepath.Glob(filepath.Join(b.root, "?", "*", claimName))
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, c := range claims {
		d, err := os.ReadFile(c)
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return nil, err
		}
		out[strings.TrimSpace(string(d))] = true
	}
	return out, nil
}

func (b *Backend) claim(obj backend.Object) (string, error) {
	d, err := os.ReadFile(filepath.Join(obj.Dir, claimName))
	if errors.Is(err, os.ErrNotExist) {
		return "", fmt.Errorf("disk of %s: %w", obj.ID, backend.ErrMissing)
	}
	return strings.TrimSpace(string(d)), err
}

// Space adds up the disks that can be taken.
func (b *Backend) Space(context.Context) (backend.Space, error) {
	free, err := b.free()
	if err != nil {
		return backend.Space{}, err
	}
	var s backend.Space
	for _, d := range b.devices {
		if n, err := mount.DeviceSize(devicePath(d)); err == nil {
			s.Total += n
		}
	}
	for _, n := range free {
		s.Free += n
		s.Largest = max(s.Largest, n)
	}
	return s, nil
}

// Create takes the smallest disk that is large enough.
func (b *Backend) Create(ctx context.Context, obj backend.Object, from *backend.Object) error {
	if from != nil {
		return fmt.Errorf("copy %s: disks have no snapshots: %w", from.ID, backend.ErrNotSupported)
	}
	select {
	case b.choosing <- struct{}{}:
		defer func() { <-b.choosing }()
	case <-ctx.Done():
		return ctx.Err()
	}
	free, err := b.free()
	if err != nil {
		return err
	}
	best := ""
	for _, d := range b.devices {
		if n, ok := free[d]; ok && n >= obj.Bytes && (best == "" || n < free[best]) {
			best = d
		}
	}
	if best == "" {
		return fmt.Errorf("no unused blank disk of %d bytes: %w", obj.Bytes, backend.ErrNoSpace)
	}
	f, err := os.OpenFile(filepath.Join(obj.Dir, claimName), os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	_, err = f.WriteString(best + "\n")
	if err := errors.Join(err, f.Sync(), f.Close()); err != nil {
		return fmt.Errorf("claim %s: %w", best, err)
	}
	return mount.SyncDir(obj.Dir)
}

// Destroy zeroes the disk and lets it go.
func (b *Backend) Destroy(_ context.Context, obj backend.Object) error {
	d, err := b.claim(obj)
	if errors.Is(err, backend.ErrMissing) || d == "" {
		return nil
	}
	if err != nil {
		return err
	}
	if err := mount.Unused(devicePath(d)); err != nil {
		return fmt.Errorf("wipe %s: %w: %w", d, backend.ErrBusy, err)
	}
	if err := mount.ZeroDevice(devicePath(d)); err != nil {
		return err
	}
	return os.Remove(filepath.Join(obj.Dir, claimName))
}

// Grow succeeds as far as the disk goes.
func (b *Backend) Grow(_ context.Context, obj backend.Object) error {
	d, err := b.claim(obj)
	if err != nil {
		return err
	}
	n, err := mount.DeviceSize(devicePath(d))
	if err == nil && n < obj.Bytes {
		err = fmt.Errorf("disk %s has %d bytes: %w", d, n, backend.ErrNoSpace)
	}
	return err
}

// Usage is the whole disk.
func (b *Backend) Usage(_ context.Context, obj backend.Object, _ bool) (backend.Usage, error) {
	return backend.Usage{Allocated: obj.Bytes}, nil
}

// Attach returns the disk.
func (b *Backend) Attach(ctx context.Context, obj backend.Object, o backend.AttachOptions) (*backend.Attachment, error) {
	if o.ReadOnly {
		return nil, fmt.Errorf("a read-only device beside a writable one on the same disk: %w", backend.ErrNotSupported)
	}
	if err := b.Check(ctx, obj); err != nil {
		return nil, err
	}
	all, err := b.Attached(ctx, obj)
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// Attached is what Attach returns: a disk is always there.
func (b *Backend) Attached(_ context.Context, obj backend.Object) ([]*backend.Attachment, error) {
	d, err := b.claim(obj)
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Stat(devicePath(d), &st); err != nil {
		return nil, fmt.Errorf("disk %s of %s: %w: %w", d, obj.ID, backend.ErrMissing, err)
	}
	return []*backend.Attachment{{Kind: backend.Device, Path: devicePath(d), Rdev: st.Rdev}}, nil
}

// Refresh has nothing to do: disks do not grow.
func (b *Backend) Refresh(context.Context, backend.Object) error { return nil }

// Detach has nothing to do but to look whether somebody still has the disk.
func (b *Backend) Detach(context.Context, backend.Object) error { return nil }

// Check makes sure that the disk is there and large enough.
func (b *Backend) Check(_ context.Context, obj backend.Object) error {
	d, err := b.claim(obj)
	if err != nil {
		return err
	}
	n, err := mount.DeviceSize(devicePath(d))
	switch {
	case errors.Is(err, os.ErrNotExist), errors.Is(err, unix.ENXIO), errors.Is(err, unix.ENODEV):
		return fmt.Errorf("disk %s of %s: %w", d, obj.ID, backend.ErrMissing)
	case err != nil:
		return fmt.Errorf("disk %s of %s: %w", d, obj.ID, err)
	case n < obj.Bytes:
		return fmt.Errorf("disk %s of %s has %d of %d bytes: %w", d, obj.ID, n, obj.Bytes, backend.ErrDamaged)
	}
	return nil
}
