// SPDX-License-Identifier: Apache-2.0

package stats_test

import (
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/stats"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func needRoot(tb testing.TB) {
	tb.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
		tb.Skip("needs root, and NODEAGENT_SKIP_ROOT=1")
	}
	tb.Fatal("needs root; set NODEAGENT_SKIP_ROOT=1 to leave the root tests out")
}

func collector(tb testing.TB, root string, layers stats.Layers) *stats.Collector {
	tb.Helper()
	cfg := stats.Default()
	if root != "" {
		cfg.CgroupRoot = root
	}
	c, err := stats.New(cfg, layers)
	if err != nil {
		tb.Fatal(err)
	}
	if err := c.Start(context.Background()); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := c.Stop(context.Background()); err != nil {
			tb.Error(err)
		}
	})
	return c
}

// write makes the files of a fake cgroup file system.
func write(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, text := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
}

const pressure = "some avg10=1.50 avg60=0.25 avg300=0.00 total=3000000\nfull avg10=0.00 avg60=0.00 avg300=0.00 total=1000000\n"

// v2 is a container's cgroup in the unified hierarchy, as the kernel writes it.
func v2() map[string]string {
	return map[string]string{
		"cgroup.controllers":        "cpuset cpu io memory hugetlb pids\n",
		"pod/c/cpu.stat":            "usage_usec 5000000\nuser_usec 3000000\nsystem_usec 2000000\nnr_periods 7\nnr_throttled 3\nthrottled_usec 4000000\n",
		"pod/c/memory.current":      "1000000\n",
		"pod/c/memory.stat":         "anon 300000\nfile 600000\nkernel 50000\nfile_mapped 1234\ninactive_file 400000\nactive_file 200000\npgfault 77\npgmajfault 5\n",
		"pod/c/memory.max":          "2000000\n",
		"pod/c/memory.peak":         "1500000\n",
		"pod/c/memory.low":          "1000\n",
		"pod/c/memory.events":       "low 0\nhigh 0\nmax 9\noom 1\noom_kill 2\n",
		"pod/c/memory.swap.current": "4096\n",
		"pod/c/memory.swap.max":     "8192\n",
		"pod/c/pids.current":        "11\n",
		"pod/c/pids.max":            "max\n",
		"pod/c/cgroup.procs":        "",
		"pod/c/cpu.max":             "50000 100000\n",
		"pod/c/cpu.weight":          "100\n",
		"pod/c/io.stat":             "259:7 rbytes=100 wbytes=200 rios=3 wios=4 dbytes=0 dios=0\n",
		"pod/c/cpu.pressure":        pressure,
		"pod/c/memory.pressure":     pressure,
		"pod/c/io.pressure":         pressure,
	}
}

func TestUnified(t *testing.T) {
	root := t.TempDir()
	write(t, root, v2())
	c := collector(t, root, nil)
	got := c.Containers([]stats.Container{{ID: "c", Cgroup: "/pod/c"}})[0]
	for name, pair := range map[string][2]uint64{
		"cpu":         {got.Cpu.UsageCoreNanoSeconds.Value, 5e9},
		"usage":       {got.Memory.UsageBytes.Value, 1000000},
		"working set": {got.Memory.WorkingSetBytes.Value, 600000},
		"available":   {got.Memory.AvailableBytes.Value, 1400000},
		"rss":         {got.Memory.RssBytes.Value, 300000},
		"faults":      {got.Memory.PageFaults.Value, 77},
		"major":       {got.Memory.MajorPageFaults.Value, 5},
		"swap":        {got.Swap.SwapUsageBytes.Value, 4096},
		"swap left":   {got.Swap.SwapAvailableBytes.Value, 4096},
	} {
		if pair[0] != pair[1] {
			t.Errorf("%s %d, want %d", name, pair[0], pair[1])
		}
	}
	if got.Cpu.UsageNanoCores != nil {
		t.Error("a rate from one reading")
	}
	if p := got.Memory.Psi; p.GetSome().GetTotal() != 3e9 || p.GetSome().GetAvg10() != 1.5 || p.GetFull().GetTotal() != 1e9 {
		t.Errorf("pressure %v", p)
	}
	if got.Io.GetPsi() == nil || got.Cpu.Psi == nil {
		t.Error("pressure is missing")
	}
}

// values maps "name{extra labels}" to values and checks that the labels agree
// with the descriptors.
func values(t *testing.T, list []*runtimeapi.Metric) map[string]uint64 {
	t.Helper()
	keys := map[string]int{}
	for _, d := range stats.Descriptors() {
		keys[d.Name] = len(d.LabelKeys)
	}
	out := map[string]uint64{}
	for _, m := range list {
		if n, ok := keys[m.Name]; !ok || n != len(m.LabelValues) {
			t.Errorf("%s has %d label values, its descriptor %d", m.Name, len(m.LabelValues), n)
		}
		out[m.Name+"{"+strings.Join(m.LabelValues[6:], ",")+"}"] = m.Value.Value
	}
	return out
}

func TestUnifiedMetrics(t *testing.T) {
	root := t.TempDir()
	write(t, root, v2())
	c := collector(t, root, oneLayer{})
	pod := stats.Pod{ID: "p", Cgroup: "/pod", Containers: []stats.Container{{
		ID: "c", Cgroup: "/pod/c", Image: "img", Pid: os.Getpid(), Started: time.Unix(1000, 0), SnapshotKey: "c",
		Attributes: &runtimeapi.ContainerAttributes{Metadata: &runtimeapi.ContainerMetadata{Name: "main"}},
	}}, Attributes: &runtimeapi.PodSandboxAttributes{Metadata: &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "ns"}}}
	m := c.Metrics([]stats.Pod{pod})[0]
	if want := []string{"main", "/pod/c", "img", "c", "ns", "web"}; strings.Join(m.ContainerMetrics[0].Metrics[0].LabelValues, " ") != strings.Join(want, " ") {
		t.Errorf("labels %v", m.ContainerMetrics[0].Metrics[0].LabelValues)
	}
	got := values(t, m.ContainerMetrics[0].Metrics)
	for name, want := range map[string]uint64{
		"container_cpu_usage_seconds_total{}":                   5,
		"container_cpu_user_seconds_total{}":                    3,
		"container_cpu_cfs_throttled_seconds_total{}":           4,
		"container_cpu_cfs_throttled_periods_total{}":           3,
		"container_memory_working_set_bytes{}":                  600000,
		"container_memory_max_usage_bytes{}":                    1500000,
		"container_memory_failcnt{}":                            9,
		"container_oom_events_total{}":                          2,
		"container_memory_failures_total{pgfault,container}":    77,
		"container_memory_total_active_file_bytes{}":            200000,
		"container_threads{}":                                   11,
		"container_threads_max{}":                               0,
		"container_spec_cpu_quota{}":                            50000,
		"container_spec_cpu_period{}":                           100000,
		"container_spec_cpu_shares{}":                           1024,
		"container_spec_memory_limit_bytes{}":                   2000000,
		"container_spec_memory_reservation_limit_bytes{}":       1000,
		"container_spec_memory_swap_limit_bytes{}":              8192,
		"container_fs_reads_bytes_total{259:7}":                 100,
		"container_fs_writes_total{259:7}":                      4,
		"container_blkio_device_usage_total{259:7,259,7,Write}": 200,
		"container_pressure_io_waiting_seconds_total{}":         3,
		"container_pressure_memory_stalled_seconds_total{}":     1,
		"container_start_time_seconds{}":                        1000,
		"container_fs_usage_bytes{/dev/x}":                      123,
		"container_processes{}":                                 0,
	} {
		if v, ok := got[name]; !ok || v != want {
			t.Errorf("%s = %d (%v), want %d", name, v, ok, want)
		}
	}
	if len(stats.Descriptors()) != 58 {
		t.Errorf("%d descriptors", len(stats.Descriptors()))
	}
}

type oneLayer struct{}

func (oneLayer) Layer(string, string) (stats.Layer, bool) {
	return stats.Layer{Bytes: 123, Inodes: 4, At: time.Unix(5, 0), Mountpoint: "/", Device: "/dev/x"}, true
}

// TestVanished: a cgroup that is not there gives attributes and the layer only.
func TestVanished(t *testing.T) {
	root := t.TempDir()
	write(t, root, v2())
	c := collector(t, root, oneLayer{})
	attr := &runtimeapi.ContainerAttributes{Id: "x"}
	for _, cgroup := range []string{"", "/pod/none"} {
		got := c.Containers([]stats.Container{{ID: "x", Cgroup: cgroup, Attributes: attr}})[0]
		if got.Attributes != attr || got.Cpu != nil || got.Memory != nil || got.WritableLayer.UsedBytes.Value != 123 {
			t.Errorf("%q: %v", cgroup, got)
		}
	}
	pod := c.Pods([]stats.Pod{{ID: "p", Cgroup: "/none", NetNS: "/none", Containers: []stats.Container{{ID: "x"}}}})[0]
	if pod.Linux.Cpu != nil || pod.Linux.Network != nil || len(pod.Linux.Containers) != 1 {
		t.Errorf("%v", pod)
	}
	c.Forget("x")
	c.Forget("never seen")
}

// v1Group makes a real cgroup in each hierarchy of version 1 and runs a
// process in it.
func v1Group(t *testing.T) string {
	t.Helper()
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		t.Skip("this machine has the unified hierarchy only")
	}
	name := fmt.Sprintf("/nodeagent-stats-%d", os.Getpid())
	controllers := []string{"cpu", "cpuacct", "memory", "pids", "blkio"}
	for _, c := range controllers {
		dir := filepath.Join("/sys/fs/cgroup", c, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		})
	}
	// The shell moves itself, then burns some CPU and waits for its input's end.
	var script strings.Builder
	for _, c := range controllers {
		fmt.Fprintf(&script, "echo $$ > /sys/fs/cgroup/%s%s/cgroup.procs; ", c, name)
	}
	script.WriteString("i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; echo ready; read x")
	cmd := exec.CommandContext(t.Context(), "/bin/sh", "-c", script.String())
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = in.Close()
		_ = cmd.Wait()
	})
	if _, err := out.Read(make([]byte, 6)); err != nil {
		t.Fatal(err)
	}
	return name
}

func TestRootVersion1(t *testing.T) {
	needRoot(t)
	group := v1Group(t)
	c := collector(t, "", nil)
	ctr := []stats.Container{{ID: "c", Cgroup: group}}
	got := c.Containers(ctr)[0]
	if got.Cpu.GetUsageCoreNanoSeconds().GetValue() == 0 || got.Memory.GetUsageBytes().GetValue() == 0 ||
		got.Memory.GetWorkingSetBytes().GetValue() == 0 ||
		got.Memory.AvailableBytes != nil || got.Swap == nil {
		t.Errorf("%v", got)
	}
	pod := c.Pods([]stats.Pod{{ID: "p", Cgroup: group}})[0]
	if pod.Linux.Process.GetProcessCount().GetValue() != 1 {
		t.Errorf("processes %v", pod.Linux.Process)
	}
	m := values(t, c.Metrics([]stats.Pod{{ID: "p", Cgroup: group, Containers: ctr}})[0].ContainerMetrics[0].Metrics)
	for _, name := range []string{
		"container_processes{}", "container_file_descriptors{}", "container_threads{}", "container_memory_usage_bytes{}",
		"container_memory_max_usage_bytes{}", "container_spec_cpu_shares{}", "container_spec_cpu_period{}",
	} {
		if m[name] == 0 {
			t.Errorf("%s is 0", name)
		}
	}
}

// TestRate: two readings a second apart give a rate, and a third at once does
// not disturb it. The kernel's clock is that of the files here.
func TestRate(t *testing.T) {
	root := t.TempDir()
	write(t, root, v2())
	c := collector(t, root, nil)
	ctr := []stats.Container{{ID: "c", Cgroup: "/pod/c"}}
	c.Containers(ctr)
	begin := time.Now()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for time.Since(begin) < 1100*time.Millisecond {
		<-tick.C
	}
	write(t, root, map[string]string{"pod/c/cpu.stat": "usage_usec 6000000\n"})
	for range 2 {
		got := c.Containers(ctr)[0].Cpu
		// One second of CPU in a bit more than one second of time.
		if rate := got.GetUsageNanoCores().GetValue(); rate == 0 || rate > 1e9 {
			t.Errorf("rate %d", rate)
		}
	}
}

// netns makes a network namespace with an eth0, pinned at a path.
func netns(t *testing.T) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "net")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // the thread ends with the goroutine
		if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
			done <- err
			return
		}
		for _, args := range []string{"link set lo up", "link add eth0 type veth peer name net1", "addr add 192.0.2.1/24 dev eth0", "link set net1 up", "link set eth0 up"} {
			if out, err := exec.CommandContext(t.Context(), "ip", strings.Fields(args)...).CombinedOutput(); err != nil {
				done <- fmt.Errorf("ip %s: %w: %s", args, err, out)
				return
			}
		}
		conn, err := net.Dial("udp4", "192.0.2.9:9")
		if err == nil {
			_, err = conn.Write(make([]byte, 100))
			_ = conn.Close()
		}
		if err == nil {
			err = unix.Mount("/proc/thread-self/ns/net", path, "", unix.MS_BIND, "")
		}
		done <- err
	}()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(path, unix.MNT_DETACH) })
	return path
}

// TestRootNetwork reads the counters of a namespace without a process, also
// after the pin is gone, until Forget; then the namespace goes.
func TestRootNetwork(t *testing.T) {
	needRoot(t)
	path := netns(t)
	var st syscall.Stat_t
	if err := syscall.Stat(path, &st); err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	write(t, root, v2())
	c := collector(t, root, nil)
	pod := []stats.Pod{{ID: "p", Cgroup: "/pod/c", NetNS: path}}
	for range 2 {
		n := c.Pods(pod)[0].Linux.Network
		if n.GetDefaultInterface().GetName() != "eth0" || n.DefaultInterface.TxBytes.Value == 0 || len(n.Interfaces) != 1 || n.Interfaces[0].Name != "net1" {
			t.Fatalf("%v", n)
		}
	}
	m := values(t, c.Metrics(pod)[0].Metrics)
	if m["container_network_transmit_packets_total{eth0}"] == 0 {
		t.Error("no packets")
	}
	if !openNetDev(t) {
		t.Error("the counters are not kept open")
	}
	c.Forget("p")
	if openNetDev(t) {
		t.Error("the counters stay open after Forget")
	}
}

// openNetDev says whether this process has a net/dev file open.
func openNetDev(t *testing.T) bool {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if to, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil && strings.HasSuffix(to, "/net/dev") {
			return true
		}
	}
	return false
}

// BenchmarkRoot measures 60 pods with one container each, in real cgroups.
func BenchmarkRoot(b *testing.B) {
	needRoot(b)
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err == nil {
		b.Skip("makes cgroups of version 1")
	}
	const n = 60
	var pods []stats.Pod
	var ctrs []stats.Container
	base := fmt.Sprintf("/nodeagent-bench-%d", os.Getpid())
	var dirs []string
	mkdir := func(name string) {
		for _, c := range []string{"cpu", "cpuacct", "memory", "pids", "blkio"} {
			dir := filepath.Join("/sys/fs/cgroup", c, name)
			if err := os.Mkdir(dir, 0o755); err != nil {
				b.Fatal(err)
			}
			dirs = append(dirs, dir)
		}
	}
	defer func() {
		for i := range dirs {
			_ = os.Remove(dirs[len(dirs)-1-i])
		}
	}()
	mkdir(base)
	for i := range n {
		pod := base + "/pod" + strconv.Itoa(i)
		mkdir(pod)
		mkdir(pod + "/c")
		c := stats.Container{ID: "c" + strconv.Itoa(i), Cgroup: pod + "/c"}
		ctrs = append(ctrs, c)
		pods = append(pods, stats.Pod{ID: "p" + strconv.Itoa(i), Cgroup: pod, NetNS: "/proc/self/ns/net", Containers: []stats.Container{c}})
	}
	c := collector(b, "", oneLayer{})
	b.Run("containers=60", func(b *testing.B) {
		for b.Loop() {
			c.Containers(ctrs)
		}
	})
	b.Run("pods=60", func(b *testing.B) {
		for b.Loop() {
			c.Pods(pods)
		}
	})
	b.Run("metrics=60", func(b *testing.B) {
		for b.Loop() {
			c.Metrics(pods)
		}
	})
}
