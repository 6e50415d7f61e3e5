// SPDX-License-Identifier: Apache-2.0

package enter

import (
	"fmt"
	"math"
	"unsafe"

	"golang.org/x/sys/unix"
)

// dress is what turns a child of the shim into a process of the container, in the order of runc's own (setns_init_linux.go,
// init_linux.go and nsexec.c of 1.5): outside what only the host's root may do, then the namespaces, then a child that is inside,
// and there the user, the capabilities and the filter, from the most to the least able.
type dress struct {
	list
	c *Container
	p *Process
	// cgroups is how many descriptors of cgroup.procs there are.
	cgroups int
	// denied says that the user namespace does not let groups be set.
	denied bool
	// last is the kernel's highest capability.
	last int
	// stdio are the descriptors that are to belong to the process's user.
	stdio  []int
	filter []byte
	// flags of the filter's loading; fprog is where it is, once it is in the list.
	flags, fprog uint64
}

// all is the whole list but the program's own start.
func (d *dress) all() {
	d.outside()
	d.inside()
	if len(d.filter) > 0 && !d.p.NoNewPrivileges {
		d.confine() // it takes a privilege that is about to go
	}
	d.user()
}

// outside runs as the host's root in the container's cgroups and limits.
func (d *dress) outside() {
	// Nobody reads or traces what has not yet become a process of the container, not even its root.
	d.call("hide", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0)
	d.call("report", unix.SYS_FCNTL, reportFD, unix.F_SETFD, unix.FD_CLOEXEC)
	if d.c.oom != nil {
		d.writeOOM(*d.c.oom)
	}
	for i := range d.cgroups {
		// 0 is the writer.
		d.call("join cgroup", unix.SYS_WRITE, uint64(cgroupFD+i), d.text("0"), 1) //nolint:gosec // small
	}
	// The CPUs of the cgroup and not those of the shim; as with runc, no failure.
	mask := make([]byte, 128)
	for i := range mask {
		mask[i] = 0xff
	}
	d.call("affinity", unix.SYS_SCHED_SETAFFINITY, 0, uint64(len(mask)), d.put(mask)).flags = flagAny
	for _, r := range d.p.Rlimits {
		n, _ := rlimit(r.Type)
		d.call("set "+r.Type, unix.SYS_PRLIMIT64, 0, n, d.words(r.Soft, r.Hard), 0)
	}
	d.call("enter namespaces", unix.SYS_SETNS, pidFD, d.c.clone)
	// The child is in the PID namespace and, by CLONE_PARENT, a child of the shim.
	d.call("make process", unix.SYS_CLONE, unix.CLONE_PARENT|uint64(unix.SIGCHLD)).flags = flagClone
}

func (d *dress) writeOOM(score int) {
	fd := d.words(0)
	text := fmt.Sprint(score)
	d.call("open OOM score", unix.SYS_OPENAT, atCWD, d.text("/proc/self/oom_score_adj"), unix.O_WRONLY|unix.O_CLOEXEC).out = fd
	// The lowest free descriptor, which the list cannot read back: it is checked.
	next := uint64(cgroupFD + d.cgroups) //nolint:gosec // small
	d.check("descriptor of OOM score", fd, math.MaxUint32, next, uintptr(unix.EBADF))
	d.call("set OOM score", unix.SYS_WRITE, next, d.text(text), uint64(len(text)))
	d.call("close OOM score", unix.SYS_CLOSE, next)
}

// inside is the root of the container.
func (d *dress) inside() {
	// Before any path is used: nothing that leads back to the host may be open (CVE-2024-21626).
	d.call("close", unix.SYS_CLOSE, listFD)
	d.call("close", unix.SYS_CLOSE_RANGE, pidFD, math.MaxUint32, 0)
	d.call("session", unix.SYS_SETSID)
	d.call("become root", unix.SYS_SETUID, 0)
	d.call("become root", unix.SYS_SETGID, 0)
	d.hide()
	if d.c.keyring {
		d.call("keyring", unix.SYS_KEYCTL, unix.KEYCTL_JOIN_SESSION_KEYRING, d.text("_ses."+d.c.id)).allow[0] = uint16(unix.ENOSYS)
	}
	if d.p.Terminal {
		d.call("terminal", unix.SYS_IOCTL, 0, unix.TIOCSCTTY, 0)
	}
	if d.p.NoNewPrivileges {
		d.call("no new privileges", unix.SYS_PRCTL, unix.PR_SET_NO_NEW_PRIVS, 1)
	}
	if d.c.umask != nil {
		d.call("umask", unix.SYS_UMASK, uint64(*d.c.umask))
	}
}

// hide repeats what a change of user undoes when fs.suid_dumpable says so.
func (d *dress) hide() { d.call("hide", unix.SYS_PRCTL, unix.PR_SET_DUMPABLE, 0) }

// confine loads the seccomp filter.
func (d *dress) confine() {
	const instruction = 8 // bytes
	if d.fprog == 0 {
		d.fprog = d.words(uint64(len(d.filter)/instruction), d.put(d.filter))
	}
	if d.flags == 0 {
		d.call("seccomp", unix.SYS_PRCTL, unix.PR_SET_SECCOMP, unix.SECCOMP_MODE_FILTER, d.fprog)
		return
	}
	d.call("seccomp", unix.SYS_SECCOMP, unix.SECCOMP_SET_MODE_FILTER, d.flags, d.fprog)
}

// atCWD is AT_FDCWD as a register holds it.
const atCWD = uint64(math.MaxUint64 - 99)

// user becomes the process's user with its capabilities, in its directory.
func (d *dress) user() {
	cwd, first := d.text(d.p.Cwd), d.words(0)
	o := d.call("change directory", unix.SYS_CHDIR, cwd)
	o.out, o.allow = first, [2]uint16{uint16(unix.EACCES), uint16(unix.EPERM)}
	caps := d.p.Capabilities
	bounding := capSet(caps.Bounding, d.last)
	for i := range d.last + 1 {
		if bounding&(1<<i) == 0 {
			d.call("bounding set", unix.SYS_PRCTL, unix.PR_CAPBSET_DROP, uint64(i)) //nolint:gosec // small
		}
	}
	d.call("keep capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 1)
	for _, fd := range d.stdio {
		// The owner of a stream may be unknown in the user namespace, and that is no failure.
		d.call("own stream", unix.SYS_FCHOWN, uint64(fd), uint64(d.p.User.UID), math.MaxUint32).allow = //nolint:gosec // 0 to 2
			[2]uint16{uint16(unix.EPERM), uint16(unix.EROFS)}
	}
	if !d.denied {
		groups := make([]byte, 0, 4*len(d.p.User.AdditionalGids))
		for _, g := range d.p.User.AdditionalGids {
			groups = append(groups, (*[4]byte)(unsafe.Pointer(&g))[:]...)
		}
		d.call("groups", unix.SYS_SETGROUPS, uint64(len(d.p.User.AdditionalGids)), d.put(groups))
	}
	d.call("group", unix.SYS_SETGID, uint64(d.p.User.GID))
	d.call("user", unix.SYS_SETUID, uint64(d.p.User.UID))
	d.hide()
	// A directory that only the user may enter, a volume of its own, is entered now.
	d.check("directory again", first, math.MaxUint32, 0, uintptr(unix.EACCES)).flags = flagNot
	d.ops[len(d.ops)-1].skip = 1
	d.call("change directory", unix.SYS_CHDIR, cwd)
	// The kernel gives a directory outside of the root another beginning than "/" (CVE-2024-21626).
	at := d.put(make([]byte, unix.PathMax))
	d.call("directory", unix.SYS_GETCWD, at, unix.PathMax)
	d.check("directory is outside of the container", at, 0xff, '/', uintptr(unix.EXDEV))
	d.call("keep capabilities", unix.SYS_PRCTL, unix.PR_SET_KEEPCAPS, 0)
	d.capabilities(caps)
}

func (d *dress) capabilities(caps *capabilities) {
	effective, permitted, inheritable := capSet(caps.Effective, d.last), capSet(caps.Permitted, d.last), capSet(caps.Inheritable, d.last)
	halves := func(a, b, c uint64) []uint64 { // two 32-bit words in each
		low, high := uint64(math.MaxUint32), 32
		return []uint64{a&low | b<<high, c&low | a>>high<<high, b>>high | c>>high<<high}
	}
	header := d.words(unix.LINUX_CAPABILITY_VERSION_3)
	d.call("capabilities", unix.SYS_CAPSET, header, d.words(halves(effective, permitted, inheritable)...))
	d.call("ambient capabilities", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_CLEAR_ALL).allow[0] = uint16(unix.EINVAL)
	for i, ambient := 0, capSet(caps.Ambient, d.last); i <= d.last; i++ {
		if ambient&(1<<i) != 0 {
			// Like runc: one that cannot be raised is left out.
			d.call("ambient capability", unix.SYS_PRCTL, unix.PR_CAP_AMBIENT, unix.PR_CAP_AMBIENT_RAISE, uint64(i)).flags = flagAny //nolint:gosec // small
		}
	}
}
