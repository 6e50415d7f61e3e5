// SPDX-License-Identifier: Apache-2.0

// Package netns owns network namespaces as files: create and pin, open and
// check, run code inside. It is the only package that moves a thread from one
// namespace to another, and it promises that no goroutine of the daemon ever
// runs in a namespace that it did not ask for.
package netns

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/unix"
)

// ErrNotNetNS says that a path exists but names no network namespace. A plain
// file left behind under /run/netns (wrong mount propagation) opens like any
// other, and netlink would answer only EINVAL much later.
var ErrNotNetNS = errors.New("not a network namespace")

// nsGetNSType is NS_GET_NSTYPE of linux/nsfs.h (kernel 4.11).
const nsGetNSType = 0xb703

// NS is an open network namespace. It keeps the namespace alive until Close.
type NS struct {
	f   *os.File
	ino uint64
}

// Open opens the namespace that path names. The error is (or wraps)
// os.ErrNotExist if there is no such file and ErrNotNetNS if the file is
// something else: another kind of namespace, a plain file, a directory.
func Open(path string) (*NS, error) {
	// O_NONBLOCK, so that a FIFO under this name cannot hang the daemon.
	fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, &os.PathError{Op: "open netns", Path: path, Err: err}
	}
	f := os.NewFile(uintptr(fd), path)
	ino, err := identify(fd)
	if err != nil {
		return nil, errors.Join(fmt.Errorf("open netns %s: %w", path, err), f.Close())
	}
	return &NS{f: f, ino: ino}, nil
}

// Current opens the namespace of the calling thread.
func Current() (*NS, error) { return Open("/proc/thread-self/ns/net") }

// identify returns the inode of an open namespace file.
func identify(fd int) (uint64, error) {
	var fs unix.Statfs_t
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return 0, fmt.Errorf("statfs: %w", err)
	}
	if fs.Type != unix.NSFS_MAGIC {
		return 0, ErrNotNetNS
	}
	kind, err := unix.IoctlRetInt(fd, nsGetNSType)
	if err != nil {
		return 0, fmt.Errorf("ask for the kind of namespace: %w", err)
	}
	if kind != unix.CLONE_NEWNET {
		return 0, ErrNotNetNS
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return 0, fmt.Errorf("stat: %w", err)
	}
	return st.Ino, nil
}

// Inode identifies the namespace among those that exist now; the kernel may
// give the number to another namespace once this one is gone.
func (n *NS) Inode() uint64 { return n.ino }

// Fd returns the file descriptor, valid until Close.
func (n *NS) Fd() int { return int(n.f.Fd()) }

// Path returns the path the namespace was opened by.
func (n *NS) Path() string { return n.f.Name() }

// Close releases the reference; the namespace lives on if others hold it.
func (n *NS) Close() error { return n.f.Close() }

// Do runs fn on a thread inside the namespace and returns fn's error. fn must
// not start goroutines that rely on the namespace. A thread that cannot be
// brought back is never used again.
func (n *NS) Do(fn func() error) error {
	done := make(chan error, 1)
	go func() { done <- onThread(n.Fd(), n.Path(), fn) }()
	return <-done
}

// onThread enters the namespace with the current goroutine's thread, and
// leaves it again. If leaving fails the goroutine ends with its thread locked,
// which makes the Go runtime destroy the thread.
func onThread(fd int, path string, fn func() error) (retErr error) {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the thread's own netns: %w", err)
	}
	defer func() {
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			retErr = errors.Join(retErr, fmt.Errorf("leave netns %s: %w", path, err))
		} else {
			runtime.UnlockOSThread()
		}
		_ = unix.Close(home) // a read-only descriptor: nothing can be lost
	}()
	if err := unix.Setns(fd, unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("enter netns %s: %w", path, err)
	}
	return fn()
}

// Create makes a new network namespace and pins it at path (a bind mount on a
// file of mode 0444, parents made as needed). It fails if path exists. After a
// failure nothing is left.
func Create(path string) (retErr error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return fmt.Errorf("create netns: %w", err)
	}
	f, err := os.OpenFile(path, os.O_RDONLY|os.O_CREATE|os.O_EXCL, 0o444)
	if err != nil {
		return fmt.Errorf("create netns: %w", err)
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, os.Remove(path))
		}
	}()
	if err := f.Close(); err != nil {
		return fmt.Errorf("create netns: %w", err)
	}
	done := make(chan error, 1)
	go func() { done <- unshareAndPin(path) }()
	return <-done
}

// unshareAndPin must run on a goroutine of its own, see onThread.
func unshareAndPin(path string) (retErr error) {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return fmt.Errorf("open the thread's own netns: %w", err)
	}
	defer func() {
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			retErr = errors.Join(retErr, fmt.Errorf("leave new netns: %w", err))
		} else {
			runtime.UnlockOSThread()
		}
		_ = unix.Close(home) // a read-only descriptor: nothing can be lost
	}()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("unshare netns: %w", err)
	}
	if err := unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin netns %s: %w", path, err)
	}
	return nil
}

// Remove unpins the namespace at path and removes the file. What is not there
// is success; so is a file on which nothing is mounted. The kernel destroys the
// namespace when its last user is gone.
func Remove(path string) error {
	err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
	if err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return &os.PathError{Op: "unpin netns", Path: path, Err: err}
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove netns file: %w", err)
	}
	return nil
}
