// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"time"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Metrics returns what the kubelet serves as /metrics/cadvisor, for pods in
// the order given. Values are live and so carry no timestamp, except those of
// the writable layer.
func (c *Collector) Metrics(list []Pod) []*runtimeapi.PodSandboxMetrics {
	buf, put := c.buffer()
	defer put()
	out := make([]*runtimeapi.PodSandboxMetrics, len(list))
	for i := range list {
		out[i] = c.podMetrics(&list[i], buf)
	}
	return out
}

func (c *Collector) podMetrics(p *Pod, buf []byte) *runtimeapi.PodSandboxMetrics {
	meta := p.Attributes.GetMetadata()
	out := &runtimeapi.PodSandboxMetrics{
		PodSandboxId:     p.ID,
		ContainerMetrics: make([]*runtimeapi.ContainerMetrics, 0, len(p.Containers)),
	}
	e := newEmitter([]string{"", p.Cgroup, "", p.ID, meta.GetNamespace(), meta.GetName()})
	e.times(p.Created)
	if g := c.group(p.ID, p.Cgroup); g != nil {
		c.groupMetrics(e, g, buf)
	}
	for _, l := range c.links(p, buf) {
		e.network(l)
	}
	out.Metrics = e.out
	for i := range p.Containers {
		ctr := &p.Containers[i]
		out.ContainerMetrics = append(out.ContainerMetrics, &runtimeapi.ContainerMetrics{
			ContainerId: ctr.ID,
			Metrics:     c.containerMetrics(ctr, meta, buf),
		})
	}
	return out
}

func (c *Collector) containerMetrics(ctr *Container, pod *runtimeapi.PodSandboxMetadata, buf []byte) []*runtimeapi.Metric {
	e := newEmitter([]string{
		ctr.Attributes.GetMetadata().GetName(), ctr.Cgroup, ctr.Image, ctr.ID,
		pod.GetNamespace(), pod.GetName(),
	})
	e.times(ctr.Started)
	if g := c.group(ctr.ID, ctr.Cgroup); g != nil {
		c.groupMetrics(e, g, buf)
		c.processMetrics(e, ctr, g, buf)
	}
	c.layerMetrics(e, ctr)
	return e.out
}

// emitter collects the metrics of one pod or container.
type emitter struct {
	base []string
	out  []*runtimeapi.Metric
	// at is not zero for values that were measured before the call.
	at int64
}

func newEmitter(base []string) *emitter {
	return &emitter{base: base, out: make([]*runtimeapi.Metric, 0, 64)}
}

func (e *emitter) counter(name string, v uint64, extra ...string) {
	e.add(runtimeapi.MetricType_COUNTER, name, v, extra)
}

func (e *emitter) gauge(name string, v uint64, extra ...string) {
	e.add(runtimeapi.MetricType_GAUGE, name, v, extra)
}

func (e *emitter) add(t runtimeapi.MetricType, name string, v uint64, extra []string) {
	labels := e.base // shared by all metrics without labels of their own
	if len(extra) > 0 {
		labels = append(append(make([]string, 0, len(e.base)+len(extra)), e.base...), extra...)
	}
	e.out = append(e.out, &runtimeapi.Metric{
		Name: name, Timestamp: e.at, MetricType: t, LabelValues: labels, Value: value(v),
	})
}

// times says when something was seen and began.
func (e *emitter) times(start time.Time) {
	e.gauge("container_last_seen", uint64(time.Now().Unix()))
	if !start.IsZero() {
		e.gauge("container_start_time_seconds", uint64(start.Unix()))
	}
}

// seconds turns nanoseconds into the whole seconds that the CRI can carry.
func seconds(ns uint64) uint64 { return ns / uint64(time.Second) }

// groupMetrics are those that a pod and a container have alike.
func (c *Collector) groupMetrics(e *emitter, g *group, buf []byte) {
	g.mu.Lock()
	defer g.mu.Unlock()
	s := g.sample(buf)
	g.readRest(&s, buf)
	if s.cpu.ok {
		e.cpu(&s.cpu)
	}
	if s.mem.ok {
		e.memory(&s.mem)
		g.memoryEvents(e, buf)
	}
	e.pressure("cpu", s.cpuPSI)
	e.pressure("memory", s.memPSI)
	e.pressure("io", s.ioPSI)
	g.hugePages(e, buf)
	if s.hasPids {
		e.gauge("container_threads", s.pids)
		limit := number(g.look("pids", "pids.max", buf))
		if limit == noLimit {
			limit = 0
		}
		e.gauge("container_threads_max", limit)
	}
	g.spec(e, &s, buf)
	c.ioMetrics(e, g, buf)
}

func (e *emitter) cpu(s *cpuSample) {
	e.counter("container_cpu_usage_seconds_total", seconds(s.usage))
	e.counter("container_cpu_user_seconds_total", seconds(s.user))
	e.counter("container_cpu_system_seconds_total", seconds(s.system))
	e.counter("container_cpu_cfs_periods_total", s.periods)
	e.counter("container_cpu_cfs_throttled_periods_total", s.throttled)
	e.counter("container_cpu_cfs_throttled_seconds_total", seconds(s.throttledT))
}

func (e *emitter) memory(m *memorySample) {
	e.gauge("container_memory_cache", m.cache)
	e.gauge("container_memory_rss", m.rss)
	e.gauge("container_memory_kernel_usage", m.kernel)
	e.gauge("container_memory_mapped_file", m.mapped)
	e.gauge("container_memory_swap", m.swap)
	e.gauge("container_memory_usage_bytes", m.usage)
	e.gauge("container_memory_working_set_bytes", m.workingSet)
	e.gauge("container_memory_total_active_file_bytes", m.active)
	e.gauge("container_memory_total_inactive_file_bytes", m.inactive)
	e.counter("container_memory_failures_total", m.faults, "pgfault", "container")
	e.counter("container_memory_failures_total", m.majorFaults, "pgmajfault", "container")
}

func (e *emitter) pressure(what string, p *runtimeapi.PsiStats) {
	if p == nil {
		return
	}
	e.counter("container_pressure_"+what+"_waiting_seconds_total", seconds(p.GetSome().GetTotal()))
	e.counter("container_pressure_"+what+"_stalled_seconds_total", seconds(p.GetFull().GetTotal()))
}

func (e *emitter) network(l link) {
	e.counter("container_network_receive_bytes_total", l.rxBytes, l.name)
	e.counter("container_network_receive_packets_total", l.rxPackets, l.name)
	e.counter("container_network_receive_packets_dropped_total", l.rxDrop, l.name)
	e.counter("container_network_receive_errors_total", l.rxErrs, l.name)
	e.counter("container_network_transmit_bytes_total", l.txBytes, l.name)
	e.counter("container_network_transmit_packets_total", l.txPackets, l.name)
	e.counter("container_network_transmit_packets_dropped_total", l.txDrop, l.name)
	e.counter("container_network_transmit_errors_total", l.txErrs, l.name)
}

// layerMetrics says what the container's writable layer uses of its file system.
func (c *Collector) layerMetrics(e *emitter, ctr *Container) {
	if c.layers == nil {
		return
	}
	l, ok := c.layers.Layer(ctr.Snapshotter, ctr.SnapshotKey)
	if !ok {
		return
	}
	e.at = l.At.UnixNano()
	e.gauge("container_fs_usage_bytes", l.Bytes, l.Device)
	e.at = 0
	var st unix.Statfs_t
	if l.Mountpoint == "" || unix.Statfs(l.Mountpoint, &st) != nil {
		return
	}
	e.gauge("container_fs_limit_bytes", st.Blocks*uint64(max(st.Bsize, 0)), l.Device)
	e.gauge("container_fs_inodes_total", st.Files, l.Device)
	e.gauge("container_fs_inodes_free", st.Ffree, l.Device)
}
