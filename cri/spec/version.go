// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Version is the oldest version of the runtime spec that has all of s. OCI runtimes refuse a version newer than themselves
// even when they know every field in use (crun 1.8 says no to 1.3), so the newest one is never written without need.
func Version(s *specs.Spec) string {
	switch {
	case needs13(s):
		return "1.3.0"
	case needs12(s):
		return "1.2.0"
	case needs11(s):
		return "1.1.0"
	}
	return "1.0.2"
}

func needs13(s *specs.Spec) bool {
	return len(s.Linux.NetDevices) > 0 || s.Linux.MemoryPolicy != nil ||
		s.Linux.IntelRdt != nil && (len(s.Linux.IntelRdt.Schemata) > 0 || s.Linux.IntelRdt.EnableMonitoring)
}

func needs12(s *specs.Spec) bool {
	if s.Process.Scheduler != nil || s.Process.IOPriority != nil || s.Process.ExecCPUAffinity != nil {
		return true
	}
	return slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool {
		return slices.Contains(m.Options, "idmap") || slices.Contains(m.Options, "ridmap")
	})
}

func needs11(s *specs.Spec) bool {
	if s.Domainname != "" || len(s.Linux.TimeOffsets) > 0 {
		return true
	}
	if c := s.Linux.Seccomp; c != nil && (c.ListenerPath != "" || len(c.Flags) > 0 || c.DefaultErrnoRet != nil) {
		return true
	}
	return slices.ContainsFunc(s.Mounts, func(m specs.Mount) bool {
		return len(m.UIDMappings) > 0 || len(m.GIDMappings) > 0
	})
}
