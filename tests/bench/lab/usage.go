// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"
)

// CPU is the processor time that everything in the box has used so far, ended
// processes included; what the kernel does on its own threads for it is not.
func (b *Box) CPU() (time.Duration, error) {
	data, err := os.ReadFile(filepath.Join(b.Cgroup, "cpu.stat"))
	if err != nil {
		return 0, fmt.Errorf("read CPU time of %s: %w", b.Name, err)
	}
	for line := range strings.Lines(string(data)) {
		if n, ok := strings.CutPrefix(line, "usage_usec "); ok {
			us, err := strconv.ParseInt(strings.TrimSpace(n), 10, 64)
			return time.Duration(us) * time.Microsecond, err
		}
	}
	return 0, fmt.Errorf("no CPU time in cpu.stat of %s", b.Name)
}

// Process is one process of a box.
type Process struct {
	PID  int
	Name string
	// RSS and PSS are in bytes.
	RSS, PSS uint64
	// CPU is what it used so far, its children that were waited for included.
	CPU time.Duration
}

// Processes returns the processes of the box, but those with the given names.
func (b *Box) Processes(without ...string) ([]Process, error) {
	want, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/pid", b.PID))
	if err != nil {
		return nil, fmt.Errorf("read PID namespace of %s: %w", b.Name, err)
	}
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil, fmt.Errorf("list processes: %w", err)
	}
	var out []Process
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		dir := filepath.Join("/proc", e.Name())
		if ns, err := os.Readlink(filepath.Join(dir, "ns/pid")); err != nil || ns != want {
			continue // of somebody else, or gone
		}
		p, err := ReadProcess(pid)
		if err == nil && !slices.Contains(without, p.Name) {
			out = append(out, p)
		}
	}
	return out, nil
}

// ticksPerSecond is USER_HZ, which is 100 on every Linux that Go runs on.
const ticksPerSecond = 100

// ReadProcess reads what a process uses, as proc_pid_stat(5) and
// proc_pid_smaps_rollup(5) say it.
func ReadProcess(pid int) (Process, error) {
	dir := filepath.Join("/proc", strconv.Itoa(pid))
	data, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Process{}, fmt.Errorf("read process: %w", err)
	}
	open, end := bytes.IndexByte(data, '('), bytes.LastIndexByte(data, ')')
	fields := strings.Fields(string(data[end+1:]))
	if open < 0 || len(fields) < 15 {
		return Process{}, fmt.Errorf("process %d: odd stat line", pid)
	}
	p := Process{PID: pid, Name: string(data[open+1 : end])}
	for _, f := range fields[11:15] { // utime stime cutime cstime
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return p, fmt.Errorf("process %d: %w", pid, err)
		}
		p.CPU += time.Duration(n) * time.Second / ticksPerSecond
	}
	p.RSS, p.PSS = rollup(dir)
	return p, nil
}

// rollup sums a process's memory; one that ended counts as 0.
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

// MachineCPU is the processor time that the whole machine has spent working.
func MachineCPU() (time.Duration, error) {
	data, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read CPU time: %w", err)
	}
	line, _, _ := strings.Cut(string(data), "\n")
	var ticks int64
	for i, f := range strings.Fields(line)[1:] {
		if i == 3 || i == 4 || i >= 8 { // idle, iowait; guest is in user
			continue
		}
		n, err := strconv.ParseInt(f, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read CPU time: %w", err)
		}
		ticks += n
	}
	return time.Duration(ticks) * (time.Second / ticksPerSecond), nil
}

// Threads is the processor time of a process's present threads, to the
// nanosecond; Process.CPU counts in ticks, too coarse for many idle processes.
func Threads(pid int) (time.Duration, error) {
	files, err := filepath.Glob(fmt.Sprintf("/proc/%d/task/*/schedstat", pid))
	if err != nil || len(files) == 0 {
		return 0, fmt.Errorf("process %d is gone: %w", pid, os.ErrProcessDone)
	}
	var sum time.Duration
	for _, f := range files {
		data, err := os.ReadFile(f)
		if err != nil {
			continue // a thread that ended
		}
		ns, _, _ := strings.Cut(string(data), " ")
		n, err := strconv.ParseInt(ns, 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read %s: %w", f, err)
		}
		sum += time.Duration(n)
	}
	return sum, nil
}
