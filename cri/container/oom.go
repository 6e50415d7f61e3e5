// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
)

// cgroupRoot is where the hierarchies are mounted.
const cgroupRoot = "/sys/fs/cgroup"

// memoryCgroup returns the directory of the process's memory cgroup, "" when
// it cannot be told.
func memoryCgroup(pid uint32) string {
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
		for ctl := range strings.SplitSeq(f[1], ",") {
			if ctl == "memory" {
				return filepath.Join(cgroupRoot, "memory", f[2])
			}
		}
		if f[0] == "0" {
			unified = filepath.Join(cgroupRoot, f[2])
		}
	}
	return unified
}

// oomKilled tells whether the kernel killed a process of the cgroup for want
// of memory. The counter is read rather than an event awaited: it cannot come
// too late.
func oomKilled(dir string) bool {
	if dir == "" {
		return false
	}
	for _, name := range []string{"memory.events", "memory.oom_control"} { // v2, v1
		b, err := os.ReadFile(filepath.Join(dir, name))
		if err != nil {
			continue
		}
		for line := range bytes.Lines(b) {
			f := strings.Fields(string(line))
			if len(f) == 2 && f[0] == "oom_kill" {
				n, err := strconv.ParseUint(f[1], 10, 64)
				return err == nil && n > 0
			}
		}
	}
	return false
}
