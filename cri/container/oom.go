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
	"syscall"
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
// of memory; false when the cgroup is gone, and its counter with it.
// The counter is read rather than an event awaited: it cannot come too late.
func oomKills(root, cgroup string) (uint64, bool) {
	if cgroup == "" {
		return 0, false
	}
	for _, file := range []string{
		filepath.Join(root, cgroup, "memory.events"),                // v2
		filepath.Join(root, "memory", cgroup, "memory.oom_control"), // v1
	} {
		b, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range bytes.Lines(b) {
			f := strings.Fields(string(line))
			if len(f) == 2 && f[0] == "oom_kill" {
				n, err := strconv.ParseUint(f[1], 10, 64)
				return n, err == nil
			}
		}
	}
	return 0, false
}

// oomElsewhere counts the kills below the cgroup's parent that none of the
// containers explains which run there beside it: its own, and those of
// containers that are gone. Only cgroup v2 counts kills in what is above. Not
// sure means that one of those that run cannot be read, so that it may be about
// to be recorded as ended.
func oomElsewhere(root, cgroup string, beside []string) (n uint64, sure bool) {
	if cgroup == "" {
		return 0, false
	}
	n, sure = oomKills(root, filepath.Dir(cgroup))
	if n == 0 {
		return 0, sure
	}
	for _, b := range beside {
		k, ok := oomKills(root, b)
		n, sure = n-min(n, k), sure && ok
	}
	return n, sure
}

// ending is a container's end, as far as it tells whether memory was the cause.
type ending struct {
	cgroup string
	// beside are the cgroups of the containers that run below the same parent.
	beside []string
	// before is what oomElsewhere said before the container started, and what
	// containers that have ended meanwhile explain.
	before uint64
	code   uint32
	// stopped says that somebody asked for the end.
	stopped bool
}

// oomLost counts the kills of a container whose cgroup was removed before it could be read: systemd does that to a
// scope with the end of its last process. The parent's counter is still there; what it has more than at the start, and
// nobody else explains, is this container's. When that is not sure, it has to have been killed, and not by us.
func (e ending) oomLost(root string) uint64 {
	n, sure := oomElsewhere(root, e.cgroup, e.beside)
	if !sure && (e.stopped || e.code != 128+uint32(syscall.SIGKILL)) {
		return 0
	}
	return n - min(n, e.before)
}

// oomMessage says what the reason leaves open: whether it was the first process
// that was killed, or others beside or before its own end.
func oomMessage(kills uint64) string {
	if kills == 0 {
		return ""
	}
	return fmt.Sprintf("processes killed by the kernel for want of memory: %d", kills)
}
