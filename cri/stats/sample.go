// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"bytes"
	"strconv"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// maxFile is more than any file read here has, except memory.stat of the
// largest machines, whose lines of interest come before that.
const maxFile = 16 << 10

// sample is what one reading of a cgroup gives.
type sample struct {
	at  time.Time
	cpu cpuSample
	mem memorySample

	pids    uint64
	hasPids bool

	cpuPSI, memPSI, ioPSI *runtimeapi.PsiStats
}

// cpuSample is in nanoseconds.
type cpuSample struct {
	ok                             bool
	usage, user, system            uint64
	periods, throttled, throttledT uint64
	nanoCores                      uint64
	hasRate                        bool
}

// memorySample is in bytes, faults apart.
type memorySample struct {
	ok                       bool
	usage, limit, workingSet uint64
	cache, rss, mapped       uint64
	active, inactive         uint64
	faults, majorFaults      uint64
	kernel, swap             uint64
	hasSwap                  bool
	// swapLimit is noLimit without one.
	swapLimit uint64
}

// read takes one sample; buf is of maxFile.
func (g *group) read(buf []byte) sample {
	g.mu.Lock()
	defer g.mu.Unlock()
	return g.sample(buf)
}

// sample is read for callers that hold mu.
func (g *group) sample(buf []byte) sample {
	s := sample{at: time.Now()}
	g.readCPU(&s, buf)
	g.readMemory(&s.mem, buf)
	if b := g.get(hotPids, buf); b != nil {
		s.pids, s.hasPids = number(b), true
	}
	if g.t.psi {
		s.cpuPSI = psi(g.get(hotCPUPressure, buf))
		s.memPSI = psi(g.get(hotMemoryPressure, buf))
		s.ioPSI = psi(g.get(hotIOPressure, buf))
	}
	return s
}

func (g *group) readCPU(s *sample, buf []byte) {
	b := g.get(hotCPU, buf)
	if b == nil {
		return
	}
	s.cpu.ok = true
	if g.t.unified {
		cpuStat(&s.cpu, b)
	} else {
		s.cpu.usage = number(b)
	}
	s.cpu.nanoCores, s.cpu.hasRate = g.samples.rate(s.at, s.cpu.usage)
}

// cpuStat parses version 2's cpu.stat, which is in microseconds.
func cpuStat(c *cpuSample, b []byte) {
	pairs(b, func(key []byte, v uint64) {
		switch string(key) {
		case "usage_usec":
			c.usage = v * 1000
		case "user_usec":
			c.user = v * 1000
		case "system_usec":
			c.system = v * 1000
		case "nr_periods":
			c.periods = v
		case "nr_throttled":
			c.throttled = v
		case "throttled_usec":
			c.throttledT = v * 1000
		}
	})
}

func (g *group) readMemory(m *memorySample, buf []byte) {
	b := g.get(hotUsage, buf)
	if b == nil {
		return
	}
	m.ok, m.usage = true, number(b)
	if m.limit = number(g.get(hotLimit, buf)); m.limit >= 1<<62 {
		m.limit = noLimit // version 1 has the largest page-aligned number
	}
	stat := g.get(hotMemory, buf)
	if g.t.unified {
		memoryStat2(m, stat)
		if b := g.get(hotSwap, buf); b != nil {
			m.swap, m.hasSwap = number(b), true
		}
	} else {
		memoryStat1(m, stat)
	}
	if m.hasSwap {
		m.swapLimit = g.swapLimit(m.limit, buf)
	}
	m.workingSet = m.usage - min(m.inactive, m.usage)
}

// swapLimit returns how much may be swapped out. Version 1 limits memory and
// swap together.
func (g *group) swapLimit(memory uint64, buf []byte) uint64 {
	if g.t.unified {
		if b := g.look("", "memory.swap.max", buf); b != nil {
			return number(b)
		}
		return noLimit
	}
	b := g.look("memory", "memory.memsw.limit_in_bytes", buf)
	if both := number(b); b != nil && both < 1<<62 && memory <= both {
		return both - memory
	}
	return noLimit
}

// memoryStat1 takes the totals, which include the cgroups below.
func memoryStat1(m *memorySample, b []byte) {
	pairs(b, func(key []byte, v uint64) {
		switch string(key) {
		case "total_cache":
			m.cache = v
		case "total_rss":
			m.rss = v
		case "total_mapped_file":
			m.mapped = v
		case "total_swap":
			m.swap, m.hasSwap = v, true
		case "total_pgfault":
			m.faults = v
		case "total_pgmajfault":
			m.majorFaults = v
		case "total_inactive_file":
			m.inactive = v
		case "total_active_file":
			m.active = v
		}
	})
}

func memoryStat2(m *memorySample, b []byte) {
	pairs(b, func(key []byte, v uint64) {
		switch string(key) {
		case "file":
			m.cache = v
		case "anon":
			m.rss = v
		case "file_mapped":
			m.mapped = v
		case "kernel":
			m.kernel = v
		case "pgfault":
			m.faults = v
		case "pgmajfault":
			m.majorFaults = v
		case "inactive_file":
			m.inactive = v
		case "active_file":
			m.active = v
		}
	})
}

// psi parses a pressure file; nil when there is none.
func psi(b []byte) *runtimeapi.PsiStats {
	if len(b) == 0 {
		return nil
	}
	out := &runtimeapi.PsiStats{}
	lines(b, func(line []byte) {
		kind, rest := field(line)
		d := psiData(rest)
		switch string(kind) {
		case "some":
			out.Some = d
		case "full":
			out.Full = d
		}
	})
	if out.Full == nil { // a machine's cpu has none
		out.Full = &runtimeapi.PsiData{}
	}
	return out
}

func psiData(b []byte) *runtimeapi.PsiData {
	d := &runtimeapi.PsiData{}
	for len(b) > 0 {
		var word []byte
		word, b = field(b)
		key, value, _ := bytes.Cut(word, []byte{'='})
		f, err := strconv.ParseFloat(string(value), 64)
		if err != nil {
			continue
		}
		switch string(key) {
		case "avg10":
			d.Avg10 = f
		case "avg60":
			d.Avg60 = f
		case "avg300":
			d.Avg300 = f
		case "total":
			d.Total = number(value) * 1000 // microseconds
		}
	}
	return d
}

// decimal formats n.
func decimal(n uint64) string { return strconv.FormatUint(n, 10) }
