// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// sysctlPath turns a name such as net.ipv4.ip_forward, or with slashes
// net/ipv4/conf/eth0.100/rp_filter, into its path below /proc/sys. Whichever of
// the two separators comes first separates; the other one is part of a name.
func sysctlPath(name string) string {
	i := strings.IndexAny(name, "./")
	if i < 0 || name[i] == '/' {
		return name
	}
	return strings.Map(func(r rune) rune {
		switch r {
		case '.':
			return '/'
		case '/':
			return '.'
		}
		return r
	}, name)
}

// sysctlNamespace returns the flag of the namespace that holds the sysctl, or
// 0 when it belongs to the whole node.
func sysctlNamespace(path string) int {
	switch {
	case strings.HasPrefix(path, "net/"):
		return unix.CLONE_NEWNET
	case strings.HasPrefix(path, "fs/mqueue/"), strings.HasPrefix(path, "kernel/shm"), strings.HasPrefix(path, "kernel/msg"),
		path == "kernel/sem":
		return unix.CLONE_NEWIPC
	case path == "kernel/domainname", path == "kernel/hostname":
		return unix.CLONE_NEWUTS
	}
	return 0
}

// checkSysctls refuses sysctls that would reach beyond the pod's own namespaces.
func checkSysctls(sysctls map[string]string, flags int) error {
	for name, value := range sysctls {
		path := sysctlPath(name)
		ns := sysctlNamespace(path)
		switch {
		case name == "" || slices.Contains(strings.Split(path, "/"), "..") || strings.Contains(path, "//") || strings.ContainsRune(name, 0):
			return fmt.Errorf("sysctl %q is malformed: %w", name, errdefs.ErrInvalidArgument)
		case ns == 0:
			return fmt.Errorf("sysctl %q is not in a namespace of its own: %w", name, errdefs.ErrInvalidArgument)
		case ns&flags == 0:
			return fmt.Errorf("sysctl %q is not allowed with the host's namespace: %w", name, errdefs.ErrInvalidArgument)
		case strings.ContainsAny(value, "\x00\n"):
			return fmt.Errorf("sysctl %q has a malformed value: %w", name, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}

// writeSysctls writes them in the calling thread's namespaces, in the order of
// their names. A name that the kernel does not have is the caller's mistake.
func writeSysctls(sysctls map[string]string) error {
	names := make([]string, 0, len(sysctls))
	for n := range sysctls {
		names = append(names, n)
	}
	slices.Sort(names)
	for _, n := range names {
		err := os.WriteFile(filepath.Join("/proc/sys", sysctlPath(n)), []byte(sysctls[n]), 0)
		if os.IsNotExist(err) {
			return fmt.Errorf("sysctl %q does not exist: %w", n, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return fmt.Errorf("set sysctl %q to %q: %w", n, sysctls[n], err)
		}
	}
	return nil
}
