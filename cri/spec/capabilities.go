// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
)

func defaultCapabilities() []string {
	return []string{
		"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_MKNOD",
		"CAP_NET_BIND_SERVICE", "CAP_NET_RAW", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT",
	}
}

// knownCapabilities are those of Linux 6.x in the order of their numbers (capability.h).
func knownCapabilities() []string {
	return []string{
		"CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_DAC_READ_SEARCH", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL", "CAP_SETGID", "CAP_SETUID",
		"CAP_SETPCAP", "CAP_LINUX_IMMUTABLE", "CAP_NET_BIND_SERVICE", "CAP_NET_BROADCAST", "CAP_NET_ADMIN", "CAP_NET_RAW",
		"CAP_IPC_LOCK", "CAP_IPC_OWNER", "CAP_SYS_MODULE", "CAP_SYS_RAWIO", "CAP_SYS_CHROOT", "CAP_SYS_PTRACE", "CAP_SYS_PACCT",
		"CAP_SYS_ADMIN", "CAP_SYS_BOOT", "CAP_SYS_NICE", "CAP_SYS_RESOURCE", "CAP_SYS_TIME", "CAP_SYS_TTY_CONFIG", "CAP_MKNOD",
		"CAP_LEASE", "CAP_AUDIT_WRITE", "CAP_AUDIT_CONTROL", "CAP_SETFCAP", "CAP_MAC_OVERRIDE", "CAP_MAC_ADMIN", "CAP_SYSLOG",
		"CAP_WAKE_ALARM", "CAP_BLOCK_SUSPEND", "CAP_AUDIT_READ", "CAP_PERFMON", "CAP_BPF", "CAP_CHECKPOINT_RESTORE",
	}
}

// capabilities computes the sets: the base, then ALL of add, then ALL of drop, then the single additions, then the single
// drops; ambient capabilities come last and in all sets (KEP-2763). Only those become ambient or inheritable.
func (b *builder) capabilities() {
	want := b.security().GetCapabilities()
	add := b.capabilityNames("add_capabilities", want.GetAddCapabilities())
	drop := b.capabilityNames("drop_capabilities", want.GetDropCapabilities())
	ambient := b.capabilityNames("add_ambient_capabilities", want.GetAddAmbientCapabilities())

	set := b.spec.Process.Capabilities.Bounding
	if b.security().GetPrivileged() {
		set = b.in.Host.Capabilities
	} else {
		if slices.Contains(add, "ALL") {
			set = b.in.Host.Capabilities
		}
		if slices.Contains(drop, "ALL") {
			set = nil
		}
		set = union(set, add)
		set = slices.DeleteFunc(set, func(c string) bool { return slices.Contains(drop, c) })
	}
	if slices.Contains(ambient, "ALL") {
		ambient = slices.Clone(b.in.Host.Capabilities)
	}
	ambient = union(nil, ambient)
	sets := capabilitySets(union(set, ambient))
	if len(ambient) > 0 {
		sets.Ambient, sets.Inheritable = ambient, slices.Clone(ambient)
	}
	b.spec.Process.Capabilities = sets
}

// capabilityNames normalises a list of the CRI, which writes names without CAP_ (with it is understood too).
func (b *builder) capabilityNames(field string, names []string) []string {
	known := knownCapabilities()
	out := make([]string, 0, len(names))
	for i, name := range names {
		c := strings.ToUpper(name)
		if c == "ALL" {
			out = append(out, c)
			continue
		}
		if !strings.HasPrefix(c, "CAP_") {
			c = "CAP_" + c
		}
		if !slices.Contains(known, c) && !slices.Contains(b.in.Host.Capabilities, c) {
			b.faults.invalid(fmt.Sprintf("linux.security_context.capabilities.%s[%d]", field, i), "unknown capability %q", name)
			continue
		}
		out = append(out, c)
	}
	return out
}

// union returns a sorted copy of a and b without duplicates and without ALL.
func union(a, b []string) []string {
	out := slices.Concat(a, b)
	slices.Sort(out)
	return slices.DeleteFunc(slices.Compact(out), func(c string) bool { return c == "ALL" })
}

func capabilitySets(caps []string) *specs.LinuxCapabilities {
	return &specs.LinuxCapabilities{Bounding: caps, Effective: slices.Clone(caps), Permitted: slices.Clone(caps)}
}
