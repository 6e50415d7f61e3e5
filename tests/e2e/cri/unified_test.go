// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// unified skips where controllers are on cgroup v1: the tests read the files of version 2.
func unified(t *testing.T) {
	t.Helper()
	if _, err := node.ReadFile("/sys/fs/cgroup/cgroup.controllers"); errors.Is(err, fs.ErrNotExist) {
		t.Skip("this machine's controllers are on cgroup v1")
	}
}

// resources gives a container resources.
func resources(r *runtimeapi.LinuxContainerResources) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { c.Linux.Resources = r }
}

// limit is a limit of memory, and of memory and swap together.
func limit(memory, both int64) *runtimeapi.LinuxContainerResources {
	return &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: memory, MemorySwapLimitInBytes: both}
}

func update(t *testing.T, id string, r *runtimeapi.LinuxContainerResources) error {
	t.Helper()
	_, err := rs.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{ContainerId: id, Linux: r})
	return err
}

// files wants a container's own cgroup to say this; its files are "name=value".
func (p *pod) files(id, when string, want ...string) {
	p.t.Helper()
	for _, w := range want {
		name, value, _ := strings.Cut(w, "=")
		if got := p.sh(id, "cat /sys/fs/cgroup/"+name); got != value {
			p.t.Errorf("%s: %s is %q, want %q", when, name, got, value)
		}
	}
}

// holds makes a container use so many MiB of memory.
func holds(mib int) string {
	return fmt.Sprintf("dd if=/dev/zero of=/dev/shm/held bs=1M count=%d 2>&1", mib)
}

// TestResize changes the limits of a container that runs on, but not below what it uses: for that
// cgroup v2 would kill it.
func TestResize(t *testing.T) {
	unified(t)
	p := newPod(t, nil)
	start := limit(64<<20, 64<<20)
	start.CpuPeriod, start.CpuQuota, start.CpuShares = 100000, 20000, 1024
	id, _ := p.start(resources(start))
	p.files(id, "at first", "memory.max=67108864", "memory.swap.max=0", "cpu.max=20000 100000")
	weight := p.sh(id, "cat /sys/fs/cgroup/cpu.weight")
	p.sh(id, holds(24))
	events := p.sh(id, "cat /sys/fs/cgroup/memory.events")

	err := update(t, id, limit(8<<20, 8<<20))
	if err == nil || !strings.Contains(err.Error(), "usage") {
		t.Errorf("a limit below what is used: %v", err)
	}
	p.files(id, "after what was refused", "memory.max=67108864", "memory.events="+events)
	if s := p.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || s.GetResources().GetLinux().GetMemoryLimitInBytes() != 64<<20 {
		t.Errorf("after what was refused: %v", s)
	}

	more := limit(48<<20, 48<<20)
	more.CpuPeriod, more.CpuQuota, more.CpuShares = 50000, 30000, 4096
	if err := update(t, id, more); err != nil {
		t.Fatal(err)
	}
	p.files(id, "resized", "memory.max=50331648", "memory.swap.max=0", "cpu.max=30000 50000")
	if got := p.sh(id, "cat /sys/fs/cgroup/cpu.weight"); atoi(t, got) <= atoi(t, weight) {
		t.Errorf("of 4096 shares the weight is %s, of 1024 it was %s", got, weight)
	}
	if err := update(t, id, &runtimeapi.LinuxContainerResources{CpuPeriod: 50000, CpuQuota: -1}); err != nil {
		t.Fatal(err)
	}
	p.files(id, "without a quota", "memory.max=50331648", "cpu.max=max 50000")
	p.sh(id, "[ $(wc -c </dev/shm/held) = 25165824 ]")
}

func atoi(t *testing.T, s string) int {
	t.Helper()
	n, err := strconv.Atoi(strings.TrimSpace(s))
	if err != nil {
		t.Error(err)
	}
	return n
}

// TestUnifiedKeys writes files of cgroup v2 that the CRI has no field for, and wants them to last.
func TestUnifiedKeys(t *testing.T) {
	unified(t)
	p := newPod(t, nil)
	keys := func(kv ...string) *runtimeapi.LinuxContainerResources {
		r := &runtimeapi.LinuxContainerResources{Unified: map[string]string{}}
		for _, e := range kv {
			k, v, _ := strings.Cut(e, "=")
			r.Unified[k] = v
		}
		return r
	}
	id, _ := p.start(resources(keys("memory.high=33554432", "memory.low=1048576", "memory.oom.group=1", "pids.max=77")))
	p.files(id, "at first", "memory.high=33554432", "memory.low=1048576", "memory.oom.group=1", "pids.max=77", "memory.max=max")
	r := keys("memory.high=16777216")
	r.CpuPeriod, r.CpuQuota = 100000, 50000
	if err := update(t, id, r); err != nil {
		t.Fatal(err)
	}
	p.files(id, "updated", "memory.high=16777216", "memory.low=1048576", "pids.max=77", "cpu.max=50000 100000")

	_, _, err := p.create(resources(keys("../memory.high=1")))
	if status.Code(err) != codes.InvalidArgument || !strings.Contains(err.Error(), "../memory.high") {
		t.Errorf("a key that is no file's name: %v", err)
	}
	id, _, err = p.create(resources(keys("memory.nonsense=1")))
	if err == nil {
		_, err = rs.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	}
	if err == nil || !strings.Contains(err.Error(), "memory.nonsense") {
		t.Errorf("a file that the kernel does not have: %v", err)
	}
}

// TestSwap lets one container swap, and not another.
func TestSwap(t *testing.T) {
	unified(t)
	if data, err := node.ReadFile("/proc/swaps"); err != nil || strings.Count(string(data), "\n") < 2 {
		t.Skipf("this machine has no swap: %v", err)
	}
	p := newPod(t, nil)
	id, _ := p.start(resources(limit(24<<20, 88<<20)))
	p.files(id, "64 MiB of swap", "memory.max=25165824", "memory.swap.max=67108864")
	p.sh(id, holds(48))
	if used := atoi(t, p.sh(id, "cat /sys/fs/cgroup/memory.swap.current")); used < 16<<20 {
		t.Errorf("of 48 MiB in 24 there are %d bytes of swap", used)
	}
	r, err := rs.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if s := r.GetStats().GetSwap(); err != nil || s.GetSwapUsageBytes().GetValue() < 16<<20 || s.GetSwapAvailableBytes().GetValue() >= 64<<20 {
		t.Errorf("statistics of swap: %v, %v", s, err)
	}
	if err := update(t, id, &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 24 << 20, MemorySwapLimitInBytes: 56 << 20}); err != nil {
		t.Fatal(err)
	}
	p.files(id, "32 MiB of swap", "memory.max=25165824", "memory.swap.max=33554432")

	for name, r := range map[string]*runtimeapi.LinuxContainerResources{"forbidden": limit(24<<20, 24<<20), "not asked for": limit(24<<20, 0)} {
		id, _ := p.start(resources(r))
		p.files(id, name, "memory.swap.max=0")
		if _, _, code := p.exec(id, "sh", "-c", holds(48)); code == 0 {
			t.Errorf("swap is %s, and 48 MiB fit into 24", name)
		}
	}
}

// TestHugepages limits pages of 2 MiB, for what takes them: a file of hugetlbfs.
func TestHugepages(t *testing.T) {
	unified(t)
	const pages, mount = "/sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages", "/mnt/huge"
	if data, err := node.ReadFile(pages); err != nil || atoi(t, string(data)) < 4 {
		t.Skipf("this machine has not four huge pages: %q, %v", data, err)
	}
	if _, err := node.Run(t.Context(), "sh", "-c", "mkdir -p "+mount+" && mount -t hugetlbfs -o pagesize=2M none "+mount); err != nil {
		t.Fatal(err)
	}
	p := newPod(t, nil)
	t.Cleanup(func() {
		if _, err := node.Run(context.WithoutCancel(t.Context()), "umount", "-l", mount); err != nil {
			t.Error(err)
		}
	})
	id, _ := p.start(func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4 << 20}}}
		c.Mounts = []*runtimeapi.Mount{{HostPath: mount, ContainerPath: "/huge"}}
	})
	p.files(id, "at first", "hugetlb.2MB.max=4194304")
	p.sh(id, "fallocate -l 4M /huge/two")
	p.files(id, "with two pages", "hugetlb.2MB.current=4194304")
	p.fails(id, "fallocate -l 2M /huge/third", "fallocate")
	p.sh(id, "rm -f /huge/*")
	if err := update(t, id, &runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 2 << 20}}}); err != nil {
		t.Fatal(err)
	}
	p.files(id, "updated", "hugetlb.2MB.max=2097152")
	p.fails(id, "fallocate -l 4M /huge/two", "fallocate")
	p.sh(id, "rm -f /huge/*")
}

// TestPodResources tells of a new size of a pod's cgroup, which is the kubelet's: it stays as it is, and so do its containers.
func TestPodResources(t *testing.T) {
	unified(t)
	if cgroupDriver != runtimeapi.CgroupDriver_SYSTEMD {
		t.Skip("systemd does not have this machine's cgroups")
	}
	const slice = "pods-resized.slice"
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = slice })
	id, _ := p.start(resources(limit(24<<20, 24<<20)))
	if _, err := node.Run(t.Context(), "systemctl", "set-property", "--runtime", slice, "MemoryMax=96M"); err != nil {
		t.Fatal(err)
	}
	_, err := rs.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{
		PodSandboxId: p.id, Overhead: limit(8<<20, 8<<20), Resources: limit(96<<20, 96<<20),
	})
	if err != nil {
		t.Fatal(err)
	}
	data, err := node.ReadFile("/sys/fs/cgroup/pods.slice/" + slice + "/memory.max")
	if err != nil || strings.TrimSpace(string(data)) != "100663296" {
		t.Errorf("the pod's limit: %s, %v", data, err)
	}
	p.files(id, "its container", "memory.max=25165824")
	r, err := rs.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id})
	if free := r.GetStats().GetLinux().GetMemory().GetAvailableBytes().GetValue(); err != nil || free < 48<<20 || free > 96<<20 {
		t.Errorf("of the pod's 96 MiB %d bytes are free: %v", free, err)
	}
	_, err = rs.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: "not-there"})
	if status.Code(err) != codes.NotFound {
		t.Errorf("a sandbox that is not there: %v", err)
	}
}

// TestPressure wants the kernel's pressure in the statistics of a container that has too little CPU time.
func TestPressure(t *testing.T) {
	unified(t)
	if _, err := node.ReadFile("/proc/pressure/cpu"); err != nil {
		t.Skipf("this kernel does not account pressure: %v", err)
	}
	p := newPod(t, nil)
	id, _ := p.start(func(c *runtimeapi.ContainerConfig) {
		c.Command = []string{"sh", "-c", "while :; do :; done"}
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuPeriod: 100000, CpuQuota: 5000}
	})
	p.eventually(func() error {
		r, err := rs.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
		if s := r.GetStats(); err == nil && (s.GetCpu().GetPsi().GetSome().GetTotal() == 0 || s.GetCpu().GetPsi().GetFull().GetTotal() == 0) {
			err = fmt.Errorf("a container that is throttled: %v", s.GetCpu())
		}
		return err
	})
	r, err := rs.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	if s := r.GetStats(); err != nil || s.GetMemory().GetPsi() == nil || s.GetIo().GetPsi() == nil {
		t.Errorf("memory and I/O: %v, %v", s, err)
	}
	pods, err := rs.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: p.id})
	if l := pods.GetStats().GetLinux(); err != nil || l.GetCpu().GetPsi() == nil || l.GetMemory().GetPsi() == nil || l.GetIo().GetPsi() == nil {
		t.Errorf("the pod: %v, %v", l, err)
	}
	if !p.measured("container_pressure_cpu_stalled_seconds_total") {
		t.Error("no metric of the container tells of CPU pressure")
	}
}

// measured says whether a metric of the pod's containers has a value.
func (p *pod) measured(metric string) bool {
	p.t.Helper()
	m, err := rs.ListPodSandboxMetrics(p.t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		p.t.Fatal(err)
	}
	for _, pod := range m.GetPodMetrics() {
		for _, c := range pod.GetContainerMetrics() {
			if pod.GetPodSandboxId() == p.id && slices.ContainsFunc(c.GetMetrics(), func(v *runtimeapi.Metric) bool { return v.GetName() == metric }) {
				return true
			}
		}
	}
	return false
}
