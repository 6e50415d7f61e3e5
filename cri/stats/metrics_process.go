// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"bytes"
	"os"
	"strconv"
	"strings"
	"time"
)

// procAge is how old a count of descriptors may be: it costs a readlink each.
const procAge = 10 * time.Second

// procCount is what a container's processes hold.
type procCount struct {
	at                      time.Time
	processes, fds, sockets uint64
}

// processMetrics emits what only the processes themselves can tell.
func (c *Collector) processMetrics(e *emitter, ctr *Container, g *group, buf []byte) {
	n, ok := c.countProcesses(ctr.ID, g, buf)
	if !ok {
		return
	}
	e.at = n.at.UnixNano()
	e.gauge("container_processes", n.processes)
	e.gauge("container_file_descriptors", n.fds)
	e.gauge("container_sockets", n.sockets)
	e.at = 0
	if ctr.Pid <= 0 {
		return
	}
	limits := once("/proc/"+strconv.Itoa(ctr.Pid)+"/limits", buf)
	lines(limits, func(line []byte) {
		rest, ok := bytes.CutPrefix(line, []byte("Max open files"))
		if !ok {
			return
		}
		if soft, _ := field(rest); !bytes.HasPrefix(soft, []byte("unlimited")) {
			e.gauge("container_ulimits_soft", number(soft), "max_open_files")
		}
	})
}

// countProcesses counts processes, descriptors and sockets of a cgroup, not
// more often than procAge.
func (c *Collector) countProcesses(id string, g *group, buf []byte) (procCount, bool) {
	c.mu.Lock()
	n, ok := c.procs[id]
	c.mu.Unlock()
	if ok && time.Since(n.at) < procAge {
		return n, true
	}
	g.mu.Lock()
	b := g.look("pids", "cgroup.procs", buf)
	g.mu.Unlock()
	if b == nil {
		return procCount{}, false
	}
	n = procCount{at: time.Now()}
	var pids []string
	lines(b, func(line []byte) { pids = append(pids, string(line)) })
	for _, pid := range pids {
		n.processes++
		countFiles(&n, "/proc/"+pid+"/fd")
	}
	c.mu.Lock()
	c.procs[id] = n
	c.mu.Unlock()
	return n, true
}

// countFiles adds the descriptors of one process, which may end meanwhile.
func countFiles(n *procCount, dir string) {
	d, err := os.Open(dir)
	if err != nil {
		return
	}
	defer d.Close() //nolint:errcheck // read-only
	names, err := d.Readdirnames(-1)
	if err != nil {
		return
	}
	for _, name := range names {
		n.fds++
		if to, err := os.Readlink(dir + "/" + name); err == nil && strings.HasPrefix(to, "socket:") {
			n.sockets++
		}
	}
}
