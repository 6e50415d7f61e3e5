// SPDX-License-Identifier: Apache-2.0

package enter

import (
	"fmt"
	"path"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lookup adds the start of the program: the first of the candidates that is a file one may run is run. What fails here is the
// request's fault and the answer that runc would give.
func (d *dress) lookup(env []string) {
	argv, envp := d.strings(d.p.Args), d.strings(env)
	name := d.p.Args[0]
	candidates, direct := []string{name}, strings.Contains(name, "/")
	if !direct {
		candidates = inPath(name, env)
	}
	var st unix.Stat_t
	at := d.put(make([]byte, unsafe.Sizeof(st)))
	mode := at + uint64(unsafe.Offsetof(st.Mode))
	for _, c := range candidates {
		file := d.text(c)
		begin := len(d.ops)
		d.call(stageStat, sysFstatat, atCWD, file, at, 0)
		d.check(stageDirectory, mode, unix.S_IFMT, unix.S_IFDIR, uintptr(unix.EISDIR)).flags = flagNot
		// A filter may forbid the question; then the start itself gives the answer.
		d.call(stageAccess, unix.SYS_FACCESSAT2, atCWD, file, unix.X_OK, unix.AT_EACCESS).allow = [2]uint16{uint16(unix.ENOSYS), uint16(unix.EPERM)}
		if !direct && !path.IsAbs(c) {
			d.fail(stageRelative, unix.EINVAL) // what is found in a relative directory is not run
		} else {
			if len(d.filter) > 0 && d.p.NoNewPrivileges {
				d.confine() // as late as can be: fewer calls have to be allowed
			}
			d.call(stageExec+c, unix.SYS_EXECVE, file, argv, envp)
		}
		if !direct {
			for i := begin; i < begin+3; i++ {
				d.ops[i].skip = uint32(len(d.ops) - i - 1) //nolint:gosec // small
			}
		}
	}
	if !direct {
		d.fail(stageMissing, unix.ENOENT)
	}
}

// fail adds a comparison that cannot hold.
func (d *dress) fail(name string, errno unix.Errno) {
	d.check(name, d.words(0), 1, 1, uintptr(errno))
}

// The names of the calls whose failures are the request's fault.
const (
	stageStat      = "stat program"
	stageDirectory = "program is a directory"
	stageAccess    = "access program"
	stageRelative  = "program in a relative directory"
	stageMissing   = "program is missing"
	stageExec      = "exec "
)

// fault is the failure of a call in runc's words; nil when it is none of the request's.
func (p *Process) fault(stage string, errno unix.Errno) error {
	name := p.Args[0]
	var text string
	switch stage {
	case stageStat:
		text = fmt.Sprintf("exec: %q: stat %s: %s", name, name, errno)
	case stageDirectory, stageAccess:
		text = fmt.Sprintf("exec: %q: %s", name, errno)
	case stageRelative:
		text = fmt.Sprintf("exec: %q: cannot run executable found relative to current directory", name)
	case stageMissing:
		text = fmt.Sprintf("exec: %q: executable file not found in $PATH", name)
	default:
		file, ok := strings.CutPrefix(stage, stageExec)
		if !ok {
			return nil
		}
		text = fmt.Sprintf("exec %s: %s", file, errno)
	}
	return fmt.Errorf("OCI runtime exec failed: exec failed: unable to start container process: %s", text) //nolint:err113 // the words of runc
}

// inPath are the files that a name may mean.
func inPath(name string, env []string) []string {
	var out []string
	for _, e := range env {
		list, ok := strings.CutPrefix(e, "PATH=")
		if !ok || list == "" {
			continue
		}
		for dir := range strings.SplitSeq(list, ":") {
			if dir == "" {
				dir = "."
			}
			out = append(out, path.Join(dir, name))
		}
	}
	return out
}
