// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/spec"
)

func TestStopSignal(t *testing.T) {
	for _, tt := range []struct {
		want  runtimeapi.Signal
		image string
		is    string
	}{
		{0, "", "SIGTERM"},
		{runtimeapi.Signal_SIGNAL_SIGUSR1, "SIGQUIT", "SIGUSR1"},
		{0, "SIGQUIT", "SIGQUIT"},
		{0, "quit", "SIGQUIT"},
		{0, "3", "SIGQUIT"},
		{0, "37", "37"},
		{0, "RTMIN+3", "SIGRTMIN+3"},
		{runtimeapi.Signal_SIGNAL_SIGRTMINPLUS3, "", "SIGRTMIN+3"},
		{runtimeapi.Signal_SIGNAL_SIGRTMAXMINUS1, "", "SIGRTMAX-1"},
	} {
		got, err := spec.StopSignal(tt.want, tt.image)
		if err != nil || got != tt.is {
			t.Errorf("%v, %q: got %q, %v, want %q", tt.want, tt.image, got, err, tt.is)
		}
		if tt.want != 0 && spec.Signal(got) != tt.want {
			t.Errorf("Signal(%q) = %v, want %v", got, spec.Signal(got), tt.want)
		}
	}
	// Every value of the CRI is a signal here.
	for v := range runtimeapi.Signal_name {
		if _, err := spec.StopSignal(runtimeapi.Signal(v), ""); err != nil {
			t.Error(err)
		}
	}
	for _, bad := range []string{"SIGNOPE", "0", "65", "-3"} {
		if got, err := spec.StopSignal(0, bad); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%q: got %q, %v", bad, got, err)
		}
	}
}

func TestUpdateResources(t *testing.T) {
	in, _ := fixture()
	in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 10, MemoryLimitInBytes: 100, Unified: map[string]string{"memory.min": "1"}}
	old := build(t, in)
	got, err := spec.UpdateResources(old, &runtimeapi.LinuxContainerResources{
		CpuQuota: 5000, MemoryLimitInBytes: 200, Unified: map[string]string{"memory.high": "150"},
	}, in.Host, in.Policy)
	if err != nil {
		t.Fatal(err)
	}
	r := got.Linux.Resources
	if *r.CPU.Shares != 10 || *r.CPU.Quota != 5000 || *r.Memory.Limit != 200 || *r.Memory.Swap != 200 || fmt.Sprint(r.Unified) != "map[memory.high:150 memory.min:1]" {
		t.Errorf("got %+v %+v %v", r.CPU, r.Memory, r.Unified)
	}
	if o := old.Linux.Resources; o.CPU.Quota != nil || *o.Memory.Limit != 100 || len(o.Unified) != 1 {
		t.Errorf("the old spec changed: %+v", o)
	}
}

func TestUpdateResourcesRefuses(t *testing.T) {
	in, _ := fixture()
	in.Config.Linux.Resources = &runtimeapi.LinuxContainerResources{CpuShares: 10, MemoryLimitInBytes: 100}
	old := build(t, in)
	if _, err := spec.UpdateResources(old, &runtimeapi.LinuxContainerResources{CpuShares: -1, CpusetCpus: "x"}, in.Host, in.Policy); err == nil ||
		!strings.Contains(err.Error(), "cpu_shares") || !strings.Contains(err.Error(), "cpuset_cpus") {
		t.Errorf("got %v", err)
	}
	if _, err := spec.UpdateResources(old, &runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: 50}, in.Host, in.Policy); err == nil {
		t.Error("a swap limit below the old memory limit was accepted")
	}
	if same, err := spec.UpdateResources(old, nil, in.Host, in.Policy); err != nil || *same.Linux.Resources.CPU.Shares != 10 {
		t.Errorf("no resources: %v", err)
	}
}

func TestSysctls(t *testing.T) {
	pod := func(net, ipc runtimeapi.NamespaceMode, sysctls ...string) *runtimeapi.PodSandboxConfig {
		m := map[string]string{}
		for _, s := range sysctls {
			k, v, _ := strings.Cut(s, "=")
			m[k] = v
		}
		return &runtimeapi.PodSandboxConfig{Linux: &runtimeapi.LinuxPodSandboxConfig{Sysctls: m, SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: net, Ipc: ipc},
		}}}
	}
	defaults := spec.Policy{UnprivilegedPorts: true, UnprivilegedICMP: true}
	got, err := spec.Sysctls(pod(0, 0, "kernel.shmmax=1", "net.core.somaxconn=2", "kernel.domainname=d", "net/ipv4/conf/eth0.1/forwarding=1",
		"net.ipv4.ip_unprivileged_port_start=80"), defaults)
	want := "{map[net.core.somaxconn:2 net.ipv4.conf.eth0/1.forwarding:1 net.ipv4.ip_unprivileged_port_start:80 net.ipv4.ping_group_range:0 2147483647] map[kernel.shmmax:1] map[kernel.domainname:d]}"
	if err != nil || fmt.Sprint(got) != want {
		t.Errorf("got %v, %v", got, err)
	}
	if f := spec.SysctlFile("net.ipv4.conf.eth0/1.forwarding"); f != "/proc/sys/net/ipv4/conf/eth0.1/forwarding" {
		t.Errorf("file %s", f)
	}
	for _, bad := range []*runtimeapi.PodSandboxConfig{
		pod(0, 0, "vm.swappiness=1"), pod(2, 0, "net.core.somaxconn=1"), pod(0, 2, "kernel.sem=1"), pod(0, 0, "kernel.hostname=x"),
		pod(0, 0, "net...x=1"), pod(0, 0, "/etc/passwd=1"), pod(0, 0, "net/../../x=1"),
	} {
		if got, err := spec.Sysctls(bad, spec.Policy{}); !errors.Is(err, errdefs.ErrInvalidArgument) {
			t.Errorf("%v: got %v, %v", bad.GetLinux().GetSysctls(), got, err)
		}
	}
	if got, err := spec.Sysctls(pod(2, 0), defaults); err != nil || len(got.Net) != 0 {
		t.Errorf("host network: %v, %v", got, err)
	}
}

func TestExecProcess(t *testing.T) {
	in, _ := fixture()
	s := build(t, in)
	p := spec.ExecProcess(s, []string{"id"}, true)
	if fmt.Sprint(p.Args) != "[id]" || !p.Terminal || p.Env[len(p.Env)-1] != "TERM=xterm" || s.Process.Terminal || s.Process.Args[0] != "/app" {
		t.Errorf("got %+v, spec %+v", p, s.Process)
	}
}

// fakeCDI knows one device.
type fakeCDI struct{ injected int }

func (c *fakeCDI) InjectDevices(s *specs.Spec, names ...string) ([]string, error) {
	for _, n := range names {
		if n != "v.com/gpu=0" {
			return []string{n}, errors.New("unresolvable")
		}
	}
	c.injected++
	s.Mounts = append(s.Mounts, specs.Mount{Destination: "/gpu", Type: "bind", Source: "/gpu"})
	return nil, nil
}

func TestCDI(t *testing.T) {
	in, sys := fixture()
	in.CDI = &fakeCDI{}
	in.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "v.com/gpu=0"}}
	in.Config.Annotations = map[string]string{"cdi.k8s.io/plugin": "v.com/gpu=0"}
	if got := mountOf("/gpu")(build(t, in)); got != "bind /gpu " {
		t.Errorf("got %v", got)
	}
	in.Config.CDIDevices = append(in.Config.CDIDevices, &runtimeapi.CDIDevice{Name: "v.com/gpu=9"})
	in.Config.Mounts = []*mount{{ContainerPath: "/a", HostPath: "/gone"}}
	sys.Missing = map[string]bool{"/gone": true}
	_, err := spec.Build(in)
	if !errors.Is(err, errdefs.ErrNotFound) || !strings.Contains(err.Error(), "no such device: v.com/gpu=9") || len(sys.Made) > 0 {
		t.Errorf("got %v, made %v", err, sys.Made)
	}
}

// TestRootMachine asks the real machine, in a directory of its own.
func TestRootMachine(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	sys := spec.NewSystem()
	if err := os.Symlink(filepath.Join(dir, "real"), filepath.Join(dir, "link")); err != nil {
		t.Fatal(err)
	}
	if got, err := sys.Source(filepath.Join(dir, "real", "deep"), true); err != nil || got != filepath.Join(dir, "real", "deep") {
		t.Errorf("create: %q, %v", got, err)
	}
	if got, err := sys.Source(filepath.Join(dir, "link"), false); err != nil || got != filepath.Join(dir, "real") {
		t.Errorf("link: %q, %v", got, err)
	}
	if _, err := sys.Source(filepath.Join(dir, "no"), false); !errors.Is(err, errdefs.ErrNotFound) {
		t.Errorf("absent: %v", err)
	}
	if _, point, err := sys.Propagation("/proc/self"); err != nil || point != "/proc" {
		t.Errorf("propagation: %s, %v", point, err)
	}
	if _, err := sys.ReadFile(dir); err == nil {
		t.Error("read a directory")
	}
}

func TestRootDevices(t *testing.T) {
	needRoot(t)
	sys := spec.NewSystem()
	if nodes, err := sys.Devices("/dev/null"); err != nil || len(nodes) != 1 || nodes[0].Major != 1 || nodes[0].Minor != 3 {
		t.Errorf("null: %v, %v", nodes, err)
	}
	if nodes, err := sys.Devices("/dev"); err != nil || len(nodes) < 5 {
		t.Errorf("all devices: %d, %v", len(nodes), err)
	}
	if _, err := sys.Devices("/etc/passwd"); !errors.Is(err, errdefs.ErrInvalidArgument) {
		t.Errorf("no device: %v", err)
	}
	host, err := spec.Probe()
	if err != nil || host.Cgroup == "" || len(host.Capabilities) == 0 {
		t.Errorf("probe: %+v, %v", host, err)
	}
}

// TestRootProbeUserNamespaces: kernels without are older than 6.3, as the words say.
func TestRootProbeUserNamespaces(t *testing.T) {
	needRoot(t)
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		t.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(unix.ByteSliceToString(u.Release[:]), "%d.%d", &major, &minor); err != nil {
		t.Fatal(err)
	}
	err := spec.ProbeUserNamespaces()
	old := major < 6 || major == 6 && minor < 3
	if (err != nil) != old || err != nil && !strings.Contains(err.Error(), "Linux 6.3 or newer") {
		t.Errorf("Linux %d.%d: %v", major, minor, err)
	}
}

func needRoot(t *testing.T) {
	t.Helper()
	if os.Geteuid() == 0 {
		return
	}
	if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
		t.Skip("not root, and NODEAGENT_SKIP_ROOT=1")
	}
	t.Fatal("needs root (NODEAGENT_SKIP_ROOT=1 skips)")
}

func cache() string {
	if dir := os.Getenv("NODEAGENT_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/nodeagent"
}
