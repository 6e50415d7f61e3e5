// SPDX-License-Identifier: Apache-2.0

// Package directory keeps each payload in a directory, data, of an XFS or ext4
// file system with project quotas: the directory has a project id of its own and
// the kernel enforces the project's limit. The probe refuses a pool where the
// kernel or the mount has no project quota: a directory without a limit is not a
// volume.
package directory

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

const (
	dataName    = "data"
	projectName = "project"
	// Project ids of ours; the kubelet's own begin at 1048577.
	firstProject, lastProject = 2_000_000_000, 2_000_999_999

	magicXFS  = 0x58465342
	magicExt4 = 0xEF53

	projectQuota    = 2 // PRJQUOTA
	cmdXGetQuota    = 'X'<<8 + 3
	cmdXSetLimit    = 'X'<<8 + 4
	cmdGetQuota     = 0x800007
	cmdSetQuota     = 0x800008
	fsGetXattr      = 0x801C581F
	fsSetXattr      = 0x401C5820
	flagInherit     = 0x200 // FS_XFLAG_PROJINHERIT
	basicBlock      = 512   // XFS counts quota in these
	quotaBlock      = 1024  // ext4 in these
	validBlockLimit = 1     // QIF_BLIMITS
	xfsBlockHard    = 1 << 3
	xfsBlockSoft    = 1 << 2
)

// Backend keeps directories below one directory.
type Backend struct {
	root string
	xfs  bool // set by Probe
	// choosing serialises the choice of project ids.
	choosing chan struct{}
}

var (
	_ backend.Backend  = (*Backend)(nil)
	_ backend.Measurer = (*Backend)(nil)
)

// New returns the backend of the pool at root.
func New(root string) *Backend { return &Backend{root: root, choosing: make(chan struct{}, 1)} }

func data(o backend.Object) string { return filepath.Join(o.Dir, dataName) }

// Probe makes sure that project quota is enforced where the pool is.
func (b *Backend) Probe(context.Context) (backend.Features, error) {
	s, err := mount.StatSpace(b.root)
	if err != nil {
		return backend.Features{}, err
	}
	b.xfs = s.Magic == magicXFS
	if !b.xfs && s.Magic != magicExt4 {
		return backend.Features{}, fmt.Errorf("%s is neither on XFS nor on ext4: %w", b.root, backend.ErrNotSupported)
	}
	if _, err := b.quota(firstProject); err != nil {
		return backend.Features{}, fmt.Errorf("project quota on %s (kernel option and mount option prjquota): %w: %w", b.root, backend.ErrNotSupported, err)
	}
	return backend.Features{
		HardLimit: true, Reserve: true, Mount: true, OnlineGrow: true, MinBytes: 1 << 20,
		Notes: []string{"space is reserved by the ledger, not by the file system"},
	}, nil
}

// quotactl asks about a project of the pool's file system.
func (b *Backend) quotactl(cmd, project uint32, arg unsafe.Pointer) error {
	d, err := os.Open(b.root)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	_, _, errno := unix.Syscall6(unix.SYS_QUOTACTL_FD, d.Fd(), uintptr(cmd<<8|projectQuota), uintptr(project), uintptr(arg), 0, 0)
	if errno != 0 {
		return errno
	}
	return nil
}

// quota returns the bytes that a project uses.
func (b *Backend) quota(project uint32) (used int64, err error) {
	le := binary.NativeEndian
	if b.xfs {
		var q [112]byte // struct fs_disk_quota
		err := b.quotactl(cmdXGetQuota, project, unsafe.Pointer(&q))
		if errors.Is(err, unix.ENOENT) {
			return 0, nil // nothing used yet
		}
		return int64(le.Uint64(q[40:])) * basicBlock, err
	}
	var q [72]byte // struct if_dqblk
	err = b.quotactl(cmdGetQuota, project, unsafe.Pointer(&q))
	return int64(le.Uint64(q[16:])), err
}

func (b *Backend) limit(project uint32, bytes int64) error {
	le := binary.NativeEndian
	var err error
	if b.xfs {
		var q [112]byte
		q[0], q[1] = 1, 2 // FS_DQUOT_VERSION, FS_PROJ_QUOTA
		le.PutUint16(q[2:], xfsBlockHard|xfsBlockSoft)
		le.PutUint32(q[4:], project)
		le.PutUint64(q[8:], uint64(bytes/basicBlock))
		le.PutUint64(q[16:], uint64(bytes/basicBlock))
		err = b.quotactl(cmdXSetLimit, project, unsafe.Pointer(&q))
	} else {
		var q [72]byte
		le.PutUint64(q[0:], uint64(bytes/quotaBlock))
		le.PutUint64(q[8:], uint64(bytes/quotaBlock))
		le.PutUint32(q[64:], validBlockLimit)
		err = b.quotactl(cmdSetQuota, project, unsafe.Pointer(&q))
	}
	if err != nil {
		return fmt.Errorf("limit project %d to %d bytes: %w", project, bytes, err)
	}
	return nil
}

// setProject gives a directory, and all that is made in it, a project id.
func setProject(dir string, project uint32) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	var attr struct {
		xflags, extsize, nextents, projid, cowextsize uint32
		_                                             [8]byte
	}
	for _, req := range []uint{fsGetXattr, fsSetXattr} {
		if _, _, errno := unix.Syscall(unix.SYS_IOCTL, d.Fd(), uintptr(req), uintptr(unsafe.Pointer(&attr))); errno != 0 {
			return fmt.Errorf("project of %s: %w", dir, errno)
		}
		attr.projid = project
		attr.xflags |= flagInherit
	}
	return nil
}

// project reads the id that an object has.
func (b *Backend) project(obj backend.Object) (uint32, error) {
	text, err := os.ReadFile(filepath.Join(obj.Dir, projectName))
	if errors.Is(err, os.ErrNotExist) {
		return 0, fmt.Errorf("project of %s: %w", obj.ID, backend.ErrMissing)
	}
	if err != nil {
		return 0, err
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 32)
	if err != nil || n < firstProject || n > lastProject {
		return 0, fmt.Errorf("project %q of %s: %w", text, obj.ID, backend.ErrDamaged)
	}
	return uint32(n), nil
}

// choose takes the lowest id that no object has and that owns nothing.
func (b *Backend) choose(ctx context.Context, obj backend.Object) (uint32, error) {
	select {
	case b.choosing <- struct{}{}:
		defer func() { <-b.choosing }()
	case <-ctx.Done():
		return 0, ctx.Err()
	}
	files, err := filepath.Glob(filepath.Join(b.root, "?", "*", projectName))
	if err != nil {
		return 0, err
	}
	taken := map[string]bool{}
	for _, f := range files {
		if text, err := os.ReadFile(f); err == nil {
			taken[strings.TrimSpace(string(text))] = true
		}
	}
	for id := uint32(firstProject); id <= lastProject; id++ {
		if taken[strconv.Itoa(int(id))] {
			continue
		}
		if used, err := b.quota(id); err != nil || used > 0 {
			continue
		}
		return id, os.WriteFile(filepath.Join(obj.Dir, projectName), []byte(strconv.Itoa(int(id))), 0o600)
	}
	return 0, fmt.Errorf("all project ids are taken: %w", backend.ErrNoSpace)
}

// Space measures the pool's file system.
func (b *Backend) Space(context.Context) (backend.Space, error) {
	s, err := mount.StatSpace(b.root)
	if err != nil {
		return backend.Space{}, err
	}
	return backend.Space{Total: s.Total, Free: s.Available, ReadOnly: s.ReadOnly}, nil
}

// Create makes the directory under a project of its own.
func (b *Backend) Create(ctx context.Context, obj backend.Object, from *backend.Object) error {
	if from != nil {
		return fmt.Errorf("copy %s: directories have no snapshots: %w", from.ID, backend.ErrNotSupported)
	}
	project, err := b.choose(ctx, obj)
	if err != nil {
		return err
	}
	if err := os.Mkdir(data(obj), 0o755); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	if err := setProject(data(obj), project); err != nil {
		return err
	}
	if err := b.limit(project, obj.Bytes); err != nil {
		return err
	}
	return mount.SyncDir(obj.Dir)
}

// Destroy removes the directory and lifts the project's limit.
func (b *Backend) Destroy(_ context.Context, obj backend.Object) error {
	if err := os.RemoveAll(data(obj)); err != nil {
		return err
	}
	project, err := b.project(obj)
	if err != nil {
		return nil //nolint:nilerr // it never got a project
	}
	if err := b.limit(project, 0); err != nil {
		return err
	}
	return os.Remove(filepath.Join(obj.Dir, projectName))
}

// Grow raises the limit.
func (b *Backend) Grow(_ context.Context, obj backend.Object) error {
	project, err := b.project(obj)
	if err != nil {
		return err
	}
	return b.limit(project, obj.Bytes)
}

// Usage reads the project's quota.
func (b *Backend) Usage(_ context.Context, obj backend.Object, _ bool) (backend.Usage, error) {
	project, err := b.project(obj)
	if err != nil {
		return backend.Usage{}, err
	}
	used, err := b.quota(project)
	return backend.Usage{Allocated: used, Debt: max(obj.Bytes-used, 0)}, err
}

// Measure returns what the volume uses of its limit.
func (b *Backend) Measure(ctx context.Context, obj backend.Object) (used, most int64, err error) {
	u, err := b.Usage(ctx, obj, false)
	return u.Allocated, obj.Bytes, err
}

// Attach returns the directory.
func (b *Backend) Attach(ctx context.Context, obj backend.Object, _ backend.AttachOptions) (*backend.Attachment, error) {
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

// Check makes sure that the directory is there.
func (b *Backend) Check(_ context.Context, obj backend.Object) error {
	st, err := os.Lstat(data(obj))
	switch {
	case errors.Is(err, os.ErrNotExist):
		return fmt.Errorf("directory of %s: %w", obj.ID, backend.ErrMissing)
	case err != nil:
		return fmt.Errorf("directory of %s: %w", obj.ID, err)
	case !st.IsDir():
		return fmt.Errorf("%s is not a directory: %w", data(obj), backend.ErrDamaged)
	}
	return nil
}
