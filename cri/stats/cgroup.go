// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/sys/unix"
)

// tree is the machine's cgroup file system as it was found at start.
type tree struct {
	root string
	// unified says that controllers are in version 2. Otherwise each is in a
	// directory of version 1 (also in the hybrid layout, whose version 2
	// directory has none).
	unified bool
	// psi says that cgroups have pressure files.
	psi bool
	// hugePages are the sizes in the controller's words, such as "2MB".
	hugePages []string
}

// findTree looks at the cgroup file system.
func findTree(root string) (tree, error) {
	t := tree{root: root}
	if _, err := os.Stat(filepath.Join(root, "cgroup.controllers")); err == nil {
		t.unified = true
		_, err := os.Stat("/proc/pressure/cpu")
		t.psi = err == nil
	} else if _, err := os.Stat(filepath.Join(root, "memory")); err != nil {
		return tree{}, errors.New("no cgroup file system with a memory controller at " + root)
	}
	t.hugePages = findHugePages(t)
	return t, nil
}

// findHugePages lists the page sizes that the controller accounts, from the
// files of version 1's root or of the kernel, when the controller is there.
func findHugePages(t tree) []string {
	if t.unified {
		b, err := os.ReadFile(filepath.Join(t.root, "cgroup.controllers"))
		if err != nil || !strings.Contains(string(b), "hugetlb") {
			return nil
		}
	} else if _, err := os.Stat(filepath.Join(t.root, "hugetlb")); err != nil {
		return nil
	}
	entries, err := os.ReadDir("/sys/kernel/mm/hugepages")
	if err != nil {
		return nil
	}
	var sizes []string
	for _, e := range entries {
		kb := number([]byte(strings.TrimPrefix(e.Name(), "hugepages-")))
		switch {
		case kb >= 1<<20:
			sizes = append(sizes, decimal(kb>>20)+"GB")
		case kb >= 1<<10:
			sizes = append(sizes, decimal(kb>>10)+"MB")
		default:
			sizes = append(sizes, decimal(kb)+"KB")
		}
	}
	return sizes
}

// path names a file of a cgroup; controller is ignored in version 2.
func (t tree) path(controller, cgroup, name string) string {
	if t.unified {
		return filepath.Join(t.root, cgroup, name)
	}
	return filepath.Join(t.root, controller, cgroup, name)
}

// hot names the files that every reading needs; they stay open.
type hot int

const (
	hotCPU hot = iota // cpu.stat, or cpuacct.usage
	hotUsage
	hotMemory // memory.stat
	hotLimit
	hotSwap // version 1 has it in memory.stat
	hotPids
	hotCPUPressure
	hotMemoryPressure
	hotIOPressure
	hotCount
)

// group is one cgroup that is read again and again.
type group struct {
	t      tree
	cgroup string

	// mu guards the files and the samples of one reading at a time.
	mu      sync.Mutex
	files   [hotCount]file
	warm    map[warmKey]*file
	budget  *budget
	samples cpuRate
	closed  bool
}

// warmKey names a file of a cgroup that only the metrics need.
type warmKey struct{ controller, name string }

// budget is how many more descriptors may stay open for metrics. Opening a
// file of a cgroup costs four times as much as reading it, but a node with
// hundreds of pods must not run out of descriptors.
type budget struct{ left atomic.Int64 }

// take takes one descriptor; false when there is none left.
func (b *budget) take() bool {
	if b.left.Add(-1) >= 0 {
		return true
	}
	b.left.Add(1)
	return false
}

// newBudget takes a quarter of what the process may open.
func newBudget() *budget {
	b := &budget{}
	var limit unix.Rlimit
	if unix.Getrlimit(unix.RLIMIT_NOFILE, &limit) == nil {
		b.left.Store(int64(min(limit.Cur/4, 16384)))
	}
	return b
}

// newGroup prepares a cgroup; its files are opened by the first reading.
func newGroup(t tree, cgroup string, b *budget) *group {
	g := &group{t: t, cgroup: cgroup, budget: b, warm: map[warmKey]*file{}}
	set := func(h hot, controller, v1, v2 string) {
		name := v1
		if t.unified {
			name = v2
		}
		if name != "" {
			g.files[h].path = t.path(controller, cgroup, name)
		}
	}
	set(hotCPU, "cpuacct", "cpuacct.usage", "cpu.stat")
	set(hotUsage, "memory", "memory.usage_in_bytes", "memory.current")
	set(hotMemory, "memory", "memory.stat", "memory.stat")
	set(hotLimit, "memory", "memory.limit_in_bytes", "memory.max")
	set(hotSwap, "", "", "memory.swap.current")
	set(hotPids, "pids", "pids.current", "pids.current")
	if t.psi {
		set(hotCPUPressure, "", "", "cpu.pressure")
		set(hotMemoryPressure, "", "", "memory.pressure")
		set(hotIOPressure, "", "", "io.pressure")
	}
	return g
}

// get reads one of the files that stay open; nil when it is not there.
func (g *group) get(h hot, buf []byte) []byte {
	if g.closed || g.files[h].path == "" {
		return nil
	}
	return g.files[h].read(buf)
}

// look reads a file that only the metrics need, in version 1 of the named
// controller; nil when it is not there. Its descriptor stays open while the
// budget allows. mu is held.
func (g *group) look(controller, name string, buf []byte) []byte {
	if g.closed {
		return nil
	}
	key := warmKey{controller, name}
	f := g.warm[key]
	if f == nil {
		path := g.t.path(controller, g.cgroup, name)
		if !g.budget.take() {
			return once(path, buf)
		}
		f = &file{path: path}
		g.warm[key] = f
	}
	b := f.read(buf)
	if f.fd == 0 { // absent
		delete(g.warm, key)
		g.budget.left.Add(1)
	}
	return b
}

// close gives all descriptors back; readings after it find nothing.
func (g *group) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	for i := range g.files {
		g.files[i].close()
	}
	for _, f := range g.warm {
		f.close()
	}
	g.budget.left.Add(int64(len(g.warm)))
	clear(g.warm)
}

// cpuRate turns a growing counter into a rate. It keeps two readings at least
// minWindow apart, so that frequent callers do not see the noise of tiny
// windows, and one caller does not disturb another.
type cpuRate struct {
	old, last   uint64
	oldT, lastT time.Time
}

// minWindow and maxWindow are the ages that a rate's first reading may have.
const (
	minWindow = time.Second
	maxWindow = 2 * time.Minute
)

// rate takes a reading in nanoseconds of CPU time and returns the use in
// nanocores; false without an older reading.
func (r *cpuRate) rate(now time.Time, usage uint64) (uint64, bool) {
	if usage < r.last { // another cgroup of the same name
		*r = cpuRate{}
	}
	if now.Sub(r.lastT) >= minWindow {
		r.old, r.oldT = r.last, r.lastT
		r.last, r.lastT = usage, now
	}
	window := now.Sub(r.oldT)
	if r.oldT.IsZero() || window <= 0 || window > maxWindow {
		return 0, false
	}
	return uint64(float64(usage-r.old) / window.Seconds()), true
}
