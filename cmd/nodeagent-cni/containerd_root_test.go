// SPDX-License-Identifier: Apache-2.0

package main

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cni/netns/netnstest"
)

// cached returns the path of a program that the tests build once.
func cached(tb testing.TB, name string) string {
	tb.Helper()
	dir := os.Getenv("NODEAGENT_CACHE")
	if dir == "" {
		dir = "/var/cache/nodeagent"
	}
	path := filepath.Join(dir, "bin", name)
	if _, err := os.Stat(path); err != nil {
		tb.Fatalf("%v; make deps builds it", err)
	}
	return path
}

// pauseImage is the only image a sandbox needs.
const pauseImage = "nodeagent.test/pause:1"

// writePauseImage writes an image with one static program as docker save does.
func writePauseImage(tb testing.TB, path string) {
	tb.Helper()
	program, err := os.ReadFile(cached(tb, "pause"))
	if err != nil {
		tb.Fatal(err)
	}
	layer := archive(tb, file{"pause", 0o755, program})
	config, err := json.Marshal(map[string]any{
		"architecture": "amd64", "os": "linux",
		"config": map[string]any{"Entrypoint": []string{"/pause"}},
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{fmt.Sprintf("sha256:%x", sha256.Sum256(layer))}},
	})
	if err != nil {
		tb.Fatal(err)
	}
	manifest, err := json.Marshal([]map[string]any{{
		"Config": "config.json", "RepoTags": []string{pauseImage}, "Layers": []string{"layer.tar"},
	}})
	if err != nil {
		tb.Fatal(err)
	}
	image := archive(tb, file{"config.json", 0o644, config}, file{"layer.tar", 0o644, layer}, file{"manifest.json", 0o644, manifest})
	if err := os.WriteFile(path, image, 0o600); err != nil {
		tb.Fatal(err)
	}
}

type file struct {
	name string
	mode int64
	body []byte
}

func archive(tb testing.TB, files ...file) []byte {
	tb.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for _, f := range files {
		err := w.WriteHeader(&tar.Header{Name: f.name, Mode: f.mode, Size: int64(len(f.body))})
		if _, werr := w.Write(f.body); err != nil || werr != nil {
			tb.Fatal(err, werr)
		}
	}
	if err := w.Close(); err != nil {
		tb.Fatal(err)
	}
	return b.Bytes()
}

// containerd is a stock containerd with its CRI plugin on, in the node's
// network namespace.
type containerd struct {
	socket string
	conf   string
	cri    runtimeapi.RuntimeServiceClient
}

func startContainerd(n *node) *containerd {
	n.t.Helper()
	dir := filepath.Join(n.dir, "cd")
	c := &containerd{socket: filepath.Join(dir, "s.sock"), conf: filepath.Join(dir, "net.d")}
	bin, err := binDir()
	if err != nil {
		n.t.Fatal(err)
	}
	config := fmt.Sprintf(`version = 3
root = %[1]q
state = %[2]q
[grpc]
  address = %[3]q
[plugins.'io.containerd.cri.v1.images']
  snapshotter = 'native'
[plugins.'io.containerd.cri.v1.images'.pinned_images]
  sandbox = %[4]q
[plugins.'io.containerd.cri.v1.runtime']
  restrict_oom_score_adj = true
  disable_apparmor = true
  netns_mounts_under_state_dir = true
[plugins.'io.containerd.cri.v1.runtime'.cni]
  bin_dirs = [%[5]q]
  conf_dir = %[6]q
  use_internal_loopback = true
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc]
  runtime_type = 'io.containerd.runc.v2'
[plugins.'io.containerd.cri.v1.runtime'.containerd.runtimes.runc.options]
  BinaryName = %[7]q
`, filepath.Join(dir, "root"), filepath.Join(dir, "state"), c.socket, pauseImage, bin, c.conf, cached(n.t, "runc"))
	file := filepath.Join(dir, "config.toml")
	if err := errors.Join(os.MkdirAll(dir, 0o700), os.MkdirAll(c.conf, 0o700), os.WriteFile(file, []byte(config), 0o600)); err != nil {
		n.t.Fatal(err)
	}
	log, err := os.Create(filepath.Join(dir, "log"))
	if err != nil {
		n.t.Fatal(err)
	}
	cmd := exec.Command(cached(n.t, "containerd"), "--config", file)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(cached(n.t, "containerd-shim-runc-v2"))+":"+os.Getenv("PATH"))
	cmd.Stdout, cmd.Stderr = log, log
	cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	if err := n.onHost(cmd.Start); err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		err := cmd.Process.Signal(syscall.SIGTERM)
		_ = cmd.Wait() // it was told to go
		if n.t.Failed() {
			if out, rerr := os.ReadFile(log.Name()); rerr == nil {
				n.t.Logf("containerd said:\n%s", out)
			}
		}
		if err := errors.Join(err, log.Close()); err != nil {
			n.t.Error(err)
		}
	})
	conn, err := grpc.NewClient("unix://"+c.socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() {
		if err := conn.Close(); err != nil {
			n.t.Error(err)
		}
	})
	c.cri = runtimeapi.NewRuntimeServiceClient(conn)
	if _, err := c.cri.Version(n.t.Context(), &runtimeapi.VersionRequest{}, grpc.WaitForReady(true)); err != nil {
		n.t.Fatal(err)
	}
	image := filepath.Join(dir, "pause.tar")
	writePauseImage(n.t, image)
	out, err := exec.Command(cached(n.t, "ctr"), "-a", c.socket, "-n", "k8s.io", "images", "import", "--local",
		"--snapshotter", "native", image).CombinedOutput()
	if err != nil {
		n.t.Fatalf("import: %v: %s", err, out)
	}
	return c
}

// onHost runs f on a thread in the node's namespace.
func (n *node) onHost(f func() error) error { return netnstest.Try(n.t, n.host, f) }

// networkReady asks the CRI until it answers what is wanted: containerd notices
// a new configuration by itself, some time after it was written.
func (c *containerd) networkReady(ctx context.Context, tb testing.TB, want bool) {
	tb.Helper()
	ctx, cancel := context.WithTimeout(ctx, 30*time.Second)
	defer cancel()
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		res, err := c.cri.Status(ctx, &runtimeapi.StatusRequest{})
		if err != nil {
			tb.Fatal(err)
		}
		for _, cond := range res.GetStatus().GetConditions() {
			if cond.GetType() == runtimeapi.NetworkReady && cond.GetStatus() == want {
				return
			}
		}
		select {
		case <-tick.C:
		case <-ctx.Done():
			tb.Fatalf("NetworkReady is not %v: %v", want, res.GetStatus().GetConditions())
		}
	}
}

// cgroupParent of the test's sandboxes.
const cgroupParent = "/nodeagent-cni-test"

func removeCgroups(tb testing.TB) {
	tb.Helper()
	dirs, err := filepath.Glob("/sys/fs/cgroup/*" + cgroupParent)
	if err != nil {
		tb.Fatal(err)
	}
	more, err := filepath.Glob("/sys/fs/cgroup" + cgroupParent)
	if err != nil {
		tb.Fatal(err)
	}
	for _, d := range append(dirs, more...) {
		if err := os.Remove(d); err != nil && !errors.Is(err, os.ErrNotExist) {
			tb.Errorf("cgroup left: %v", err)
		}
	}
}

// TestRootUnderContainerdsOwnCRI runs a pod sandbox with a stock containerd as
// the CNI runtime, which finds the network by the conflist that we write.
func TestRootUnderContainerdsOwnCRI(t *testing.T) {
	n := newNode(t)
	c := startContainerd(n)
	t.Cleanup(func() { removeCgroups(t) })
	ctx := t.Context()
	c.networkReady(ctx, t, false)
	n.stop()
	n.conflist = filepath.Join(c.conf, "05-nodeagent.conflist")
	n.start()
	c.networkReady(ctx, t, true)

	id := c.runPod(ctx, t, nil)
	ip := c.podIP(ctx, t, id)
	if leases := n.net.Leases(); len(leases) != 2 || leases[0].Addr.String() != ip {
		t.Errorf("leases %v, want the pod's address %s first", leases, ip)
	}
	if list := n.net.List(); len(list) != 1 || list[0].Pod.Name != "web" || list[0].Network != "nodeagent" {
		t.Errorf("attachments %+v", list)
	}
	// Nobody listens in a sandbox: a refusal comes from the pod itself.
	err := n.onHost(func() error {
		conn, err := net.DialTimeout("tcp", net.JoinHostPort(ip, "80"), 10*time.Second)
		if err == nil {
			err = conn.Close()
		}
		return err
	})
	if !errors.Is(err, syscall.ECONNREFUSED) {
		t.Errorf("dial %s = %v, want a refusal", ip, err)
	}
	c.networkReady(ctx, t, true)
	// The daemon is away while the pod ends; its address is free afterwards.
	n.stop()
	c.networkReady(ctx, t, false)
	c.removePod(ctx, t, id)
	n.start()
	c.networkReady(ctx, t, true)
	if leases := n.net.Leases(); len(leases) != 0 {
		t.Errorf("leases left: %v", leases)
	}

	id = c.runPod(ctx, t, map[string]string{"network.nodeagent.dev/addresses": "10.88.1.1"})
	if ip := c.podIP(ctx, t, id); ip != "10.88.1.1" {
		t.Errorf("address %s, want the annotation's", ip)
	}
	c.removePod(ctx, t, id)
	if leases := n.net.Leases(); len(leases) != 0 {
		t.Errorf("leases left: %v", leases)
	}
}

func (c *containerd) runPod(ctx context.Context, tb testing.TB, annotations map[string]string) string {
	tb.Helper()
	res, err := c.cri.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: "web", Namespace: "default", Uid: fmt.Sprint(time.Now().UnixNano())},
		Hostname:     "web",
		LogDirectory: tb.TempDir(),
		Annotations:  annotations,
		PortMappings: []*runtimeapi.PortMapping{{ContainerPort: 80, HostPort: 8080}},
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.96.0.10"}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent:    cgroupParent,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{}},
		},
	}})
	if err != nil {
		tb.Fatal(err)
	}
	return res.GetPodSandboxId()
}

func (c *containerd) podIP(ctx context.Context, tb testing.TB, id string) string {
	tb.Helper()
	res, err := c.cri.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: id})
	if err != nil {
		tb.Fatal(err)
	}
	if extra := res.GetStatus().GetNetwork().GetAdditionalIps(); len(extra) != 1 || !strings.HasPrefix(extra[0].GetIp(), "fd88:") {
		tb.Errorf("additional addresses %v, want one of IPv6", extra)
	}
	return res.GetStatus().GetNetwork().GetIp()
}

func (c *containerd) removePod(ctx context.Context, tb testing.TB, id string) {
	tb.Helper()
	_, err := c.cri.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: id})
	if err != nil {
		tb.Error(err)
	}
	if _, err := c.cri.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
		tb.Error(err)
	}
}
