// SPDX-License-Identifier: Apache-2.0

package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// memory is what the processes of a peer use, in bytes, by program name.
type memory struct {
	RSS map[string]uint64 `json:"rss"`
	PSS map[string]uint64 `json:"pss"`
	N   map[string]int    `json:"processes"`
}

// memory sums the processes in the peer's PID namespace, without those that
// are the pods' own (named in own).
func (p *peer) memory(own ...string) (memory, error) {
	m := memory{RSS: map[string]uint64{}, PSS: map[string]uint64{}, N: map[string]int{}}
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", p.pid))
	if err != nil {
		return m, fmt.Errorf("read PID namespace of %s: %w", p.name, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return m, fmt.Errorf("list processes: %w", err)
	}
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		if ns, err := os.Readlink(filepath.Join(dir, "ns/pid")); err != nil || ns != want {
			continue // another peer's, or gone
		}
		comm, err := os.ReadFile(filepath.Join(dir, "comm"))
		if err != nil {
			continue
		}
		name := strings.TrimSpace(string(comm))
		if slices.Contains(own, name) {
			continue
		}
		m.N[name]++
		rss, pss := rollup(dir)
		m.RSS[name] += rss
		m.PSS[name] += pss
	}
	return m, nil
}

// rollup reads proc_pid_smaps_rollup(5); a process that ended counts as 0.
func rollup(dir string) (rss, pss uint64) {
	data, err := os.ReadFile(filepath.Join(dir, "smaps_rollup"))
	if err != nil {
		return 0, 0
	}
	lines := bufio.NewScanner(bytes.NewReader(data))
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 2 {
			continue
		}
		kb, err := strconv.ParseUint(f[1], 10, 64)
		if err != nil {
			continue
		}
		switch f[0] {
		case "Rss:":
			rss = kb << 10
		case "Pss:":
			pss = kb << 10
		}
	}
	return rss, pss
}

// ticksPerSecond is USER_HZ, which is 100 on every Linux that Go runs on.
const ticksPerSecond = 100

// busy returns the CPU seconds that the whole machine has spent working.
func busy() (float64, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	fields := strings.Fields(line)
	var ticks uint64
	for i, f := range fields[1:] {
		if i == 3 || i == 4 || i >= 8 { // idle, iowait; guest is in user
			continue
		}
		n, err := strconv.ParseUint(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		ticks += n
	}
	return float64(ticks) / ticksPerSecond, nil
}
