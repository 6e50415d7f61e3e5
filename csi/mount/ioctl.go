// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"fmt"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl numbers that x/sys/unix does not carry; the layouts are in the kernel's
// include/uapi/linux/fs.h, fiemap.h, btrfs.h and fs/xfs/libxfs/xfs_fs.h.
const (
	fiFreeze        = 0xC0045877
	fiThaw          = 0xC0045878
	fiTrim          = 0xC0185879
	fsIocFiemap     = 0xC020660B
	xfsGeometryV1   = 0x80705864
	xfsGrowData     = 0x4010586E
	ext4ResizeFS    = 0x40086610
	btrfsResize     = 0x50009403
	blkGetSize64    = 0x80081272
	blkZeroOut      = 0x127f
	fsGetXattr      = 0x801C581F
	fsSetXattr      = 0x401C5820
	xflagCowExtSize = 0x00010000
)

func ioctlPtr(fd uintptr, req uint, p unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(req), uintptr(p)); errno != 0 {
		return errno
	}
	return nil
}

func withDir(path string, f func(fd uintptr) error) error {
	d, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return f(d.Fd())
}

// SyncFS writes out what is dirty in the file system mounted at path.
func SyncFS(path string) error {
	err := withDir(path, func(fd uintptr) error { return unix.Syncfs(int(fd)) })
	if err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}

// Freeze stops writes to the file system mounted at path and writes out what is
// dirty. The freeze outlives the process: who calls Freeze records it first.
// Freezing what is frozen is success.
func Freeze(path string) error {
	err := withDir(path, func(fd uintptr) error { return ioctlPtr(fd, fiFreeze, nil) })
	if err != nil && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("freeze %s: %w", path, err)
	}
	return nil
}

// Thaw lets writes through again; thawing what is not frozen is success.
func Thaw(path string) error {
	err := withDir(path, func(fd uintptr) error { return ioctlPtr(fd, fiThaw, nil) })
	if err != nil && !errors.Is(err, unix.EINVAL) {
		return fmt.Errorf("thaw %s: %w", path, err)
	}
	return nil
}

// Trim discards the free blocks of the file system at path and returns how many
// bytes it gave back.
func Trim(path string) (int64, error) {
	rng := struct{ start, length, minlen uint64 }{length: ^uint64(0)}
	err := withDir(path, func(fd uintptr) error { return ioctlPtr(fd, fiTrim, unsafe.Pointer(&rng)) })
	if err != nil {
		return 0, fmt.Errorf("trim %s: %w", path, err)
	}
	return int64(rng.length), nil
}

// DeviceSize returns a block device's size in bytes.
func DeviceSize(path string) (int64, error) {
	var n uint64
	err := withDir(path, func(fd uintptr) error { return ioctlPtr(fd, blkGetSize64, unsafe.Pointer(&n)) })
	if err != nil {
		return 0, fmt.Errorf("size of %s: %w", path, err)
	}
	return int64(n), nil
}

// SetCowExtentSize asks XFS to copy-on-write file in pieces of size bytes, which
// bounds the fragmentation after a snapshot.
func SetCowExtentSize(file *os.File, size int64) error {
	var attr struct {
		xflags, extsize, nextents, projid, cowextsize uint32
		_                                             [8]byte
		_                                             [8]byte
	}
	if err := ioctlPtr(file.Fd(), fsGetXattr, unsafe.Pointer(&attr)); err != nil {
		return fmt.Errorf("read extent hint of %s: %w", file.Name(), err)
	}
	attr.xflags |= xflagCowExtSize
	attr.cowextsize = uint32(size)
	if err := ioctlPtr(file.Fd(), fsSetXattr, unsafe.Pointer(&attr)); err != nil {
		return fmt.Errorf("set copy-on-write extent size of %s: %w", file.Name(), err)
	}
	return nil
}

// Space is what statfs says of the file system at a path.
type Space struct {
	Total, Free, Available int64 // bytes; Available excludes root's reserve
	Inodes, InodesFree     int64 // 0 when the file system does not count them
	Magic                  int64
	ReadOnly               bool
	BlockSize              int64
}

// StatSpace measures the file system that holds path.
func StatSpace(path string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Space{}, fmt.Errorf("statfs %s: %w", path, err)
	}
	bs := st.Frsize
	if bs == 0 {
		bs = st.Bsize
	}
	return Space{
		Total: int64(st.Blocks) * bs, Free: int64(st.Bfree) * bs, Available: int64(st.Bavail) * bs,
		Inodes: int64(st.Files), InodesFree: int64(st.Ffree),
		Magic: st.Type, ReadOnly: st.Flags&unix.ST_RDONLY != 0, BlockSize: bs,
	}, nil
}

// Unused fails with ErrBusy when the device is mounted, part of an array, or
// otherwise held by the kernel or a program that asked for it alone.
func Unused(device string) error {
	fd, err := unix.Open(device, unix.O_RDONLY|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%s: %w", device, ErrBusy)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", device, err)
	}
	return unix.Close(fd)
}

// ZeroDevice makes every byte of a device zero, by discard or write-zeroes where
// the device has them, by writing where not.
func ZeroDevice(device string) error {
	size, err := DeviceSize(device)
	if err != nil {
		return err
	}
	f, err := os.OpenFile(device, os.O_RDWR|unix.O_EXCL|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("zero %s: %w", device, err)
	}
	rng := [2]uint64{0, uint64(size)}
	err = ioctlPtr(f.Fd(), blkZeroOut, unsafe.Pointer(&rng))
	err = errors.Join(err, f.Sync(), f.Close())
	if err != nil {
		return fmt.Errorf("zero %s: %w", device, err)
	}
	return nil
}
