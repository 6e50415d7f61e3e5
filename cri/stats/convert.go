// SPDX-License-Identifier: Apache-2.0

package stats

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// container measures one container.
func (c *Collector) container(ctr *Container, buf []byte) *runtimeapi.ContainerStats {
	out := &runtimeapi.ContainerStats{Attributes: ctr.Attributes}
	if c.layers != nil {
		if l, ok := c.layers.Layer(ctr.Snapshotter, ctr.SnapshotKey); ok {
			out.WritableLayer = &runtimeapi.FilesystemUsage{
				Timestamp:  l.At.UnixNano(),
				FsId:       &runtimeapi.FilesystemIdentifier{Mountpoint: l.Mountpoint},
				UsedBytes:  value(l.Bytes),
				InodesUsed: value(l.Inodes),
			}
		}
	}
	g := c.group(ctr.ID, ctr.Cgroup)
	if g == nil {
		return out
	}
	s := g.read(buf)
	out.Cpu, out.Memory, out.Io = s.criCPU(), s.criMemory(), s.criIO()
	if s.mem.ok && s.mem.hasSwap {
		out.Swap = &runtimeapi.SwapUsage{Timestamp: s.at.UnixNano(), SwapUsageBytes: value(s.mem.swap)}
		if limit := s.mem.swapLimit; limit != noLimit {
			out.Swap.SwapAvailableBytes = value(limit - min(limit, s.mem.swap))
		}
	}
	return out
}

// pod measures one pod.
func (c *Collector) pod(p *Pod, buf []byte) *runtimeapi.PodSandboxStats {
	linux := &runtimeapi.LinuxPodSandboxStats{
		Containers: make([]*runtimeapi.ContainerStats, len(p.Containers)),
	}
	for i := range p.Containers {
		linux.Containers[i] = c.container(&p.Containers[i], buf)
	}
	out := &runtimeapi.PodSandboxStats{Attributes: p.Attributes, Linux: linux}
	g := c.group(p.ID, p.Cgroup)
	if g == nil {
		return out
	}
	s := g.read(buf)
	linux.Cpu, linux.Memory, linux.Io = s.criCPU(), s.criMemory(), s.criIO()
	if s.hasPids {
		linux.Process = &runtimeapi.ProcessUsage{Timestamp: s.at.UnixNano(), ProcessCount: value(s.pids)}
	}
	if links := c.links(p, buf); links != nil {
		linux.Network = &runtimeapi.NetworkUsage{Timestamp: s.at.UnixNano()}
		for _, l := range links {
			if l.name == primary {
				linux.Network.DefaultInterface = l.cri()
			} else {
				linux.Network.Interfaces = append(linux.Network.Interfaces, l.cri())
			}
		}
	}
	return out
}

func (l link) cri() *runtimeapi.NetworkInterfaceUsage {
	return &runtimeapi.NetworkInterfaceUsage{
		Name:    l.name,
		RxBytes: value(l.rxBytes), RxErrors: value(l.rxErrs),
		TxBytes: value(l.txBytes), TxErrors: value(l.txErrs),
	}
}

func (s *sample) criCPU() *runtimeapi.CpuUsage {
	if !s.cpu.ok {
		return nil
	}
	u := &runtimeapi.CpuUsage{
		Timestamp:            s.at.UnixNano(),
		UsageCoreNanoSeconds: value(s.cpu.usage),
		Psi:                  s.cpuPSI,
	}
	if s.cpu.hasRate {
		u.UsageNanoCores = value(s.cpu.nanoCores)
	}
	return u
}

func (s *sample) criMemory() *runtimeapi.MemoryUsage {
	if !s.mem.ok {
		return nil
	}
	u := &runtimeapi.MemoryUsage{
		Timestamp:       s.at.UnixNano(),
		WorkingSetBytes: value(s.mem.workingSet),
		UsageBytes:      value(s.mem.usage),
		RssBytes:        value(s.mem.rss),
		PageFaults:      value(s.mem.faults),
		MajorPageFaults: value(s.mem.majorFaults),
		Psi:             s.memPSI,
	}
	if s.mem.limit != noLimit {
		u.AvailableBytes = value(s.mem.limit - min(s.mem.limit, s.mem.workingSet))
	}
	return u
}

func (s *sample) criIO() *runtimeapi.IoUsage {
	if s.ioPSI == nil {
		return nil
	}
	return &runtimeapi.IoUsage{Timestamp: s.at.UnixNano(), Psi: s.ioPSI}
}

func value(v uint64) *runtimeapi.UInt64Value { return &runtimeapi.UInt64Value{Value: v} }
