// SPDX-License-Identifier: Apache-2.0

package enter

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/reap"
)

// Place is where a process is to be made.
type Place struct {
	Reaper *reap.Reaper
	// Init is the container's first process, a child of this one.
	Init int
	// State is the OCI runtime's directory of the container.
	State string
}

// hold opens the container's first process and its root directory. It cannot be another process: it is not collected meanwhile.
func (at Place) hold() (pidfd, root *os.File, err error) {
	alive, err := at.Reaper.Holding(at.Init, func() error {
		fd, err := unix.PidfdOpen(at.Init, 0)
		if err != nil {
			return err
		}
		pidfd = os.NewFile(uintptr(fd), "pidfd")
		root, err = os.OpenFile(fmt.Sprintf("/proc/%d/root", at.Init), unix.O_PATH|unix.O_DIRECTORY, 0)
		return err
	})
	if err == nil && alive {
		return pidfd, root, nil
	}
	if err == nil {
		err = unix.ESRCH
	}
	if pidfd != nil {
		_ = pidfd.Close()
	}
	return nil, nil, unable("the container's first process has gone: %w", err)
}

// Run makes a process in a container, a child of this one, and returns it when its program runs. Call it between Starting and
// its end. A stream that is nil is /dev/null; with a terminal all three are its other end.
func (c *Container) Run(ctx context.Context, p *Process, at Place, stdio [3]*os.File) (pid int, ended <-chan reap.Exit, err error) {
	pidfd, root, err := at.hold()
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = pidfd.Close(); _ = root.Close() }()
	null, err := os.OpenFile(os.DevNull, os.O_RDWR, 0)
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = null.Close() }()
	for i, f := range stdio {
		if f == nil {
			stdio[i] = null
		}
	}
	groups, err := c.openCgroups(at.State)
	defer groups.close()
	if err != nil {
		return 0, nil, err
	}
	d, err := c.prepare(p, at, root, stdio, len(groups.procs))
	if err != nil {
		return 0, nil, err
	}
	image, err := seal("nodeagent-list", d.image(), 0)
	if err != nil {
		return 0, nil, unable("%w", err)
	}
	defer func() { _ = image.Close() }()
	r, w, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer func() { _ = r.Close() }()
	files := append([]*os.File{stdio[0], stdio[1], stdio[2], image, w, pidfd}, groups.procs...)
	helper, err := c.spawn(files, groups.unified)
	_ = w.Close()
	if err != nil {
		return 0, nil, err
	}
	return d.follow(ctx, at.Reaper, helper, r)
}

// prepare makes the list of calls.
func (c *Container) prepare(p *Process, at Place, root *os.File, stdio [3]*os.File, cgroups int) (*dress, error) {
	d := &dress{c: c, p: p, cgroups: cgroups}
	env, err := environment(p.Env, func() string { return homeOf(root, p.User.UID) })
	if err != nil {
		return nil, err
	}
	for _, l := range p.Rlimits {
		if _, ok := rlimit(l.Type); !ok {
			return nil, unable("limit %s", l.Type)
		}
	}
	if d.denied, err = groupsDenied(at.Init); err != nil {
		return nil, err
	}
	if d.last, err = lastCapability(); err != nil {
		return nil, err
	}
	if c.seccomp != nil {
		if d.filter, d.flags, err = c.seccomp.load(); err != nil {
			return nil, err
		}
	}
	if !p.Terminal { // a terminal has its owner from Terminal
		d.stdio = strange(stdio, p.User.UID, len(c.uids) > 0)
	}
	d.all()
	d.lookup(env)
	return d, nil
}

// strange are the streams that do not belong to a user.
func strange(stdio [3]*os.File, uid uint32, mapped bool) []int {
	var out []int
	null := unix.Mkdev(1, 3)
	for i, f := range stdio {
		var st unix.Stat_t
		if err := unix.Fstat(int(f.Fd()), &st); err != nil {
			continue
		}
		if device := st.Mode&unix.S_IFMT == unix.S_IFCHR && uint64(st.Rdev) == null; !device && (mapped || st.Uid != uid) { //nolint:unconvert // 32 bits on some architectures
			out = append(out, i)
		}
	}
	return out
}

func lastCapability() (int, error) {
	raw, err := os.ReadFile("/proc/sys/kernel/cap_last_cap")
	if err != nil {
		return 0, unable("%w", err)
	}
	last, err := strconv.Atoi(strings.TrimSpace(string(raw)))
	if err != nil || last > 63 {
		return 0, unable("highest capability %q", raw)
	}
	return last, nil
}

// groups are a container's cgroups, open.
type groups struct {
	// procs are the files into which a process of cgroup v1 writes itself; unified is a directory of cgroup v2, or nil.
	procs   []*os.File
	unified *os.File
}

func (g *groups) close() {
	for _, f := range append(g.procs, g.unified) {
		if f != nil {
			_ = f.Close()
		}
	}
}

func (c *Container) openCgroups(state string) (*groups, error) {
	g := &groups{}
	paths, err := c.paths(state)
	if err != nil {
		return g, err
	}
	seen := map[uint64]bool{}
	for _, p := range paths {
		var fs unix.Statfs_t
		var st unix.Stat_t
		if err := errors.Join(unix.Statfs(p, &fs), unix.Stat(p, &st)); err != nil {
			return g, unable("cgroup %s: %w", p, err)
		}
		key := st.Dev<<32 ^ st.Ino
		switch {
		case seen[key]: // cpu and cpuacct are one
			continue
		case fs.Type == unix.CGROUP2_SUPER_MAGIC:
			g.unified, err = os.OpenFile(p, unix.O_PATH|unix.O_DIRECTORY, 0)
		case fs.Type == unix.CGROUP_SUPER_MAGIC:
			var f *os.File
			if f, err = os.OpenFile(filepath.Join(p, "cgroup.procs"), os.O_WRONLY, 0); err == nil {
				g.procs = append(g.procs, f)
			}
		default:
			err = unix.EINVAL
		}
		if err != nil {
			return g, unable("cgroup %s: %w", p, err)
		}
		seen[key] = true
	}
	return g, nil
}

// spawn starts the helper, in the cgroup of the second version if there is one.
func (c *Container) spawn(files []*os.File, unified *os.File) (int, error) {
	path, err := c.program.path()
	if err != nil {
		return 0, unable("%w", err)
	}
	attr := &syscall.ProcAttr{Dir: "/", Env: []string{}, Sys: &syscall.SysProcAttr{}}
	for _, f := range files {
		attr.Files = append(attr.Files, f.Fd())
	}
	if unified != nil {
		attr.Sys.UseCgroupFD, attr.Sys.CgroupFD = true, int(unified.Fd())
	}
	pid, err := syscall.ForkExec(path, []string{"nodeagent-exec"}, attr)
	if err != nil {
		return 0, unable("%w", err)
	}
	return pid, nil
}

// follow reads what the helper reports until the program runs or is known not to.
func (d *dress) follow(ctx context.Context, reaper *reap.Reaper, helper int, r *os.File) (pid int, ended <-chan reap.Exit, err error) {
	gone := reaper.Wait(helper)
	stop := context.AfterFunc(ctx, func() { _ = r.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	var failure error
	for {
		var record [8]byte
		if _, err := io.ReadFull(r, record[:]); err == io.EOF {
			break
		} else if err != nil {
			failure = errors.Join(fmt.Errorf("make process: %w", err), ctx.Err())
			break
		}
		what, value := binary.NativeEndian.Uint32(record[:]), binary.NativeEndian.Uint32(record[4:])
		switch what {
		case 0:
			pid = int(value)
			ended = reaper.Wait(pid)
		case math.MaxUint32:
			failure = unable("the list could not be mapped")
		default:
			stage, errno := d.names[what-1], unix.Errno(value)
			if failure = d.p.fault(stage, errno); failure == nil {
				failure = unable("%s: %w", stage, errno)
			}
		}
	}
	if pid == 0 && failure == nil {
		failure = unable("the helper ended")
	}
	if failure == nil {
		<-gone
		return pid, ended, nil
	}
	_, _ = reaper.Signal(helper, unix.SIGKILL) // gone is as good
	<-gone
	if pid != 0 {
		_, _ = reaper.Signal(pid, unix.SIGKILL)
		<-ended
	}
	return 0, nil, failure
}
