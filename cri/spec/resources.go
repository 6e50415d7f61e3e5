// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// The kernel's bounds of CFS bandwidth control (kernel/sched/core.c), in microseconds.
const (
	minPeriod, maxPeriod = 1000, 1000000
	minQuota             = 1000
)

func (b *builder) resources() {
	r := b.in.Config.GetLinux().GetResources()
	if r == nil {
		b.setCgroup()
		return
	}
	applyResources(&b.faults, b.spec.Linux.Resources, r, limits{host: b.in.Host, policy: b.in.Policy})
	adj := r.GetOomScoreAdj()
	if adj < -1000 || adj > 1000 {
		b.faults.invalid("linux.resources.oom_score_adj", "%d is not between -1000 and 1000", adj)
	}
	// A score lower than may be set would fail the whole start; the nearest possible one is what the kubelet can get.
	score := max(int(adj), b.in.Host.MinOOMScoreAdj)
	b.spec.Process.OOMScoreAdj = &score
	b.setCgroup()
}

func (b *builder) setCgroup() {
	if parent := b.in.Sandbox.Config.GetLinux().GetCgroupParent(); parent != "" {
		if strings.Contains("/"+parent+"/", "/../") {
			b.faults.invalid("linux.cgroup_parent", "%q leads out of its hierarchy", parent)
		}
		b.spec.Linux.CgroupsPath = CgroupsPath(parent, b.in.ID)
	}
}

// UpdateResources returns a copy of s with the resources of an UpdateContainerResources request laid over it: what the request
// leaves at zero stays as it is. The copy's Linux.Resources is what the task is updated with. The oom_score_adj of a running
// process is not changed.
func UpdateResources(s *specs.Spec, r *runtimeapi.LinuxContainerResources, host Host, policy Policy) (*specs.Spec, error) {
	out, err := clone(s)
	if err != nil {
		return nil, fmt.Errorf("copy spec: %w", err)
	}
	fill(out)
	if r == nil {
		return out, nil
	}
	var f faults
	applyResources(&f, out.Linux.Resources, r, limits{host: host, policy: policy})
	return out, f.err()
}

// limits is what the host allows resources to be.
type limits struct {
	host   Host
	policy Policy
}

const resField = "linux.resources."

func applyResources(f *faults, dst *specs.LinuxResources, r *runtimeapi.LinuxContainerResources, l limits) {
	applyCPU(f, dst, r)
	applyMemory(f, dst, r, l.host)
	applyHugepages(f, dst, r.GetHugepageLimits(), l)
	applyUnified(f, dst, r.GetUnified(), l.host)
}

func applyCPU(f *faults, dst *specs.LinuxResources, r *runtimeapi.LinuxContainerResources) {
	if dst.CPU == nil {
		dst.CPU = &specs.LinuxCPU{}
	}
	switch p := r.GetCpuPeriod(); {
	case p == 0:
	case p < minPeriod || p > maxPeriod:
		f.invalid(resField+"cpu_period", "%d is not between %d and %d microseconds", p, minPeriod, maxPeriod)
	default:
		dst.CPU.Period = new(uint64(p))
	}
	switch q := r.GetCpuQuota(); {
	case q == 0:
	case q < -1 || q > 0 && q < minQuota:
		f.invalid(resField+"cpu_quota", "%d is neither -1 (no limit) nor at least %d microseconds", q, minQuota)
	default:
		dst.CPU.Quota = new(q)
	}
	switch s := r.GetCpuShares(); {
	case s == 0:
	case s < 0:
		f.invalid(resField+"cpu_shares", "%d is negative", s)
	default:
		dst.CPU.Shares = new(uint64(s))
	}
	checkCPUList(f, resField+"cpuset_cpus", r.GetCpusetCpus(), &dst.CPU.Cpus)
	checkCPUList(f, resField+"cpuset_mems", r.GetCpusetMems(), &dst.CPU.Mems)
}

// checkCPUList accepts the kernel's list format (cpuset(7)): 0-3,5,7-8.
func checkCPUList(f *faults, field, list string, dst *string) {
	if list == "" {
		return
	}
	for part := range strings.SplitSeq(list, ",") {
		from, to, isRange := strings.Cut(part, "-")
		lo, err := strconv.ParseUint(from, 10, 16)
		hi := lo
		if err == nil && isRange {
			hi, err = strconv.ParseUint(to, 10, 16)
		}
		if err != nil || hi < lo {
			f.invalid(field, "%q is not a list like 0-3,5", list)
			return
		}
	}
	*dst = list
}

func applyMemory(f *faults, dst *specs.LinuxResources, r *runtimeapi.LinuxContainerResources, host Host) {
	if dst.Memory == nil {
		dst.Memory = &specs.LinuxMemory{}
	}
	limit, swap := r.GetMemoryLimitInBytes(), r.GetMemorySwapLimitInBytes()
	if limit < 0 {
		f.invalid(resField+"memory_limit_in_bytes", "%d is negative", limit)
		return
	}
	if limit > 0 {
		dst.Memory.Limit = new(limit)
		if swap == 0 && host.Swap {
			// Memory plus swap no more than memory: no swap unless it is asked for.
			dst.Memory.Swap = new(limit)
		}
	}
	effective := limit
	if effective == 0 && dst.Memory.Limit != nil {
		effective = *dst.Memory.Limit
	}
	switch {
	case swap == 0:
	case swap < -1:
		f.invalid(resField+"memory_swap_limit_in_bytes", "%d is neither -1 (no limit) nor positive", swap)
	case swap > 0 && swap < effective:
		f.invalid(resField+"memory_swap_limit_in_bytes", "%d (memory and swap together) is below the memory limit %d", swap, effective)
	case host.Swap:
		dst.Memory.Swap = new(swap)
	}
}

func applyHugepages(f *faults, dst *specs.LinuxResources, want []*runtimeapi.HugepageLimit, l limits) {
	seen := map[string]bool{}
	for i, h := range want {
		field := fmt.Sprintf(resField+"hugepage_limits[%d].page_size", i)
		size := h.GetPageSize()
		switch {
		case !regexp.MustCompile(`^[1-9][0-9]*[KMG]B$`).MatchString(size):
			f.invalid(field, "%q is not a size like 2MB or 1GB", size)
			continue
		case seen[size]:
			f.invalid(field, "%s is listed twice", size)
			continue
		}
		seen[size] = true
		if !l.host.Hugetlb {
			// The kubelet sends a limit of 0 for each page size of the node, with or without the controller.
			if h.GetLimit() > 0 && l.policy.RejectMissingHugetlb {
				f.unable(field, "%s are limited to %d bytes but this host has no hugetlb controller", size, h.GetLimit())
			}
			continue
		}
		dst.HugepageLimits = slices.DeleteFunc(dst.HugepageLimits, func(o specs.LinuxHugepageLimit) bool { return o.Pagesize == size })
		dst.HugepageLimits = append(dst.HugepageLimits, specs.LinuxHugepageLimit{Pagesize: size, Limit: h.GetLimit()})
	}
}

func applyUnified(f *faults, dst *specs.LinuxResources, unified map[string]string, host Host) {
	if len(unified) == 0 {
		return
	}
	if host.Cgroup != CgroupV2 {
		f.unable(resField+"unified", "this host's controllers are on cgroup v1")
		return
	}
	merged := maps.Clone(dst.Unified)
	if merged == nil {
		merged = map[string]string{}
	}
	for _, key := range slices.Sorted(maps.Keys(unified)) {
		if !regexp.MustCompile(`^[a-z][a-z0-9_]*(\.[a-zA-Z0-9_]+)+$`).MatchString(key) {
			f.invalid(resField+"unified", "%q is not the name of a cgroup file", key)
			continue
		}
		merged[key] = unified[key]
	}
	dst.Unified = merged
}

// InForce is what was asked for, with what the finished specification says instead.
func InForce(asked *runtimeapi.LinuxContainerResources, s *specs.Spec) *runtimeapi.LinuxContainerResources {
	if s.Linux == nil || s.Linux.Resources == nil {
		return asked
	}
	out := &runtimeapi.LinuxContainerResources{}
	proto.Merge(out, asked)
	if c := s.Linux.Resources.CPU; c != nil {
		over(&out.CpuShares, c.Shares)
		over(&out.CpuPeriod, c.Period)
		over(&out.CpuQuota, c.Quota)
		out.CpusetCpus, out.CpusetMems = c.Cpus, c.Mems
	}
	if m := s.Linux.Resources.Memory; m != nil {
		over(&out.MemoryLimitInBytes, m.Limit)
	}
	if asked == nil && proto.Size(out) == 0 {
		return nil
	}
	return out
}

func over[T int64 | uint64](dst *int64, v *T) {
	if v != nil {
		*dst = int64(*v)
	}
}
