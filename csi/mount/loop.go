// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// FileID identifies a backing file independent of its path: sysfs shows paths
// relative to some mount namespace and " (deleted)" for what was renamed away.
type FileID struct {
	Dev, Inode uint64
}

// StatFileID returns the identity of the file at path.
func StatFileID(path string) (FileID, error) {
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil {
		return FileID{}, fmt.Errorf("stat %s: %w", path, err)
	}
	return FileID{Dev: st.Dev, Inode: st.Ino}, nil
}

// LoopOptions say how AttachLoop binds a file to a device.
type LoopOptions struct {
	// BlockSize is the device's logical block size in bytes. It has to stay the
	// same for the life of the image: after a reflink the kernel would raise it
	// by itself and turn direct I/O off, see DESIGN.md.
	BlockSize uint32
	// ReadOnly makes the device refuse writes.
	ReadOnly bool
	// DirectIO makes the kernel bypass the page cache of the backing file; when
	// it cannot, AttachLoop fails with ErrDirectIO rather than attach a slower one.
	DirectIO bool
	// AutoClear frees the device when its last user (mount or open file) goes.
	AutoClear bool
}

// Loop is an attached loop device. File keeps an AutoClear device alive until
// something mounts it; Close it then.
type Loop struct {
	File     *os.File // nil when found, not attached
	Path     string   // /dev/loopN
	Number   int
	Rdev     uint64 // device number as in stat's st_rdev
	Backing  FileID
	ReadOnly bool
	DirectIO bool
	// AutoClear says the kernel frees the device with its last user.
	AutoClear bool
}

// Close drops the reference to the device; an AutoClear device that nothing
// else uses disappears.
func (l *Loop) Close() error {
	if l == nil || l.File == nil {
		return nil
	}
	err := l.File.Close()
	l.File = nil
	return err
}

// loopAttempts bounds the retries against other programs that take the free
// device between LOOP_CTL_GET_FREE and LOOP_CONFIGURE.
const loopAttempts = 64

// AttachLoop binds file to a free loop device.
func AttachLoop(ctx context.Context, file string, o LoopOptions) (*Loop, error) {
	mode := os.O_RDWR
	if o.ReadOnly {
		mode = os.O_RDONLY
	}
	back, err := os.OpenFile(file, mode|unix.O_CLOEXEC|unix.O_NOFOLLOW, 0)
	if err != nil {
		return nil, fmt.Errorf("open backing file: %w", err)
	}
	defer func() { _ = back.Close() }()
	if st, err := back.Stat(); err != nil || !st.Mode().IsRegular() {
		return nil, fmt.Errorf("attach %s: not a regular file", file)
	}
	ctl, err := os.OpenFile("/dev/loop-control", os.O_RDWR|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("open loop control: %w", err)
	}
	defer func() { _ = ctl.Close() }()
	for range loopAttempts {
		l, err := tryAttach(ctl, back, file, o)
		if err == nil {
			return l, nil
		}
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("attach %s: %w", file, err)
		}
		if err := pause(ctx, time.Duration(1+rand.IntN(5))*time.Millisecond); err != nil {
			return nil, fmt.Errorf("attach %s: %w", file, err)
		}
	}
	return nil, fmt.Errorf("attach %s: no free loop device after %d attempts: %w", file, loopAttempts, ErrBusy)
}

func pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

func tryAttach(ctl, back *os.File, name string, o LoopOptions) (_ *Loop, retErr error) {
	n, err := unix.IoctlRetInt(int(ctl.Fd()), unix.LOOP_CTL_GET_FREE)
	if err != nil {
		return nil, fmt.Errorf("get a free loop device: %w", err)
	}
	path := fmt.Sprintf("/dev/loop%d", n)
	mode := os.O_RDWR
	if o.ReadOnly {
		mode = os.O_RDONLY
	}
	dev, err := os.OpenFile(path, mode|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil, unix.EBUSY // devtmpfs is a moment behind; try again
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if retErr != nil {
			_ = dev.Close()
		}
	}()
	cfg := &unix.LoopConfig{Fd: uint32(back.Fd()), Size: o.BlockSize}
	if o.ReadOnly {
		cfg.Info.Flags |= unix.LO_FLAGS_READ_ONLY
	}
	if o.DirectIO {
		cfg.Info.Flags |= unix.LO_FLAGS_DIRECT_IO
	}
	if o.AutoClear {
		cfg.Info.Flags |= unix.LO_FLAGS_AUTOCLEAR
	}
	copy(cfg.Info.File_name[:len(cfg.Info.File_name)-1], name)
	if err := unix.IoctlLoopConfigure(int(dev.Fd()), cfg); err != nil {
		return nil, fmt.Errorf("configure %s: %w", path, err)
	}
	l, err := loopStatus(dev, path, n)
	if err == nil && o.DirectIO && !l.DirectIO {
		err = fmt.Errorf("%s with %d-byte blocks: %w", path, o.BlockSize, ErrDirectIO)
	}
	if err != nil {
		_ = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0)
		return nil, err
	}
	l.File = dev
	return l, nil
}

func loopStatus(dev *os.File, path string, n int) (*Loop, error) {
	info, err := unix.IoctlLoopGetStatus64(int(dev.Fd()))
	if err != nil {
		return nil, err
	}
	var st unix.Stat_t
	if err := unix.Fstat(int(dev.Fd()), &st); err != nil {
		return nil, err
	}
	return &Loop{
		Path: path, Number: n, Rdev: st.Rdev,
		Backing:   FileID{Dev: info.Device, Inode: info.Inode},
		ReadOnly:  info.Flags&unix.LO_FLAGS_READ_ONLY != 0,
		DirectIO:  info.Flags&unix.LO_FLAGS_DIRECT_IO != 0,
		AutoClear: info.Flags&unix.LO_FLAGS_AUTOCLEAR != 0,
	}, nil
}

// LoopAt describes loop device n; os.ErrNotExist when it is not attached.
func LoopAt(n int) (*Loop, error) {
	path := fmt.Sprintf("/dev/loop%d", n)
	dev, err := os.OpenFile(path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return nil, err
	}
	defer func() { _ = dev.Close() }()
	l, err := loopStatus(dev, path, n)
	if errors.Is(err, unix.ENXIO) {
		return nil, fmt.Errorf("%s is not attached: %w", path, os.ErrNotExist)
	}
	return l, err
}

// LoopOf describes the loop device with this device number; os.ErrNotExist when it is
// not attached, or no loop device.
func LoopOf(rdev uint64) (*Loop, error) {
	name, err := os.Readlink(fmt.Sprintf("/sys/dev/block/%d:%d", unix.Major(rdev), unix.Minor(rdev)))
	if err != nil {
		return nil, err
	}
	number, ok := strings.CutPrefix(filepath.Base(name), "loop")
	n, err := strconv.Atoi(number)
	if !ok || err != nil {
		return nil, fmt.Errorf("%s is no loop device: %w", filepath.Base(name), os.ErrNotExist)
	}
	return LoopAt(n)
}

// Loops lists every attached loop device of the machine, whoever owns it.
func Loops() ([]*Loop, error) { return loops("") }

// loops lists those whose backing file has the hint in its path. Only they are opened:
// to open a device waits for whoever is at work on it, and makes its owner's detach wait.
func loops(hint string) ([]*Loop, error) {
	files, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		return nil, err
	}
	var out []*Loop
	for _, file := range files {
		n, err := strconv.Atoi(strings.TrimPrefix(filepath.Base(filepath.Dir(filepath.Dir(file))), "loop"))
		if err != nil {
			continue
		}
		if hint != "" {
			backing, err := os.ReadFile(file)
			if err != nil || !strings.Contains(string(backing), hint) {
				continue
			}
		}
		l, err := LoopAt(n)
		if err != nil { // gone between the listing and the look
			continue
		}
		out = append(out, l)
	}
	return out, nil
}

// LoopsOf lists the loop devices bound to the file with this identity. The hint is a part
// of the file's path that stays the same whatever it is moved or bound to, its
// directory's name for example; empty looks at every device of the machine.
func LoopsOf(id FileID, hint string) ([]*Loop, error) {
	all, err := loops(hint)
	if err != nil {
		return nil, err
	}
	var out []*Loop
	for _, l := range all {
		if l.Backing == id {
			out = append(out, l)
		}
	}
	return out, nil
}

// DetachLoop frees device l if it is still bound to l.Backing. When another
// program holds the device open, the kernel frees it on its last close; that is
// reported as ErrBusy, so that nobody deletes a file that is still written to.
func DetachLoop(ctx context.Context, l *Loop) error {
	if err := clearLoop(l); err != nil {
		return err
	}
	// The kernel finishes a clear when the last descriptor closes, ours included,
	// and udev or blkid may look at the device for some milliseconds.
	for try := range 20 {
		cur, err := LoopAt(l.Number)
		if err != nil || cur.Backing != l.Backing {
			return nil //nolint:nilerr // not attached any more is what was asked for
		}
		if err := pause(ctx, time.Duration(1+try)*time.Millisecond); err != nil {
			return fmt.Errorf("detach %s: %w", l.Path, err)
		}
	}
	return fmt.Errorf("detach %s: open elsewhere, the kernel frees it on the last close: %w", l.Path, ErrBusy)
}

func clearLoop(l *Loop) error {
	dev, err := os.OpenFile(l.Path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("detach: %w", err)
	}
	defer func() { _ = dev.Close() }()
	cur, err := loopStatus(dev, l.Path, l.Number)
	if errors.Is(err, unix.ENXIO) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("detach %s: %w", l.Path, err)
	}
	if cur.Backing != l.Backing {
		return nil // somebody else's by now
	}
	err = unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_CLR_FD, 0)
	if err != nil && !errors.Is(err, unix.ENXIO) && !errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("detach %s: %w", l.Path, err)
	}
	return nil
}

// GrowLoop makes the device see its backing file's new size.
func GrowLoop(l *Loop) error {
	dev, err := os.OpenFile(l.Path, os.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("grow %s: %w", l.Path, err)
	}
	defer func() { _ = dev.Close() }()
	if err := unix.IoctlSetInt(int(dev.Fd()), unix.LOOP_SET_CAPACITY, 0); err != nil {
		return fmt.Errorf("grow %s: %w", l.Path, err)
	}
	return nil
}
