// SPDX-License-Identifier: Apache-2.0

package btrfs

import (
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"unsafe"

	"golang.org/x/sys/unix"
)

// ioctl numbers and layouts of include/uapi/linux/btrfs.h.
const (
	iocSubvolCreate = 0x5000940e
	iocSnapDestroy  = 0x5000940f
	iocTreeSearch   = 0xd0009411
	iocInoLookup    = 0xd0009412
	iocSnapCreateV2 = 0x50009417
	iocQuotaCtl     = 0xc0109428
	iocQgroupLimit  = 0x8030942b
	iocSync         = 0x9408

	quotaEnable     = 1
	snapReadOnly    = 2
	limitReferenced = 1

	quotaTree      = 8
	keyQgroupInfo  = 242
	firstFreeInode = 256 // inode of every subvolume's root
	magic          = 0x9123683E
)

type volArgs struct {
	fd   int64
	name [4088]byte
}

type volArgsV2 struct {
	fd      int64
	transid uint64
	flags   uint64
	_       [4]uint64
	name    [4040]byte
}

func ioctl(fd uintptr, req uint, p unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, fd, uintptr(req), uintptr(p)); errno != 0 {
		return errno
	}
	return nil
}

// in runs f with the parent directory of path open, and path's last name.
func in(path string, f func(fd uintptr, name string) error) error {
	d, err := os.Open(filepath.Dir(path))
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return f(d.Fd(), filepath.Base(path))
}

func createSubvolume(path string) error {
	return in(path, func(fd uintptr, name string) error {
		var a volArgs
		copy(a.name[:len(a.name)-1], name)
		if err := ioctl(fd, iocSubvolCreate, unsafe.Pointer(&a)); err != nil {
			return fmt.Errorf("create subvolume %s: %w", path, err)
		}
		return nil
	})
}

func snapshot(from, to string, readOnly bool) error {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer func() { _ = src.Close() }()
	return in(to, func(fd uintptr, name string) error {
		a := volArgsV2{fd: int64(src.Fd())}
		if readOnly {
			a.flags = snapReadOnly
		}
		copy(a.name[:len(a.name)-1], name)
		if err := ioctl(fd, iocSnapCreateV2, unsafe.Pointer(&a)); err != nil {
			return fmt.Errorf("snapshot %s to %s: %w", from, to, err)
		}
		return nil
	})
}

func destroySubvolume(path string) error {
	err := in(path, func(fd uintptr, name string) error {
		var a volArgs
		copy(a.name[:len(a.name)-1], name)
		return ioctl(fd, iocSnapDestroy, unsafe.Pointer(&a))
	})
	if err != nil && !errors.Is(err, os.ErrNotExist) && !errors.Is(err, unix.ENOENT) {
		return fmt.Errorf("destroy subvolume %s: %w", path, err)
	}
	return nil
}

// subvolumeID returns the id of the subvolume whose root path is.
func subvolumeID(path string) (uint64, error) {
	d, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer func() { _ = d.Close() }()
	var a struct {
		treeid, objectid uint64
		name             [4080]byte
	}
	a.objectid = firstFreeInode
	if err := ioctl(d.Fd(), iocInoLookup, unsafe.Pointer(&a)); err != nil {
		return 0, fmt.Errorf("subvolume id of %s: %w", path, err)
	}
	return a.treeid, nil
}

func enableQuota(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	a := struct{ cmd, status uint64 }{cmd: quotaEnable}
	return ioctl(d.Fd(), iocQuotaCtl, unsafe.Pointer(&a))
}

// limit sets the most bytes that the subvolume may reference.
func limit(path string, bytes int64) error {
	id, err := subvolumeID(path)
	if err != nil {
		return err
	}
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	a := struct{ qgroup, flags, maxReferenced, maxExclusive, rsvReferenced, rsvExclusive uint64 }{
		qgroup: id, flags: limitReferenced, maxReferenced: uint64(bytes),
	}
	if err := ioctl(d.Fd(), iocQgroupLimit, unsafe.Pointer(&a)); err != nil {
		return fmt.Errorf("limit %s to %d bytes: %w", path, bytes, err)
	}
	return nil
}

// usage returns the bytes that a subvolume references, and those that are its
// own alone. They lag by up to a transaction (30 seconds).
func usage(path string) (referenced, exclusive int64, err error) {
	id, err := subvolumeID(path)
	if err != nil {
		return 0, 0, err
	}
	d, err := os.Open(path)
	if err != nil {
		return 0, 0, err
	}
	defer func() { _ = d.Close() }()
	var a [4096]byte
	le := binary.NativeEndian
	for i, v := range []uint64{quotaTree, 0, 0, id, id, 0, ^uint64(0)} { // tree, objects, offsets, transactions
		le.PutUint64(a[8*i:], v)
	}
	le.PutUint32(a[56:], keyQgroupInfo)
	le.PutUint32(a[60:], keyQgroupInfo)
	le.PutUint32(a[64:], 1)
	if err := ioctl(d.Fd(), iocTreeSearch, unsafe.Pointer(&a)); err != nil {
		return 0, 0, fmt.Errorf("usage of %s: %w", path, err)
	}
	const key, header = 104, 32
	if le.Uint32(a[64:]) == 0 || le.Uint32(a[key+28:]) < 40 {
		return 0, 0, nil // not accounted yet
	}
	item := a[key+header:]
	return int64(binary.LittleEndian.Uint64(item[8:])), int64(binary.LittleEndian.Uint64(item[24:])), nil
}

func syncFS(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	return ioctl(d.Fd(), iocSync, nil)
}
