// SPDX-License-Identifier: Apache-2.0

package enter

import (
	"bytes"
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// spec is the part of a container's config.json that its further processes depend on.
type spec struct {
	Process struct {
		User struct {
			Umask *uint32
		}
		OOMScoreAdj                   *int
		ApparmorProfile, SelinuxLabel string
	}
	Linux struct {
		Namespaces   []struct{ Type, Path string }
		UIDMappings  []mapping
		Seccomp      json.RawMessage
		Personality  json.RawMessage
		MemoryPolicy json.RawMessage
		IntelRdt     json.RawMessage
		TimeOffsets  map[string]json.RawMessage
	}
}

type mapping struct {
	ContainerID, HostID, Size uint32
}

// seccomp is the part of a profile that says how its filter is loaded.
type seccomp struct {
	DefaultAction    string
	Flags            []string
	ListenerPath     string
	ListenerMetadata string
	Syscalls         []struct{ Action string }
}

// Process is the whole of the OCI runtime specification's Process.
type Process struct {
	Terminal    bool
	ConsoleSize *struct{ Height, Width uint16 }
	User        struct {
		UID, GID       uint32
		Umask          *uint32
		AdditionalGids []uint32
		Username       string
	}
	Args         []string
	CommandLine  string
	Env          []string
	Cwd          string
	Capabilities *capabilities
	Rlimits      []struct {
		Type       string
		Hard, Soft uint64
	}
	NoNewPrivileges bool
	ApparmorProfile string
	OOMScoreAdj     *int
	Scheduler       json.RawMessage
	SelinuxLabel    string
	IOPriority      json.RawMessage
	ExecCPUAffinity json.RawMessage
}

type capabilities struct {
	Bounding, Effective, Inheritable, Permitted, Ambient []string
}

// unable is why the OCI runtime has to make the process. It is no failure.
func unable(format string, args ...any) error {
	return fmt.Errorf("%w: "+format, append([]any{ErrUnable}, args...)...)
}

// ReadProcess reads a process's specification. What it does not know, a later version's field, may matter for security: then it
// is the OCI runtime's work.
func ReadProcess(raw []byte) (*Process, error) {
	d := json.NewDecoder(bytes.NewReader(raw))
	d.DisallowUnknownFields()
	p := &Process{}
	if err := d.Decode(p); err != nil {
		return nil, unable("process: %w", err)
	}
	none := func(j json.RawMessage) bool { return len(j) == 0 || string(j) == "null" }
	switch {
	case len(p.Args) == 0 || p.Cwd == "" || p.Capabilities == nil:
		return nil, unable("process without arguments, directory or capabilities")
	case p.ApparmorProfile != "" || p.SelinuxLabel != "":
		return nil, unable("process with a label")
	case !none(p.Scheduler) || !none(p.IOPriority) || !none(p.ExecCPUAffinity):
		return nil, unable("process with a scheduler")
	case slices.ContainsFunc(append(slices.Clone(p.Args), p.Cwd), hasNUL), slices.ContainsFunc(p.Env, hasNUL):
		return nil, unable("NUL in a string")
	}
	return p, nil
}

func hasNUL(s string) bool { return strings.IndexByte(s, 0) >= 0 }

// clone is the flag of a namespace by its name in the specification; 0 for those that a process is not put into here.
func clone(name string) uint64 {
	switch name {
	case "mount":
		return unix.CLONE_NEWNS
	case "network":
		return unix.CLONE_NEWNET
	case "ipc":
		return unix.CLONE_NEWIPC
	case "uts":
		return unix.CLONE_NEWUTS
	case "pid":
		return unix.CLONE_NEWPID
	case "user":
		return unix.CLONE_NEWUSER
	case "cgroup":
		return unix.CLONE_NEWCGROUP
	}
	return 0
}

// rlimit is the number of a limit by its name.
func rlimit(name string) (uint64, bool) {
	i := slices.Index([]string{
		"RLIMIT_CPU", "RLIMIT_FSIZE", "RLIMIT_DATA", "RLIMIT_STACK", "RLIMIT_CORE", "RLIMIT_RSS", "RLIMIT_NPROC", "RLIMIT_NOFILE",
		"RLIMIT_MEMLOCK", "RLIMIT_AS", "RLIMIT_LOCKS", "RLIMIT_SIGPENDING", "RLIMIT_MSGQUEUE", "RLIMIT_NICE", "RLIMIT_RTPRIO", "RLIMIT_RTTIME",
	}, name)
	return uint64(max(i, 0)), i >= 0
}

// capNames are the capabilities in the order of their numbers.
const capNames = "CHOWN DAC_OVERRIDE DAC_READ_SEARCH FOWNER FSETID KILL SETGID SETUID SETPCAP LINUX_IMMUTABLE NET_BIND_SERVICE " +
	"NET_BROADCAST NET_ADMIN NET_RAW IPC_LOCK IPC_OWNER SYS_MODULE SYS_RAWIO SYS_CHROOT SYS_PTRACE SYS_PACCT SYS_ADMIN SYS_BOOT " +
	"SYS_NICE SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG MKNOD LEASE AUDIT_WRITE AUDIT_CONTROL SETFCAP MAC_OVERRIDE MAC_ADMIN SYSLOG " +
	"WAKE_ALARM BLOCK_SUSPEND AUDIT_READ PERFMON BPF CHECKPOINT_RESTORE"

// capSet is a set of capabilities as a mask. Like runc, it passes over those that the kernel (last is its highest) has not.
func capSet(names []string, last int) uint64 {
	known := strings.Fields(capNames)
	var set uint64
	for _, n := range names {
		if i := slices.Index(known, strings.TrimPrefix(n, "CAP_")); i >= 0 && i <= last && strings.HasPrefix(n, "CAP_") {
			set |= 1 << i
		}
	}
	return set
}
