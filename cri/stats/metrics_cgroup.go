// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"bytes"
	"math"
	"os"
	"strings"
)

// readRest adds to a sample what only the metrics need.
func (g *group) readRest(s *sample, buf []byte) {
	if g.t.unified || !s.cpu.ok {
		return
	}
	s.cpu.user = number(g.look("cpuacct", "cpuacct.usage_user", buf))
	s.cpu.system = number(g.look("cpuacct", "cpuacct.usage_sys", buf))
	pairs(g.look("cpu", "cpu.stat", buf), func(key []byte, v uint64) {
		switch string(key) {
		case "nr_periods":
			s.cpu.periods = v
		case "nr_throttled":
			s.cpu.throttled = v
		case "throttled_time":
			s.cpu.throttledT = v
		}
	})
	s.mem.kernel = number(g.look("memory", "memory.kmem.usage_in_bytes", buf))
}

// memoryEvents emits the peak, the limit's hits and the kills.
func (g *group) memoryEvents(e *emitter, buf []byte) {
	var peak, failures, kills uint64
	if g.t.unified {
		peak = number(g.look("", "memory.peak", buf))
		pairs(g.look("", "memory.events", buf), func(key []byte, v uint64) {
			switch string(key) {
			case "max":
				failures = v
			case "oom_kill":
				kills = v
			}
		})
	} else {
		peak = number(g.look("memory", "memory.max_usage_in_bytes", buf))
		failures = number(g.look("memory", "memory.failcnt", buf))
		pairs(g.look("memory", "memory.oom_control", buf), func(key []byte, v uint64) {
			if string(key) == "oom_kill" {
				kills = v
			}
		})
	}
	e.gauge("container_memory_max_usage_bytes", peak)
	e.counter("container_memory_failcnt", failures)
	e.counter("container_oom_events_total", kills)
}

// hugePages emits the use of huge pages where they are accounted. Version 2
// keeps no peak.
func (g *group) hugePages(e *emitter, buf []byte) {
	for _, size := range g.t.hugePages {
		if g.t.unified {
			if b := g.look("", "hugetlb."+size+".current", buf); b != nil {
				e.gauge("container_hugetlb_usage_bytes", number(b), size)
			}
			continue
		}
		if b := g.look("hugetlb", "hugetlb."+size+".usage_in_bytes", buf); b != nil {
			e.gauge("container_hugetlb_usage_bytes", number(b), size)
		}
		if b := g.look("hugetlb", "hugetlb."+size+".max_usage_in_bytes", buf); b != nil {
			e.gauge("container_hugetlb_max_usage_bytes", number(b), size)
		}
	}
}

// spec emits the limits in force, in the terms of version 1, as cAdvisor does.
func (g *group) spec(e *emitter, s *sample, buf []byte) {
	var period, quota, shares, reserved uint64
	if g.t.unified {
		q, p := field(bytes.TrimSpace(g.look("", "cpu.max", buf)))
		quota, period = number(q), number(p)
		shares = sharesOf(number(g.look("", "cpu.weight", buf)))
		reserved = number(g.look("", "memory.low", buf))
	} else {
		period = number(g.look("cpu", "cpu.cfs_period_us", buf))
		if b := g.look("cpu", "cpu.cfs_quota_us", buf); bytes.HasPrefix(b, []byte{'-'}) {
			quota = noLimit
		} else {
			quota = number(b)
		}
		shares = number(g.look("cpu", "cpu.shares", buf))
		reserved = number(g.look("memory", "memory.soft_limit_in_bytes", buf))
	}
	e.gauge("container_spec_cpu_period", period)
	if quota != noLimit {
		e.gauge("container_spec_cpu_quota", quota)
	}
	e.gauge("container_spec_cpu_shares", shares)
	if !s.mem.ok {
		return
	}
	e.gauge("container_spec_memory_limit_bytes", finite(s.mem.limit))
	e.gauge("container_spec_memory_reservation_limit_bytes", finite(reserved))
	e.gauge("container_spec_memory_swap_limit_bytes", finite(s.mem.swapLimit))
}

// finite writes no limit as zero, as cAdvisor does.
func finite(limit uint64) uint64 {
	if limit >= 1<<62 {
		return 0
	}
	return limit
}

// sharesOf turns a weight of version 2 back into shares, by the inverse of the
// mapping that runc has used since 1.3.2 and crun since 1.23 (weight 100 is
// 1024 shares).
func sharesOf(weight uint64) uint64 {
	if weight == 0 {
		return 0
	}
	l := (math.Sqrt(15625+2448*(math.Log10(float64(weight))+7.0/34)) - 125) / 2
	return uint64(math.Round(math.Exp2(l)))
}

// ioCount is what one device did for a cgroup.
type ioCount struct {
	readBytes, writeBytes, reads, writes uint64
}

// ioMetrics emits reads and writes by device.
func (c *Collector) ioMetrics(e *emitter, g *group, buf []byte) {
	devices := map[string]*ioCount{}
	if g.t.unified {
		ioStat(devices, g.look("", "io.stat", buf))
	} else {
		throttle(devices, g.look("blkio", "blkio.throttle.io_service_bytes_recursive", buf), true)
		throttle(devices, g.look("blkio", "blkio.throttle.io_serviced_recursive", buf), false)
	}
	for id, n := range devices {
		dev := c.device(id)
		e.counter("container_fs_reads_bytes_total", n.readBytes, dev)
		e.counter("container_fs_writes_bytes_total", n.writeBytes, dev)
		e.counter("container_fs_reads_total", n.reads, dev)
		e.counter("container_fs_writes_total", n.writes, dev)
		major, minor, _ := strings.Cut(id, ":")
		e.counter("container_blkio_device_usage_total", n.readBytes, dev, major, minor, "Read")
		e.counter("container_blkio_device_usage_total", n.writeBytes, dev, major, minor, "Write")
	}
}

// ioStat parses version 2's "8:0 rbytes=1 wbytes=2 rios=3 wios=4 ...".
func ioStat(devices map[string]*ioCount, b []byte) {
	lines(b, func(line []byte) {
		id, rest := field(line)
		n := &ioCount{}
		for len(rest) > 0 {
			var word []byte
			word, rest = field(rest)
			key, v, ok := bytes.Cut(word, []byte{'='})
			if !ok {
				continue
			}
			switch string(key) {
			case "rbytes":
				n.readBytes = number(v)
			case "wbytes":
				n.writeBytes = number(v)
			case "rios":
				n.reads = number(v)
			case "wios":
				n.writes = number(v)
			}
		}
		devices[string(id)] = n
	})
}

// throttle parses version 1's "8:0 Read 123".
func throttle(devices map[string]*ioCount, b []byte, isBytes bool) {
	lines(b, func(line []byte) {
		id, rest := field(line)
		op, rest := field(rest)
		if !bytes.Contains(id, []byte{':'}) {
			return // the total
		}
		n := devices[string(id)]
		if n == nil {
			n = &ioCount{}
			devices[string(id)] = n
		}
		v := number(rest)
		switch string(op) {
		case "Read":
			if isBytes {
				n.readBytes = v
			} else {
				n.reads = v
			}
		case "Write":
			if isBytes {
				n.writeBytes = v
			} else {
				n.writes = v
			}
		}
	})
}

// device returns the path of a block device, and remembers it.
func (c *Collector) device(id string) string {
	c.diskMu.Lock()
	defer c.diskMu.Unlock()
	if name, ok := c.disks[id]; ok {
		return name
	}
	name := id
	if b, err := os.ReadFile("/sys/dev/block/" + id + "/uevent"); err == nil {
		for line := range strings.Lines(string(b)) {
			if dev, ok := strings.CutPrefix(strings.TrimSpace(line), "DEVNAME="); ok {
				name = "/dev/" + dev
			}
		}
	}
	c.disks[id] = name
	return name
}
