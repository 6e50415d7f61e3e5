// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// cgroupRoot is where the hierarchies are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// cgroupOf returns the path of the process's cgroup, of its memory cgroup where
// each controller has a tree of its own; "" when it cannot be told.
func cgroupOf(pid uint32) string {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return ""
	}
	unified := ""
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(strings.TrimSuffix(line, "\n"), ":", 3)
		if len(f) != 3 {
			continue
		}
		if slices.Contains(strings.Split(f[1], ","), "memory") {
			return f[2]
		}
		if f[0] == "0" {
			unified = f[2]
		}
	}
	return unified
}

// oomKills counts the processes of the cgroup that the kernel killed for want
// of memory. The counter is read rather than an event awaited: it cannot come
// too late.
func oomKills(cgroup string) uint64 {
	if cgroup == "" {
		return 0
	}
	for _, file := range []string{
		filepath.Join(cgroupRoot, cgroup, "memory.events"),                // v2
		filepath.Join(cgroupRoot, "memory", cgroup, "memory.oom_control"), // v1
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range bytes.Lines(b) {
			f := strings.Fields(string(line))
			if len(f) == 2 && f[0] == "oom_kill" {
				n, err := strconv.ParseUint(f[1], 10, 64)
				if err != nil {
					return 0
				}
				return n
			}
		}
	}
	return 0
}

// oomMessage says what the reason leaves open: whether it was the first process
// that was killed, or others beside or before its own end.
func oomMessage(kills uint64) string {
	if kills == 0 {
		return ""
	}
	return fmt.Sprintf("processes killed by the kernel for want of memory: %d", kills)
}
