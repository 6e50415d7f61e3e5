// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"maps"
	"slices"
	"strings"

	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/api"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/store"
)

// podMessage is a sandbox as plugins see it.
func podMessage(sb *store.Sandbox) *adaptation.PodSandbox {
	cfg := sb.Config.M
	overhead, resources := sb.Overhead.M, sb.Resources.M
	if overhead == nil {
		overhead = cfg.GetLinux().GetOverhead()
	}
	if resources == nil {
		resources = cfg.GetLinux().GetResources()
	}
	p := &adaptation.PodSandbox{
		Id: sb.ID, Name: cfg.GetMetadata().GetName(), Uid: cfg.GetMetadata().GetUid(), Namespace: cfg.GetMetadata().GetNamespace(),
		Labels: maps.Clone(cfg.GetLabels()), Annotations: maps.Clone(cfg.GetAnnotations()), RuntimeHandler: sb.Handler,
		Linux: &adaptation.LinuxPodSandbox{
			PodOverhead: fromCRI(overhead), PodResources: fromCRI(resources),
			CgroupParent: cfg.GetLinux().GetCgroupParent(), Namespaces: namespaces(sb.Namespaces),
		},
	}
	for _, a := range sb.Addrs {
		p.Ips = append(p.Ips, a.String())
	}
	return p
}

func namespaces(n store.Namespaces) []*adaptation.LinuxNamespace {
	var out []*adaptation.LinuxNamespace
	for _, ns := range []struct {
		typ  specs.LinuxNamespaceType
		path string
	}{
		{specs.NetworkNamespace, n.Net},
		{specs.IPCNamespace, n.IPC},
		{specs.UTSNamespace, n.UTS},
		{specs.UserNamespace, n.User},
		{specs.PIDNamespace, n.PID},
	} {
		if ns.path != "" {
			out = append(out, &adaptation.LinuxNamespace{Type: string(ns.typ), Path: ns.path})
		}
	}
	return out
}

// containerMessage is a container as plugins see it; a specification that is
// gone is an empty one.
func containerMessage(c *store.Container, s *specs.Spec) *adaptation.Container {
	cfg := c.Config.M
	annotations := maps.Clone(s.Annotations)
	if annotations == nil {
		annotations = map[string]string{}
	}
	maps.Copy(annotations, cfg.GetAnnotations())
	msg := &adaptation.Container{
		Id: c.ID, PodSandboxId: c.SandboxID, Name: cfg.GetMetadata().GetName(), State: state(c),
		Labels: maps.Clone(cfg.GetLabels()), Annotations: annotations,
		Mounts: api.FromOCIMounts(s.Mounts), Hooks: api.FromOCIHooks(s.Hooks), Linux: linuxMessage(c, s),
		Pid: c.PID, CreatedAt: c.CreatedAt, StartedAt: c.StartedAt, FinishedAt: c.FinishedAt,
		ExitCode: c.ExitCode, StatusReason: c.Reason, StatusMessage: c.Message,
		Image: &adaptation.Image{Name: c.ImageName, ConfigDigest: c.ImageID},
	}
	if _, digest, ok := strings.Cut(c.ImageRef, "@"); ok {
		msg.Image.Digest = digest
	}
	for _, d := range cfg.GetCDIDevices() {
		msg.CDIDevices = append(msg.CDIDevices, &adaptation.CDIDevice{Name: d.GetName()})
	}
	if p := s.Process; p != nil {
		msg.Args, msg.Env = slices.Clone(p.Args), slices.Clone(p.Env)
		msg.User = &adaptation.User{Uid: p.User.UID, Gid: p.User.GID, AdditionalGids: slices.Clone(p.User.AdditionalGids)}
		for _, l := range p.Rlimits {
			msg.Rlimits = append(msg.Rlimits, &adaptation.POSIXRlimit{Type: l.Type, Hard: l.Hard, Soft: l.Soft})
		}
	}
	return msg
}

func state(c *store.Container) adaptation.ContainerState {
	switch c.State {
	case store.ContainerCreating, store.ContainerCreated:
		return adaptation.ContainerState_CONTAINER_CREATED
	case store.ContainerRunning:
		return adaptation.ContainerState_CONTAINER_RUNNING
	case store.ContainerExited:
		return adaptation.ContainerState_CONTAINER_STOPPED
	}
	return adaptation.ContainerState_CONTAINER_UNKNOWN
}

func linuxMessage(c *store.Container, s *specs.Spec) *adaptation.LinuxContainer {
	out := &adaptation.LinuxContainer{}
	if p := c.Config.M.GetLinux().GetSecurityContext().GetSeccomp(); p != nil {
		out.SeccompProfile = &adaptation.SecurityProfile{
			ProfileType: api.SecurityProfile_ProfileType(p.GetProfileType()), LocalhostRef: p.GetLocalhostRef(),
		}
	}
	if p := s.Process; p != nil {
		if p.OOMScoreAdj != nil {
			out.OomScoreAdj = api.Int(*p.OOMScoreAdj)
		}
		out.IoPriority = api.FromOCILinuxIOPriority(p.IOPriority)
		if p.Scheduler != nil {
			out.Scheduler = api.FromOCILinuxScheduler(p.Scheduler)
		}
	}
	l := s.Linux
	if l == nil {
		return out
	}
	out.Namespaces, out.Devices = api.FromOCILinuxNamespaces(l.Namespaces), api.FromOCILinuxDevices(l.Devices)
	out.Resources, out.CgroupsPath = api.FromOCILinuxResources(l.Resources, s.Annotations), l.CgroupsPath
	out.Sysctl, out.NetDevices = maps.Clone(l.Sysctl), api.FromOCILinuxNetDevices(l.NetDevices)
	if l.Seccomp != nil {
		out.SeccompPolicy = api.FromOCILinuxSeccomp(l.Seccomp)
	}
	if r := l.IntelRdt; r != nil {
		out.Rdt = &adaptation.LinuxRdt{
			ClosId: api.String(r.ClosID), Schemata: api.RepeatedString(r.Schemata), EnableMonitoring: api.Bool(r.EnableMonitoring),
		}
	}
	return out
}

// fromCRI translates resources; a zero means in CRI what an absent value means here.
func fromCRI(r *runtimeapi.LinuxContainerResources) *adaptation.LinuxResources {
	if r == nil {
		return nil
	}
	out := &adaptation.LinuxResources{
		Cpu:     &adaptation.LinuxCPU{Cpus: r.GetCpusetCpus(), Mems: r.GetCpusetMems()},
		Memory:  &adaptation.LinuxMemory{},
		Unified: maps.Clone(r.GetUnified()),
	}
	if v := r.GetCpuShares(); v > 0 {
		out.Cpu.Shares = api.UInt64(uint64(v))
	}
	if v := r.GetCpuQuota(); v != 0 {
		out.Cpu.Quota = api.Int64(v)
	}
	if v := r.GetCpuPeriod(); v > 0 {
		out.Cpu.Period = api.UInt64(uint64(v))
	}
	if v := r.GetMemoryLimitInBytes(); v != 0 {
		out.Memory.Limit = api.Int64(v)
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &adaptation.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return out
}

// toCRI translates resources that a plugin wants; nil for nil.
func toCRI(r *adaptation.LinuxResources) *runtimeapi.LinuxContainerResources {
	if r == nil {
		return nil
	}
	out := &runtimeapi.LinuxContainerResources{
		CpuShares:          int64(r.GetCpu().GetShares().GetValue()), //nolint:gosec // the kernel's limit is 2^18
		CpuPeriod:          int64(r.GetCpu().GetPeriod().GetValue()), //nolint:gosec // a second at most
		CpuQuota:           r.GetCpu().GetQuota().GetValue(),
		CpusetCpus:         r.GetCpu().GetCpus(),
		CpusetMems:         r.GetCpu().GetMems(),
		MemoryLimitInBytes: r.GetMemory().GetLimit().GetValue(),
		Unified:            maps.Clone(r.GetUnified()),
	}
	for _, h := range r.GetHugepageLimits() {
		out.HugepageLimits = append(out.HugepageLimits, &runtimeapi.HugepageLimit{PageSize: h.GetPageSize(), Limit: h.GetLimit()})
	}
	return out
}

// overlaid is r with the fields of p that are set.
func overlaid(r, p *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	if p == nil {
		return r
	}
	out := &runtimeapi.LinuxContainerResources{}
	proto.Merge(out, r)
	if len(p.GetHugepageLimits()) > 0 {
		out.HugepageLimits = nil
	}
	proto.Merge(out, p)
	return out
}
