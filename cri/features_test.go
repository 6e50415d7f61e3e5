// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd/containerdtest"
)

func TestRootUserNamespace(t *testing.T) {
	r := newRig(t)
	pod := r.pod("mapped")
	userns := &runtimeapi.UserNamespace{
		Mode: runtimeapi.NamespaceMode_POD,
		Uids: []*runtimeapi.IDMapping{{HostId: 1 << 20, ContainerId: 0, Length: 65536}},
		Gids: []*runtimeapi.IDMapping{{HostId: 1 << 20, ContainerId: 0, Length: 65536}},
	}
	pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = userns
	pod.Linux.Sysctls = map[string]string{"net.ipv4.ip_local_port_range": "20000 20100", "kernel.shm_rmid_forced": "1"}
	sb := r.runPod(pod)
	host := filepath.Join(r.daemon.Dir, "vol")
	if err := os.WriteFile(host, []byte("owned\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	out := r.sh(sb, pod, "id", `cat /proc/self/uid_map; id -u; touch /dev/shm/x; stat -c %u /bin/busybox /vol /etc/passwd; cat /vol
		cat /proc/sys/net/ipv4/ip_local_port_range /proc/sys/kernel/shm_rmid_forced; hostname`, func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = userns
		c.Mounts = []*runtimeapi.Mount{{HostPath: host, ContainerPath: "/vol", UidMappings: userns.Uids, GidMappings: userns.Gids}}
	})
	if want := "0\n0\n0\n0\nowned\n20000\t20100\n1\nmapped\n"; !strings.Contains(out, "1048576") || !strings.HasSuffix(out, want) {
		t.Errorf("got %q, want it to end with %q", out, want)
	}
}

func TestRootHostNamespaces(t *testing.T) {
	r := newRig(t)
	pod := r.pod("onhost")
	o := pod.Linux.SecurityContext.NamespaceOptions
	o.Network, o.Pid, o.Ipc = runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE, runtimeapi.NamespaceMode_NODE
	sb := r.runPod(pod)
	st, err := r.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sb})
	if err != nil || st.Status.Network.Ip != "" || st.Status.Linux.Namespaces.Options.Network != runtimeapi.NamespaceMode_NODE {
		t.Errorf("status %v, %v", st, err)
	}
	if n := r.net.size(); n != 0 {
		t.Errorf("%d attachments", n)
	}
	out := r.sh(sb, pod, "ns", "for n in net pid ipc; do readlink /proc/self/ns/$n; done", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = o
	})
	var want strings.Builder
	for _, n := range []string{"net", "pid", "ipc"} {
		l, err := os.Readlink("/proc/self/ns/" + n)
		if err != nil {
			t.Fatal(err)
		}
		want.WriteString(l + "\n")
	}
	if out != want.String() {
		t.Errorf("namespaces %q, the host's are %q", out, want.String())
	}
}

func TestRootTargetNamespace(t *testing.T) {
	r := newRig(t)
	pod := r.pod("debug")
	sb := r.runPod(pod)
	main := r.run(sb, pod, r.shell("main", "sleep 4321"))
	out := r.sh(sb, pod, "debug", "ps", func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET
		c.Linux.SecurityContext.NamespaceOptions.TargetId = main
	})
	if !strings.Contains(out, "sleep 4321") {
		t.Errorf("processes seen: %s", out)
	}
}

func TestRootImageDeclaresVolumeAndUser(t *testing.T) {
	r := newRig(t)
	r.daemon.Import(t, func(i *ocispec.Image) {
		i.Config.Volumes = map[string]struct{}{"/data": {}}
		i.Config.User, i.Config.WorkingDir, i.Config.StopSignal = "alice", "/tmp", "SIGUSR1"
		i.Config.Env = append(i.Config.Env, "FROM=image", "BOTH=image")
	})
	r.eventually("the new image is known", func() bool {
		resp, err := r.img.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: containerdtest.Busybox}})
		return err == nil && resp.GetImage().GetUsername() == "alice"
	})
	pod := r.pod("declared")
	sb := r.runPod(pod)
	cfg := r.shell("c", "id; pwd; env | grep -E '^(FROM|BOTH|POD)=' | tr '\\n' ' '; cat /data/file; mount | grep -c ' /data '")
	cfg.Envs = []*runtimeapi.KeyValue{{Key: "BOTH", Value: []byte("pod")}, {Key: "POD", Value: []byte("pod")}}
	id := r.run(sb, pod, cfg)
	st := r.exited(id)
	out := r.output("c")
	for _, want := range []string{"uid=1000(alice)", "2000(team)", "/tmp\n", "FROM=image", "BOTH=pod", "POD=pod", "from the image\n1\n"} {
		if !strings.Contains(out, want) {
			t.Errorf("output %q has no %q", out, want)
		}
	}
	if st.StopSignal != runtimeapi.Signal_SIGNAL_SIGUSR1 || st.User.GetLinux().GetUid() != 1000 {
		t.Errorf("status %v", st)
	}
}

func TestRootUpdateResources(t *testing.T) {
	r := newRig(t)
	pod := r.pod("resized")
	sb := r.runPod(pod)
	cfg := r.shell("c", "sleep 1000")
	cfg.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 64 << 20, CpuShares: 100, CpuQuota: 50000, CpuPeriod: 100000}
	id := r.run(sb, pod, cfg)
	_, err := r.rt.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuShares: 200},
	})
	if err != nil {
		t.Fatal(err)
	}
	res := r.status(id).Resources.Linux
	if res.MemoryLimitInBytes != 128<<20 || res.CpuShares != 200 || res.CpuQuota != 50000 {
		t.Errorf("status %v", res)
	}
	if got := r.cgroupFile(id, "memory/memory.limit_in_bytes", "memory.max"); got != fmt.Sprint(128<<20) {
		t.Errorf("limit in the cgroup: %s", got)
	}
	// A limit below what is in use fails and changes nothing.
	_, err = r.rt.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 4096},
	})
	if err == nil {
		t.Error("a limit of one page was taken")
	}
	_, err = r.rt.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: id, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -5},
	})
	if status.Code(err) != codes.InvalidArgument {
		t.Errorf("a negative limit: %v", err)
	}
	if got := r.status(id).Resources.Linux; got.MemoryLimitInBytes != 128<<20 {
		t.Errorf("after a refused update: %v", got)
	}
	if _, err := r.rt.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: sb}); err != nil {
		t.Error(err)
	}
}

// cgroupFile reads a file of a container's cgroup, by its path on v1 or v2.
func (r *rig) cgroupFile(id, v1, v2 string) string {
	r.t.Helper()
	ctl, file, _ := strings.Cut(v1, "/")
	b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup", ctl, r.cgroup, id, file))
	if err != nil {
		b, err = os.ReadFile(filepath.Join("/sys/fs/cgroup", r.cgroup, id, v2))
	}
	if err != nil {
		r.t.Fatal(err)
	}
	return strings.TrimSpace(string(b))
}

func TestRootOOMKilled(t *testing.T) {
	r := newRig(t)
	pod := r.pod("greedy")
	sb := r.runPod(pod)
	cfg := r.shell("c", "exec dd if=/dev/zero of=/dev/null bs=200M count=1")
	cfg.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20}
	if st := r.exited(r.run(sb, pod, cfg)); st.Reason != "OOMKilled" || st.ExitCode != 137 {
		t.Errorf("status %v", st)
	}
}

// TestRootOOMKilledChild has a process killed that is not the container's first.
func TestRootOOMKilledChild(t *testing.T) {
	r := newRig(t)
	pod := r.pod("greedy")
	sb := r.runPod(pod)
	for code, want := range map[int]string{0: "Completed", 3: "OOMKilled"} {
		cfg := r.shell(fmt.Sprintf("c%d", code), fmt.Sprintf("dd if=/dev/zero of=/dev/null bs=200M count=1; echo $?; while [ ! -e /go ]; do sleep 0.02; done; exit %d", code))
		cfg.Linux.Resources = &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 32 << 20, MemorySwapLimitInBytes: 32 << 20}
		id := r.run(sb, pod, cfg)
		r.eventually("the child is killed", func() bool { return strings.Contains(r.output(cfg.Metadata.Name), "137\n") })
		if st := r.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
			t.Fatalf("the container does not go on: %v", st)
		}
		if n := r.metric(id, "container_oom_events_total"); n != 1 {
			t.Errorf("%d kills are counted while it runs", n)
		}
		if _, err := r.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"touch", "/go"}, Timeout: 20}); err != nil {
			t.Fatal(err)
		}
		st := r.exited(id)
		if st.ExitCode != int32(code) || st.Reason != want || !strings.HasSuffix(st.Message, "for want of memory: 1") {
			t.Errorf("status %v, want reason %s", st, want)
		}
	}
}

// metric is a container's value of a metric.
func (r *rig) metric(id, name string) uint64 {
	r.t.Helper()
	m, err := r.rt.ListPodSandboxMetrics(r.t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil {
		r.t.Fatal(err)
	}
	for _, p := range m.PodMetrics {
		for _, c := range p.ContainerMetrics {
			for _, v := range c.Metrics {
				if c.ContainerId == id && v.Name == name {
					return v.Value.GetValue()
				}
			}
		}
	}
	r.t.Fatalf("container %s has no %s", id, name)
	return 0
}

func TestRootLogRotation(t *testing.T) {
	r := newRig(t)
	pod := r.pod("rotated")
	sb := r.runPod(pod)
	id := r.run(sb, pod, r.shell("c", "i=0; while true; do i=$((i+1)); echo $i; sleep 0.01; done"))
	path := filepath.Join(r.logs, "c.log")
	r.eventually("output", func() bool { return strings.Count(r.output("c"), "\n") > 3 })
	if err := os.Rename(path, filepath.Join(r.logs, "old.log")); err != nil {
		t.Fatal(err)
	}
	if _, err := r.rt.ReopenContainerLog(t.Context(), &runtimeapi.ReopenContainerLogRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	r.eventually("output in the new file", func() bool { return strings.Count(r.output("c"), "\n") > 3 })
	for i, l := range strings.Split(strings.TrimSpace(r.output("old")+r.output("c")), "\n") {
		if l != fmt.Sprint(i+1) {
			t.Fatalf("line %d is %q", i+1, l)
		}
	}
}

func TestRootEvents(t *testing.T) {
	r := newRig(t)
	events, err := r.rt.GetContainerEvents(t.Context(), &runtimeapi.GetEventsRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var mu sync.Mutex
	var got []string
	var wg sync.WaitGroup
	wg.Go(func() {
		for {
			ev, err := events.Recv()
			if err != nil {
				if !errors.Is(err, io.EOF) && status.Code(err) != codes.Canceled && status.Code(err) != codes.Unavailable {
					t.Errorf("events ended with %v", err)
				}
				return
			}
			if ev.PodSandboxStatus.GetMetadata().GetName() != "watched" || ev.CreatedAt <= 0 {
				t.Errorf("event %v", ev)
			}
			mu.Lock()
			got = append(got, ev.ContainerEventType.String())
			mu.Unlock()
		}
	})
	// The listener is registered when its first event arrives; sandboxes are made until then.
	seen := func() int {
		mu.Lock()
		defer mu.Unlock()
		return len(got)
	}
	for i := 0; seen() == 0; i++ {
		pod := r.pod("watched")
		pod.Metadata.Attempt = uint32(i)
		sb := r.runPod(pod)
		if _, err := r.rt.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb}); err != nil {
			t.Fatal(err)
		}
	}
	r.eventually("the last sandbox is deleted", func() bool {
		mu.Lock()
		defer mu.Unlock()
		return got[len(got)-1] == "CONTAINER_DELETED_EVENT"
	})
	mu.Lock()
	got = nil
	mu.Unlock()
	pod := r.pod("watched")
	pod.Metadata.Attempt = 1 << 20
	sb := r.runPod(pod)
	r.exited(r.run(sb, pod, r.shell("c", "true")))
	if _, err := r.rt.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb}); err != nil {
		t.Fatal(err)
	}
	const want = "CREATED STARTED CREATED STARTED STOPPED STOPPED DELETED DELETED"
	text := func() string {
		mu.Lock()
		defer mu.Unlock()
		return strings.NewReplacer("CONTAINER_", "", "_EVENT", "").Replace(strings.Join(got, " "))
	}
	r.eventually("all events: "+want, func() bool { return strings.Count(text(), " ") >= 7 })
	if text() != want {
		t.Errorf("got %s", text())
	}
	r.server.Ready()
	if err := events.CloseSend(); err != nil {
		t.Error(err)
	}
	t.Cleanup(wg.Wait)
}

func TestRootLists(t *testing.T) {
	r := newRig(t)
	a, b := r.pod("a"), r.pod("b")
	sa, sb := r.runPod(a), r.runPod(b)
	ca := r.run(sa, a, r.shell("ca", "sleep 1000"))
	cb := r.create(sb, b, r.shell("cb", "true"))
	ready := &runtimeapi.PodSandboxStateValue{State: runtimeapi.PodSandboxState_SANDBOX_READY}
	for _, tc := range []struct {
		name   string
		filter *runtimeapi.PodSandboxFilter
		want   []string
	}{
		{"all", nil, []string{sb, sa}},
		{"id", &runtimeapi.PodSandboxFilter{Id: sa}, []string{sa}},
		{"prefix", &runtimeapi.PodSandboxFilter{Id: sa[:10]}, []string{sa}},
		{"absent", &runtimeapi.PodSandboxFilter{Id: "xyz"}, nil},
		{"label", &runtimeapi.PodSandboxFilter{LabelSelector: map[string]string{"app": "b"}, State: ready}, []string{sb}},
		{"id and label", &runtimeapi.PodSandboxFilter{Id: sa, LabelSelector: map[string]string{"app": "b"}}, nil},
	} {
		resp, err := r.rt.ListPodSandbox(t.Context(), &runtimeapi.ListPodSandboxRequest{Filter: tc.filter})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range resp.Items {
			got = append(got, i.Id)
		}
		if fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
	running := &runtimeapi.ContainerStateValue{State: runtimeapi.ContainerState_CONTAINER_RUNNING}
	for _, tc := range []struct {
		name   string
		filter *runtimeapi.ContainerFilter
		want   []string
	}{
		{"all", nil, []string{cb, ca}},
		{"state", &runtimeapi.ContainerFilter{State: running}, []string{ca}},
		{"sandbox", &runtimeapi.ContainerFilter{PodSandboxId: sb}, []string{cb}},
		{"sandbox and state", &runtimeapi.ContainerFilter{PodSandboxId: sb, State: running}, nil},
	} {
		resp, err := r.rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: tc.filter})
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, i := range resp.Containers {
			got = append(got, i.Id)
		}
		if fmt.Sprint(got) != fmt.Sprint(tc.want) {
			t.Errorf("%s: %v, want %v", tc.name, got, tc.want)
		}
	}
	r.statistics(ca, sa)
}

// statistics checks the lists of statistics of two pods with a container each.
func (r *rig) statistics(container, sandbox string) {
	t := r.t
	t.Helper()
	cs, err := r.rt.ListContainerStats(t.Context(), &runtimeapi.ListContainerStatsRequest{})
	if err != nil || len(cs.Stats) != 2 {
		t.Errorf("container stats %v, %v", cs, err)
	}
	one, err := r.rt.ContainerStats(t.Context(), &runtimeapi.ContainerStatsRequest{ContainerId: container})
	if err != nil || one.Stats.GetMemory().GetWorkingSetBytes().GetValue() == 0 || one.Stats.GetCpu().GetUsageCoreNanoSeconds().GetValue() == 0 {
		t.Errorf("container stats %v, %v", one, err)
	}
	ps, err := r.rt.PodSandboxStats(t.Context(), &runtimeapi.PodSandboxStatsRequest{PodSandboxId: sandbox})
	if err != nil || len(ps.Stats.GetLinux().GetContainers()) != 1 {
		t.Errorf("pod stats %v, %v", ps, err)
	}
	d, err := r.rt.ListMetricDescriptors(t.Context(), &runtimeapi.ListMetricDescriptorsRequest{})
	if err != nil || len(d.Descriptors) < 56 {
		t.Errorf("%d descriptors, %v", len(d.GetDescriptors()), err)
	}
	m, err := r.rt.ListPodSandboxMetrics(t.Context(), &runtimeapi.ListPodSandboxMetricsRequest{})
	if err != nil || len(m.PodMetrics) != 2 {
		t.Errorf("metrics of %d pods, %v", len(m.GetPodMetrics()), err)
	}
}

func TestRootImageVolume(t *testing.T) {
	r := newRig(t)
	pod := r.pod("data")
	sb := r.runPod(pod)
	image := &runtimeapi.ImageSpec{Image: containerdtest.Busybox}
	cfg := r.shell("c", "cat /whole/data/file /part/file; touch /whole/x 2>&1 | grep -o Read-only")
	cfg.Mounts = []*runtimeapi.Mount{
		{ContainerPath: "/whole", Image: image, Readonly: true},
		{ContainerPath: "/part", Image: image, ImageSubPath: "data", Readonly: true},
	}
	st := r.exited(r.run(sb, pod, cfg))
	if out := r.output("c"); out != "from the image\nfrom the image\nRead-only\n" {
		t.Errorf("output %q", out)
	}
	if len(st.Mounts) != 2 || !strings.Contains(st.Mounts[0].Image.ImageRef, "@sha256:") || st.Mounts[1].ImageSubPath != "data" {
		t.Errorf("mounts %v", st.Mounts)
	}
	for name, m := range map[string]*runtimeapi.Mount{
		"absent":   {ContainerPath: "/a", Image: image, ImageSubPath: "nowhere"},
		"escaping": {ContainerPath: "/a", Image: image, ImageSubPath: "../.."},
		"a file":   {ContainerPath: "/a", Image: image, ImageSubPath: "data/file"},
		"no image": {ContainerPath: "/a", Image: &runtimeapi.ImageSpec{Image: "absent.test/x:1"}},
	} {
		cfg := r.shell("bad", "true")
		cfg.Mounts = []*runtimeapi.Mount{m}
		_, err := r.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sb, Config: cfg, SandboxConfig: pod})
		if !strings.HasPrefix(status.Convert(err).Message(), "ImageVolumeMountFailed: ") {
			t.Errorf("%s: %v", name, err)
		}
	}
}
