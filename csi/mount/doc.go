// SPDX-License-Identifier: Apache-2.0

// Package mount is the only door to mount, mkfs, fsck, loop devices and the
// file-system ioctls (freeze, clone, extents, grow) of the storage room.
//
// It knows nothing of volumes: it takes paths and sizes and answers with what
// the kernel says. It keeps no state, so every answer is as fresh as the
// kernel's, and it shells out only where no system call exists (mkfs, fsck,
// offline resize2fs).
package mount

import "errors"

// Sentinels callers decide on; everything else is the kernel's errno, wrapped.
var (
	// ErrBusy: the object is still in use by somebody else (open device, mount
	// in use).
	ErrBusy = errors.New("still in use")
	// ErrNotMounted: the path is not the root of a mount.
	ErrNotMounted = errors.New("not mounted")
	// ErrOption: the kernel refused a mount option.
	ErrOption = errors.New("bad mount option")
	// ErrNotSupported: this kernel, file system or machine cannot do it.
	ErrNotSupported = errors.New("not supported here")
	// ErrOffline: the file system can only be resized while it is not mounted.
	ErrOffline = errors.New("cannot be resized while mounted")
	// ErrDirectIO: the backing file system cannot serve direct I/O with the
	// wanted block size.
	ErrDirectIO = errors.New("direct I/O not available")
	// ErrCorrupt: the checker found damage it would not repair by itself.
	ErrCorrupt = errors.New("file system is damaged")
)
