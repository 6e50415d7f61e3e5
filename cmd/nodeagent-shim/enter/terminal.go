// SPDX-License-Identifier: Apache-2.0

package enter

import (
	"fmt"
	"os"

	"golang.org/x/sys/unix"
)

// Terminal makes a terminal of the container for a process: our end, and the process's. It is one of the container's own, so
// that what runs there finds it in its /dev/pts; but it is opened from here, by a path that is looked at before it is opened and
// by a /proc that is the host's.
func (c *Container) Terminal(p *Process, at Place) (ours, theirs *os.File, err error) {
	pidfd, root, err := at.hold()
	if err != nil {
		return nil, nil, err
	}
	defer func() { _ = pidfd.Close(); _ = root.Close() }()
	master, err := openPTMX(root)
	if err != nil {
		return nil, nil, unable("%w", err)
	}
	if theirs, err = c.peer(p, master); err != nil {
		_ = unix.Close(master)
		return nil, nil, unable("%w", err)
	}
	return os.NewFile(uintptr(master), "terminal"), theirs, nil
}

// openPTMX opens the container's /dev/pts/ptmx when it is a real one.
func openPTMX(root *os.File) (int, error) {
	fd, err := unix.Openat2(int(root.Fd()), "dev/pts/ptmx", &unix.OpenHow{
		Flags: unix.O_PATH | unix.O_CLOEXEC | unix.O_NOFOLLOW, Resolve: unix.RESOLVE_IN_ROOT | unix.RESOLVE_NO_SYMLINKS,
	})
	if err != nil {
		return -1, fmt.Errorf("open ptmx: %w", err)
	}
	defer func() { _ = unix.Close(fd) }()
	var st unix.Stat_t
	var fs unix.Statfs_t
	if err := unix.Fstat(fd, &st); err != nil {
		return -1, fmt.Errorf("look at ptmx: %w", err)
	}
	if err := unix.Fstatfs(fd, &fs); err != nil {
		return -1, fmt.Errorf("look at ptmx: %w", err)
	}
	const number = 2                                                                                                                          // of the inode, always
	if fs.Type != unix.DEVPTS_SUPER_MAGIC || st.Ino != number || st.Mode&unix.S_IFMT != unix.S_IFCHR || uint64(st.Rdev) != unix.Mkdev(5, 2) { //nolint:unconvert // 32 bits on some architectures
		return -1, fmt.Errorf("ptmx is not a terminal's: %w", unix.ENOTTY)
	}
	master, err := unix.Open(fmt.Sprintf("/proc/self/fd/%d", fd), unix.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open ptmx: %w", err)
	}
	return master, nil
}

// peer opens the process's end and gives it to the process's user.
func (c *Container) peer(p *Process, master int) (*os.File, error) {
	if err := unix.IoctlSetPointerInt(master, unix.TIOCSPTLCK, 0); err != nil {
		return nil, fmt.Errorf("unlock terminal: %w", err)
	}
	fd, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(master), unix.TIOCGPTPEER, unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC)
	if errno != 0 {
		return nil, fmt.Errorf("open the terminal's other end: %w", errno)
	}
	f := os.NewFile(fd, "terminal")
	uid, ok := c.hostUID(p.User.UID)
	if !ok {
		_ = f.Close()
		return nil, fmt.Errorf("user %d is not in the container's user namespace: %w", p.User.UID, unix.EINVAL)
	}
	if err := f.Chown(int(uid), -1); err != nil {
		_ = f.Close()
		return nil, fmt.Errorf("give terminal to its user: %w", err)
	}
	if s := p.ConsoleSize; s != nil && s.Height != 0 && s.Width != 0 {
		if err := unix.IoctlSetWinsize(master, unix.TIOCSWINSZ, &unix.Winsize{Row: s.Height, Col: s.Width}); err != nil {
			_ = f.Close()
			return nil, fmt.Errorf("size terminal: %w", err)
		}
	}
	return f, nil
}
