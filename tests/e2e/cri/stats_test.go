// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"errors"
	"io"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestStats(t *testing.T) {
	p := newPod(t, nil)
	id, _ := p.start(func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{"stats": p.id} })
	p.sh(id, "dd if=/dev/zero of=/x bs=64k count=4 2>/dev/null; sync")
	p.start(nil)
	r, err := rs.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
	s := r.GetStats()
	if err != nil || s.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 || s.GetMemory().GetWorkingSetBytes().GetValue() == 0 || s.GetAttributes().GetId() != id {
		t.Errorf("statistics: %v, %v", s, err)
	}
	for _, f := range []*runtimeapi.ContainerStatsFilter{
		{Id: id}, {PodSandboxId: p.id, LabelSelector: map[string]string{"stats": p.id}}, {LabelSelector: map[string]string{"stats": p.id}},
	} {
		l, err := rs.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: f})
		if err != nil || len(l.GetStats()) != 1 || l.GetStats()[0].GetAttributes().GetId() != id {
			t.Errorf("%v: %v, %v", f, l, err)
		}
	}
	pods, err := rs.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{Id: p.id}})
	if err != nil || len(pods.GetStats()) != 1 || len(pods.GetStats()[0].GetLinux().GetContainers()) != 2 {
		t.Fatalf("pods: %v, %v", pods, err)
	}
	linux := pods.GetStats()[0].GetLinux()
	if linux.GetNetwork().GetDefaultInterface().GetName() != "eth0" || linux.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 {
		t.Errorf("pod: %v", linux)
	}
	p.eventually(func() error {
		_, err := rs.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: id})
		return err
	})
}

// optional has what there may be nothing to say of, without block devices of its own, huge pages, or the
// kernel's pressure accounting; and what containerd describes and does not measure.
func optional(metric string) bool {
	names := []string{"container_blkio_", "container_fs_reads_", "container_fs_writes_", "container_hugetlb_", "container_pressure_"}
	if !onNodeagent() {
		names = append(names, "container_ulimits_soft", "container_spec_memory_reservation_limit_bytes")
	}
	return slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(metric, n) })
}

// TestMetrics wants a value for every metric that is described, with as many labels.
func TestMetrics(t *testing.T) {
	p := newPod(t, nil)
	id, _ := p.start(func(c *runtimeapi.ContainerConfig) {
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{
			CpuPeriod: 100000, CpuQuota: 20000, CpuShares: 1024, MemoryLimitInBytes: 64 << 20, MemorySwapLimitInBytes: 64 << 20,
		}
	})
	p.sh(id, "mkdir /d && for i in 1 2 3 4 5; do echo hi >/d/$i; done; sync")
	r, err := rs.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil || len(r.GetDescriptors()) < 45 {
		t.Fatalf("%d descriptors: %v", len(r.GetDescriptors()), err)
	}
	m, err := rs.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	labels := map[string]int{}
	for _, pod := range m.GetPodMetrics() {
		if pod.GetPodSandboxId() != p.id {
			continue
		}
		all := pod.GetMetrics()
		for _, c := range pod.GetContainerMetrics() {
			all = append(all, c.GetMetrics()...)
		}
		for _, v := range all {
			labels[v.GetName()] = len(v.GetLabelValues())
		}
	}
	for _, d := range r.GetDescriptors() {
		if d.GetHelp() == "" || len(d.GetLabelKeys()) == 0 {
			t.Errorf("%s is not described: %v", d.GetName(), d)
		}
		n, found := labels[d.GetName()]
		if !found && !optional(d.GetName()) {
			t.Errorf("%s has no value", d.GetName())
		}
		if found && n != len(d.GetLabelKeys()) {
			t.Errorf("%s has %d labels of %d", d.GetName(), n, len(d.GetLabelKeys()))
		}
	}
}

func TestStatus(t *testing.T) {
	r, err := rs.Status(t.Context(), &runtimeapi.StatusRequest{Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	for _, want := range []string{runtimeapi.RuntimeReady, runtimeapi.NetworkReady} {
		if !slices.ContainsFunc(r.GetStatus().GetConditions(), func(c *runtimeapi.RuntimeCondition) bool { return c.GetType() == want && c.GetStatus() }) {
			t.Errorf("%s is not true: %v", want, r.GetStatus())
		}
	}
	if len(r.GetInfo()) == 0 || len(r.GetRuntimeHandlers()) == 0 {
		t.Errorf("verbose status says nothing: %v", r)
	}
	v, err := rs.Version(t.Context(), &runtimeapi.VersionRequest{Version: "v1"})
	if err != nil || v.GetRuntimeApiVersion() != "v1" || v.GetRuntimeName() == "" || v.GetRuntimeVersion() == "" || v.GetVersion() == "" {
		t.Errorf("version: %v, %v", v, err)
	}
}

// TestLists filters by everything, and by what fits nothing.
func TestLists(t *testing.T) {
	p := newPod(t, nil)
	id, _ := p.start(func(c *runtimeapi.ContainerConfig) { c.Labels = map[string]string{"l": p.id} })
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	for f, want := range map[*runtimeapi.ContainerFilter]int{
		{Id: id}: 1, {PodSandboxId: p.id}: 1, {PodSandboxId: p.id, State: running}: 1, {LabelSelector: map[string]string{"l": p.id}}: 1,
		{Id: "not-there"}: 0, {Id: id, LabelSelector: map[string]string{"l": "other"}}: 0,
	} {
		l, err := rs.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: f})
		if err != nil || len(l.GetContainers()) != want {
			t.Errorf("containers %v: %v, %v", f, l, err)
		}
	}
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	for f, want := range map[*runtimeapi.PodSandboxFilter]int{
		{Id: p.id}: 1, {LabelSelector: p.config.GetLabels(), State: ready}: 1, {LabelSelector: map[string]string{"test": "other"}}: 0, {Id: "not-there"}: 0,
	} {
		l, err := rs.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: f})
		if err != nil || len(l.GetItems()) != want {
			t.Errorf("sandboxes %v: %v, %v", f, l, err)
		}
	}
}

// TestCreatedStats counts a container that was created and not started, whatever the filter.
func TestCreatedStats(t *testing.T) {
	p := newPod(t, nil)
	id, _, err := p.create(nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range []*runtimeapi.ContainerStatsFilter{nil, {}, {PodSandboxId: p.id}} {
		l, err := rs.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{Filter: f})
		if err != nil || !slices.ContainsFunc(l.GetStats(), func(s *runtimeapi.ContainerStats) bool { return s.GetAttributes().GetId() == id }) {
			t.Errorf("%v: %d statistics, %v", f, len(l.GetStats()), err)
		}
	}
	c, err := rs.RuntimeConfig(t.Context(), &runtimeapi.RuntimeConfigRequest{})
	if err != nil || c.GetLinux().GetCgroupDriver() != cgroupDriver {
		t.Errorf("cgroup driver: %v, %v, want %v", c, err, cgroupDriver)
	}
}

// TestStreamedLists are those that are not streamed.
func TestStreamedLists(t *testing.T) {
	p := newPod(t, nil)
	id, _ := p.start(nil)
	pods, err := rs.StreamPodSandboxes(t.Context(), &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{Id: p.id}})
	if err != nil {
		t.Fatal(err)
	}
	first, err := pods.Recv()
	if err != nil || len(first.GetPodSandboxes()) != 1 || first.GetPodSandboxes()[0].GetId() != p.id {
		t.Errorf("sandboxes: %v, %v", first, err)
	}
	if _, err := pods.Recv(); !errors.Is(err, io.EOF) {
		t.Errorf("after the last sandbox: %v", err)
	}
	list, err := rs.StreamContainers(t.Context(), &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: p.id}})
	if err != nil {
		t.Fatal(err)
	}
	one, err := list.Recv()
	if err != nil || len(one.GetContainers()) != 1 || one.GetContainers()[0].GetId() != id {
		t.Errorf("containers: %v, %v", one, err)
	}
}
