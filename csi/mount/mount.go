// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// FS describes a file system to be mounted.
type FS struct {
	Type    string   // ext4, xfs, btrfs, tmpfs, erofs
	Source  string   // device or image; "" or any label for tmpfs
	Options []string // as in fstab; see ParseOptions
}

// Options are mount options taken apart: what belongs to the mount, what to the
// super block, what to the file system.
type Options struct {
	Attr     uint64 // MOUNT_ATTR_*
	ReadOnly bool   // super block read-only
	Params   []string
}

// refusedOptions change what a mount is, not how it behaves; they are ours to
// decide.
func refusedOptions() map[string]bool {
	return map[string]bool{
		"bind": true, "rbind": true, "remount": true, "move": true, "loop": true, "offset": true, "sizelimit": true,
		"shared": true, "rshared": true, "private": true, "rprivate": true, "slave": true, "rslave": true,
		"unbindable": true, "runbindable": true, "_netdev": true, "user": true, "users": true, "owner": true,
		"group": true, "auto": true, "noauto": true, "nofail": true, "source": true, "dax=always": false,
	}
}

func attrOptions() map[string]uint64 {
	return map[string]uint64{
		"nosuid": unix.MOUNT_ATTR_NOSUID, "nodev": unix.MOUNT_ATTR_NODEV, "noexec": unix.MOUNT_ATTR_NOEXEC,
		"noatime": unix.MOUNT_ATTR_NOATIME, "strictatime": unix.MOUNT_ATTR_STRICTATIME,
		"nodiratime": unix.MOUNT_ATTR_NODIRATIME, "nosymfollow": unix.MOUNT_ATTR_NOSYMFOLLOW,
		"relatime": 0, "suid": 0, "dev": 0, "exec": 0, "atime": 0, "diratime": 0, "defaults": 0, "rw": 0, "async": 0,
	}
}

// ParseOptions takes mount options apart and refuses those that are not a
// caller's to set. It does not know what the file system accepts: Mount tells.
func ParseOptions(opts []string) (Options, error) {
	var o Options
	attrs, refused := attrOptions(), refusedOptions()
	for _, group := range opts {
		for opt := range splitOptions(group) {
			key, _, _ := strings.Cut(opt, "=")
			bits, known := attrs[opt]
			switch {
			case refused[key] || strings.ContainsFunc(opt, func(r rune) bool { return r < ' ' || r == 0x7f }):
				return Options{}, fmt.Errorf("%w: %q", ErrOption, key)
			case known:
				o.Attr |= bits
			case opt == "ro":
				o.ReadOnly = true
			default:
				o.Params = append(o.Params, opt)
			}
		}
	}
	return o, nil
}

// splitOptions yields the comma-separated options; a comma inside double quotes
// (SELinux contexts) does not separate.
func splitOptions(s string) func(func(string) bool) {
	return func(yield func(string) bool) {
		quoted, from := false, 0
		for i := 0; i <= len(s); i++ {
			if i < len(s) && s[i] == '"' {
				quoted = !quoted
			}
			if i == len(s) || (s[i] == ',' && !quoted) {
				if i > from && !yield(strings.ReplaceAll(s[from:i], `"`, "")) {
					return
				}
				from = i + 1
			}
		}
	}
}

// Mount mounts fs on target, which must be a directory and no symbolic link.
// What the file system says of a refused option is in the error.
func Mount(fs FS, target string) error {
	o, err := ParseOptions(fs.Options)
	if err != nil {
		return err
	}
	to, err := openTarget(target)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(to) }()
	mnt, err := newMount(fs, o)
	if err != nil {
		return fmt.Errorf("mount %s (%s) on %s: %w", fs.Source, fs.Type, target, err)
	}
	defer func() { _ = unix.Close(mnt) }()
	if err := unix.MoveMount(mnt, "", to, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("mount %s on %s: %w", fs.Source, target, err)
	}
	return nil
}

func openTarget(target string) (int, error) {
	if !filepath.IsAbs(target) {
		return -1, fmt.Errorf("open mount point %s: path is not absolute: %w", target, unix.EINVAL)
	}
	fd, err := unix.Open(target, unix.O_PATH|unix.O_NOFOLLOW|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open mount point %s: %w", target, err)
	}
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("stat mount point %s: %w", target, err)
	}
	if st.Mode&unix.S_IFMT == unix.S_IFLNK {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("mount point %s is a symbolic link: %w", target, unix.ELOOP)
	}
	return fd, nil
}

func newMount(fs FS, o Options) (int, error) {
	fsfd, err := unix.Fsopen(fs.Type, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("file system %s: %w", fs.Type, err)
	}
	defer func() { _ = unix.Close(fsfd) }()
	if fs.Source != "" {
		if err := unix.FsconfigSetString(fsfd, "source", fs.Source); err != nil {
			return -1, fsError(fsfd, err)
		}
	}
	if o.ReadOnly {
		if err := unix.FsconfigSetFlag(fsfd, "ro"); err != nil {
			return -1, fsError(fsfd, err)
		}
	}
	for _, p := range o.Params {
		if key, val, ok := strings.Cut(p, "="); ok {
			err = unix.FsconfigSetString(fsfd, key, val)
		} else {
			err = unix.FsconfigSetFlag(fsfd, p)
		}
		if err != nil {
			key, _, _ := strings.Cut(p, "=") // the value may be a secret
			return -1, fmt.Errorf("%w %q: %w", ErrOption, key, fsError(fsfd, err))
		}
	}
	if err := unix.FsconfigCreate(fsfd); err != nil {
		return -1, fsError(fsfd, err)
	}
	mnt, err := unix.Fsmount(fsfd, unix.FSMOUNT_CLOEXEC, int(o.Attr))
	if err != nil {
		return -1, fsError(fsfd, err)
	}
	return mnt, nil
}

// fsError adds what the file system wrote to its context's log.
func fsError(fsfd int, err error) error {
	var msgs []string
	buf := make([]byte, 1024)
	for range 8 {
		n, rerr := unix.Read(fsfd, buf)
		if rerr != nil || n <= 0 {
			break
		}
		msgs = append(msgs, strings.TrimSpace(strings.TrimPrefix(string(buf[:n]), "e ")))
	}
	if len(msgs) == 0 {
		return err
	}
	return fmt.Errorf("%s: %w", strings.Join(msgs, "; "), err)
}

// BindOptions are what a bind mount may differ in from its source.
type BindOptions struct {
	ReadOnly bool
	Attr     uint64 // further MOUNT_ATTR_* to set
}

// Bind makes source (directory, file or device node) appear at target, which
// must exist with the same kind. A read-only bind is read-only from its first
// moment: the attributes are set before it is attached.
func Bind(source, target string, o BindOptions) error {
	to, err := openTarget(target)
	if err != nil {
		return err
	}
	defer func() { _ = unix.Close(to) }()
	tree, err := unix.OpenTree(unix.AT_FDCWD, source, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC|unix.AT_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("bind %s: %w", source, err)
	}
	defer func() { _ = unix.Close(tree) }()
	attr := unix.MountAttr{Attr_set: o.Attr}
	if o.ReadOnly {
		attr.Attr_set |= unix.MOUNT_ATTR_RDONLY
	}
	if attr.Attr_set&(unix.MOUNT_ATTR_NOATIME|unix.MOUNT_ATTR_STRICTATIME) != 0 {
		attr.Attr_clr |= unix.MOUNT_ATTR__ATIME
	}
	if attr.Attr_set != 0 {
		if err := unix.MountSetattr(tree, "", unix.AT_EMPTY_PATH, &attr); err != nil {
			return fmt.Errorf("bind %s: set attributes: %w", source, err)
		}
	}
	if err := unix.MoveMount(tree, "", to, "", unix.MOVE_MOUNT_F_EMPTY_PATH|unix.MOVE_MOUNT_T_EMPTY_PATH); err != nil {
		return fmt.Errorf("bind %s on %s: %w", source, target, err)
	}
	return nil
}

// Point is what stands at a path.
type Point struct {
	Exists   bool
	Mounted  bool // the path is the root of a mount
	Dir      bool
	Device   bool   // block device node
	Link     bool   // symbolic link
	ReadOnly bool   // the mount (or super block) is read-only
	Dev      uint64 // file system's device number
	Rdev     uint64 // device number of the node itself, when Device
	Corrupt  bool   // the mount answers with EIO, ESTALE and the like
}

// At describes path without following a link in its last component. It costs
// three system calls, however many mounts the machine has.
func At(path string) (Point, error) {
	var sx unix.Statx_t
	err := unix.Statx(unix.AT_FDCWD, path, unix.AT_SYMLINK_NOFOLLOW|unix.AT_STATX_DONT_SYNC, unix.STATX_TYPE|unix.STATX_MODE, &sx)
	switch {
	case errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
		return Point{}, nil
	case corrupted(err):
		return Point{Exists: true, Mounted: true, Corrupt: true, Dir: true}, nil
	case err != nil:
		return Point{}, fmt.Errorf("look at %s: %w", path, err)
	}
	p := Point{
		Exists:  true,
		Mounted: sx.Attributes&unix.STATX_ATTR_MOUNT_ROOT != 0,
		Dir:     sx.Mode&unix.S_IFMT == unix.S_IFDIR,
		Device:  sx.Mode&unix.S_IFMT == unix.S_IFBLK,
		Link:    sx.Mode&unix.S_IFMT == unix.S_IFLNK,
		Dev:     unix.Mkdev(sx.Dev_major, sx.Dev_minor),
	}
	if p.Device {
		p.Rdev = unix.Mkdev(sx.Rdev_major, sx.Rdev_minor)
	}
	if p.Mounted {
		var st unix.Statfs_t
		if err := unix.Statfs(path, &st); err != nil {
			p.Corrupt = corrupted(err)
			return p, nil
		}
		p.ReadOnly = st.Flags&unix.ST_RDONLY != 0
	}
	return p, nil
}

func corrupted(err error) bool {
	return errors.Is(err, unix.EIO) || errors.Is(err, unix.ESTALE) || errors.Is(err, unix.ENOTCONN) ||
		errors.Is(err, unix.EUCLEAN) || errors.Is(err, unix.ESHUTDOWN)
}

// stackLimit bounds how many mounts on top of each other Unmount peels off.
const stackLimit = 64

// busyTries bounds, with growing pauses up to as many milliseconds, how long Unmount
// waits for what is in use only in passing: a program that is being started has copies
// of our open files until it runs, one of them perhaps in this mount.
const busyTries = 20

// Unmount takes every mount off target; a path that is not mounted is success.
// It never detaches lazily: what is in use is ErrBusy, and stays.
func Unmount(target string) error {
	busy := 0
	for range stackLimit {
		err := unix.Unmount(target, unix.UMOUNT_NOFOLLOW)
		for ; errors.Is(err, unix.EBUSY) && busy < busyTries; err = unix.Unmount(target, unix.UMOUNT_NOFOLLOW) {
			busy++
			<-time.After(time.Duration(busy) * time.Millisecond)
		}
		switch {
		case err == nil:
			continue
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			return nil
		case errors.Is(err, unix.EBUSY):
			return fmt.Errorf("unmount %s: %w", target, ErrBusy)
		default:
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
	return fmt.Errorf("unmount %s: more than %d mounts on top of each other: %w", target, stackLimit, ErrBusy)
}

// Clear unmounts target and removes the empty directory or file that carried
// the mount. It never removes anything that has content.
func Clear(target string) error {
	if err := Unmount(target); err != nil {
		return err
	}
	p, err := At(target)
	if err != nil || !p.Exists {
		return err
	}
	if p.Mounted {
		return fmt.Errorf("clear %s: %w", target, ErrBusy)
	}
	if !p.Dir {
		if st, err := os.Lstat(target); err == nil && st.Mode().IsRegular() && st.Size() > 0 {
			return fmt.Errorf("remove mount point %s: file has content", target)
		}
	}
	if err := os.Remove(target); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove mount point: %w", err)
	}
	return nil
}

// Entry is one line of the mount table.
type Entry struct {
	Point, Type, Source, Root string
	Dev                       uint64
}

// Table reads the mount table, optionally only what is at or below prefix.
func Table(prefix string) ([]Entry, error) {
	infos, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return prefix != "" && i.Mountpoint != prefix && !strings.HasPrefix(i.Mountpoint, prefix+"/"), false
	})
	if err != nil {
		return nil, fmt.Errorf("read mount table: %w", err)
	}
	out := make([]Entry, 0, len(infos))
	for _, i := range infos {
		out = append(out, Entry{
			Point: i.Mountpoint, Type: i.FSType, Source: i.Source, Root: i.Root,
			Dev: unix.Mkdev(uint32(i.Major), uint32(i.Minor)),
		})
	}
	return out, nil
}

// MountsOf lists the mounts, in this namespace, of the file system on device dev.
func MountsOf(dev uint64) ([]Entry, error) {
	all, err := Table("")
	if err != nil {
		return nil, err
	}
	var out []Entry
	for _, e := range all {
		if e.Dev == dev {
			out = append(out, e)
		}
	}
	return out, nil
}

// StatTimeout is StatSpace that gives up: statfs on a dead backing store hangs
// for as long as the store is dead. The stuck call is left behind in its thread.
func StatTimeout(path string, limit time.Duration) (Space, error) {
	type answer struct {
		s   Space
		err error
	}
	ch := make(chan answer, 1)
	go func() {
		s, err := StatSpace(path)
		ch <- answer{s, err}
	}()
	t := time.NewTimer(limit)
	defer t.Stop()
	select {
	case a := <-ch:
		return a.s, a.err
	case <-t.C:
		return Space{}, fmt.Errorf("statfs %s: no answer within %s: %w", path, limit, os.ErrDeadlineExceeded)
	}
}

// ProbeFS says whether this kernel has a file-system type and knows the options;
// nothing is mounted.
func ProbeFS(fsType string, options ...string) error {
	fsfd, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return fmt.Errorf("file system %s: %w", fsType, err)
	}
	defer func() { _ = unix.Close(fsfd) }()
	for _, o := range options {
		if key, val, ok := strings.Cut(o, "="); ok {
			err = unix.FsconfigSetString(fsfd, key, val)
		} else {
			err = unix.FsconfigSetFlag(fsfd, o)
		}
		if err != nil {
			return fmt.Errorf("%w %q: %w", ErrOption, o, fsError(fsfd, err))
		}
	}
	return nil
}

// MountsFiles says whether the kernel mounts this type from a regular file, without a
// device; file is one that carries no such file system.
func MountsFiles(fsType, file string) (bool, error) {
	fsfd, err := unix.Fsopen(fsType, unix.FSOPEN_CLOEXEC)
	if err != nil {
		return false, fmt.Errorf("file system %s: %w", fsType, err)
	}
	defer func() { _ = unix.Close(fsfd) }()
	if err := unix.FsconfigSetString(fsfd, "source", file); err != nil {
		return false, fmt.Errorf("source %s for %s: %w", file, fsType, err)
	}
	if err := unix.FsconfigSetFlag(fsfd, "ro"); err != nil {
		return false, fmt.Errorf("%s read-only: %w", fsType, err)
	}
	// A kernel that wants a device says so before it looks for a superblock.
	return !errors.Is(unix.FsconfigCreate(fsfd), unix.ENOTBLK), nil
}

// Reconfigure changes one option of the file system mounted at path.
func Reconfigure(path, key, val string) error {
	fsfd, err := unix.Fspick(unix.AT_FDCWD, path, unix.FSPICK_CLOEXEC|unix.FSPICK_SYMLINK_NOFOLLOW)
	if err != nil {
		return fmt.Errorf("reconfigure %s: %w", path, err)
	}
	defer func() { _ = unix.Close(fsfd) }()
	if err := unix.FsconfigSetString(fsfd, key, val); err != nil {
		return fmt.Errorf("reconfigure %s: %w", path, fsError(fsfd, err))
	}
	if err := unix.FsconfigReconfigure(fsfd); err != nil {
		return fmt.Errorf("reconfigure %s: %w", path, fsError(fsfd, err))
	}
	return nil
}
