// SPDX-License-Identifier: Apache-2.0

package containerdtest

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// endTime is how long what ends by itself has for it.
const endTime = 3 * time.Second

// endLeft waits for the processes that were started for a directory, kills those that stay with all that
// they have started, as after a test that was cut short, removes their cgroups, and says what it killed.
func endLeft(dir string) []string {
	limit := time.After(endTime)
	for left := startedFor(dir); len(left) > 0; left = startedFor(dir) {
		select {
		case <-limit:
			return kill(left)
		case <-time.After(20 * time.Millisecond):
		}
	}
	return nil
}

// startedFor are the processes with a path below the directory in their command line.
func startedFor(dir string) []int {
	var out []int
	for _, pid := range processes() {
		cmd, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		if err == nil && bytes.Contains(cmd, []byte(dir)) {
			out = append(out, pid)
		}
	}
	return out
}

func processes() []int {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	var out []int
	for _, e := range entries {
		if pid, err := strconv.Atoi(e.Name()); err == nil {
			out = append(out, pid)
		}
	}
	return out
}

// kill ends processes and their descendants, the containers of a shim.
func kill(pids []int) []string {
	var said []string
	for i := 0; i < len(pids); i++ {
		cmd, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pids[i]))
		said = append(said, fmt.Sprintf("process %d: %s", pids[i], bytes.ReplaceAll(cmd, []byte{0}, []byte{' '})))
		for _, child := range processes() {
			if parent(child) == pids[i] && !slices.Contains(pids, child) {
				pids = append(pids, child)
			}
		}
	}
	groups := cgroupsOf(pids)
	for _, pid := range pids {
		_ = unix.Kill(pid, unix.SIGKILL) // gone is as good
	}
	for _, dir := range groups {
		for range 100 { // a cgroup is busy until its last process is gone
			if err := os.Remove(dir); err == nil || os.IsNotExist(err) {
				break
			}
			<-time.After(20 * time.Millisecond)
		}
	}
	return said
}

func parent(pid int) int {
	stat, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0
	}
	f := bytes.Fields(stat[bytes.LastIndexByte(stat, ')')+1:])
	if len(f) < 2 {
		return 0
	}
	ppid, _ := strconv.Atoi(string(f[1]))
	return ppid
}

// cgroupsOf are the cgroups of processes that are not the test's own.
func cgroupsOf(pids []int) []string {
	own, _ := os.ReadFile("/proc/self/cgroup")
	var out []string
	for _, pid := range pids {
		groups, _ := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
		for line := range strings.Lines(string(groups)) {
			f := strings.SplitN(strings.TrimSpace(line), ":", 3)
			if len(f) != 3 || strings.Contains(string(own), line) {
				continue
			}
			for _, name := range append(strings.Split(f[1], ","), "unified", strings.TrimPrefix(f[1], "name="), "") {
				if dir := filepath.Join("/sys/fs/cgroup", name, f[2]); f[2] != "/" && !slices.Contains(out, dir) {
					out = append(out, dir)
				}
			}
		}
	}
	return out
}
