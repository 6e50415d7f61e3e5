// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"encoding/binary"
	"errors"
	"fmt"
	"unsafe"

	"golang.org/x/sys/unix"
)

// GrowFS makes the file system mounted at path use its whole device, which has
// size bytes. ErrOffline when this kernel (or the daemon's capabilities: ext4
// wants CAP_SYS_RESOURCE) only lets it be done while unmounted.
func GrowFS(path, fsType string, size int64) error {
	var err error
	switch fsType {
	case "xfs":
		err = growXFS(path, size)
	case "ext4", "ext3", "ext2":
		err = growExt4(path, size)
	case "btrfs":
		err = growBtrfs(path)
	default:
		return fmt.Errorf("grow %s: %w: file system %q", path, ErrNotSupported, fsType)
	}
	if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EOPNOTSUPP) {
		return fmt.Errorf("grow %s (%s): %w (%w)", path, fsType, ErrOffline, err)
	}
	if err != nil {
		return fmt.Errorf("grow %s (%s) to %d bytes: %w", path, fsType, size, err)
	}
	return nil
}

func growXFS(path string, size int64) error {
	return withDir(path, func(fd uintptr) error {
		var geo [112]byte // struct xfs_fsop_geom_v1
		if err := ioctlPtr(fd, xfsGeometryV1, unsafe.Pointer(&geo)); err != nil {
			return err
		}
		le := binary.NativeEndian
		block, imax, have := int64(le.Uint32(geo[0:])), le.Uint32(geo[28:]), le.Uint64(geo[32:])
		want := uint64(size / block)
		if want <= have {
			return nil
		}
		grow := struct {
			blocks uint64
			imaxp  uint32
			_      uint32
		}{want, imax, 0}
		err := ioctlPtr(fd, xfsGrowData, unsafe.Pointer(&grow))
		if errors.Is(err, unix.EINVAL) && want-have < 64 {
			return nil // less than one allocation group's minimum: nothing to add
		}
		return err
	})
}

func growExt4(path string, size int64) error {
	return withDir(path, func(fd uintptr) error {
		var st unix.Statfs_t
		if err := unix.Fstatfs(int(fd), &st); err != nil {
			return err
		}
		blocks := uint64(size / st.Bsize)
		err := ioctlPtr(fd, ext4ResizeFS, unsafe.Pointer(&blocks))
		return err
	})
}

func growBtrfs(path string) error {
	return withDir(path, func(fd uintptr) error {
		var args struct {
			fd   int64
			name [4088]byte
		}
		copy(args.name[:], "max")
		return ioctlPtr(fd, btrfsResize, unsafe.Pointer(&args))
	})
}
