// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cri"
	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/containerd/containerdtest"
)

// network is a pod network without packets: addresses and bookkeeping.
type network struct {
	// mu guards what follows.
	mu       sync.Mutex
	attached map[cni.Key]cni.Request
	cidrs    []netip.Prefix
	failNext map[string]error
}

func newNetwork() *network {
	return &network{attached: map[cni.Key]cni.Request{}, failNext: map[string]error{}}
}

// FailNext makes the next call of op ("attach", "detach", "status") fail.
func (n *network) FailNext(op string, err error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.failNext[op] = err
}

func (n *network) fail(op string) error {
	err := n.failNext[op]
	delete(n.failNext, op)
	return err
}

func (n *network) Attach(_ context.Context, r cni.Request) (*cni.Result, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.fail("attach"); err != nil {
		return nil, err
	}
	n.attached[r.Key] = r
	return &cni.Result{Key: r.Key, NetNS: r.NetNS, Addrs: []netip.Prefix{
		netip.MustParsePrefix("10.1.2.3/32"), netip.MustParsePrefix("fd00::3/128"),
	}}, nil
}

func (n *network) Detach(_ context.Context, k cni.Key) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.fail("detach"); err != nil {
		return err
	}
	delete(n.attached, k)
	return nil
}

func (n *network) Status(context.Context) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.fail("status")
}

func (n *network) SetPodCIDRs(_ context.Context, cidrs []netip.Prefix) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.cidrs = cidrs
	return nil
}

func (n *network) Collect(_ context.Context, keys []cni.Key) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	for k := range n.attached {
		if !slices.Contains(keys, k) {
			delete(n.attached, k)
		}
	}
	return n.fail("collect")
}

func (n *network) size() int {
	n.mu.Lock()
	defer n.mu.Unlock()
	return len(n.attached)
}

// rig is a served CRI over a private containerd.
type rig struct {
	t          testing.TB
	daemon     *containerdtest.Daemon
	net        *network
	containerd *containerd.Client
	cfg        cri.Config
	tracing    trace.TracerProvider // nil: none
	server     *cri.Server
	db         *bbolt.DB
	conn       *grpc.ClientConn
	rt         runtimeapi.RuntimeServiceClient
	img        runtimeapi.ImageServiceClient
	logs       string
	cgroup     string
}

// newRig starts everything; all sandboxes are removed at the end of the test,
// and what then is left of them is a failure.
func newRig(tb testing.TB) *rig {
	tb.Helper()
	return newRigWith(tb, func(*rig) {})
}

// newRigWith is newRig with a change before the server starts.
func newRigWith(tb testing.TB, change func(r *rig)) *rig {
	tb.Helper()
	d := containerdtest.Start(tb)
	d.Import(tb, nil)
	r := &rig{t: tb, daemon: d, net: newNetwork(), logs: filepath.Join(d.Dir, "logs"), cgroup: "/" + containerdtest.Name(tb)}
	r.cfg = cri.Default()
	r.cfg.Socket = filepath.Join(d.Dir, "cri.sock")
	r.cfg.Sandbox.StateDir = filepath.Join(d.Dir, "na")
	r.cfg.Sandbox.RootDir = filepath.Join(d.Dir, "lib")
	r.cfg.Container.RootDir = filepath.Join(d.Dir, "ctr")
	r.cfg.Image.StateDir = filepath.Join(d.Dir, "img")
	paused := r.cfg.Handlers["runc"]
	paused.Sandbox = "pause"
	r.cfg.Handlers["paused"] = paused
	machine := r.cfg.Handlers["runc"]
	machine.Sandbox = "shim"
	r.cfg.Handlers["machine"] = machine
	if err := os.MkdirAll(r.logs, 0o755); err != nil {
		tb.Fatal(err)
	}
	r.cfg.NRI.Socket = filepath.Join(d.Dir, "nri.sock")
	r.cfg.NRI.PluginDir, r.cfg.NRI.ConfigDir = filepath.Join(d.Dir, "plugins"), filepath.Join(d.Dir, "conf.d")
	r.containerd = d.Client(tb)
	change(r)
	r.start()
	tb.Cleanup(r.end)
	return r
}

// start runs the server over what is in the directories until it is ready.
func (r *rig) start() {
	r.t.Helper()
	r.serve()
	r.eventually("the CRI serves", r.server.Ready)
}

// serve runs the server.
func (r *rig) serve() {
	r.t.Helper()
	db, err := bbolt.Open(filepath.Join(r.daemon.Dir, "state.db"), 0o600, &bbolt.Options{NoSync: true, Timeout: time.Second})
	if err != nil {
		r.t.Fatal(err)
	}
	r.db = db
	r.server, err = cri.New(r.t.Context(), r.cfg, cri.Deps{
		DB: db, Containerd: r.containerd, Network: r.net, Log: containerdtest.Log(r.t), Version: "0.1.0",
		Tracing: r.tracing,
	})
	if err != nil {
		r.t.Fatal(err)
	}
	if err := r.server.Start(r.t.Context()); err != nil {
		r.t.Fatal(err)
	}
	r.dial()
}

// dial connects to whoever serves.
func (r *rig) dial() {
	r.t.Helper()
	var err error
	r.conn, err = grpc.NewClient("unix:"+r.cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		r.t.Fatal(err)
	}
	r.rt, r.img = runtimeapi.NewRuntimeServiceClient(r.conn), runtimeapi.NewImageServiceClient(r.conn)
}

// stop ends the server as a shutdown does.
func (r *rig) stop() {
	r.t.Helper()
	if err := r.conn.Close(); err != nil {
		r.t.Error(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.t.Context()), time.Minute)
	defer cancel()
	if err := r.server.Stop(ctx); err != nil {
		r.t.Errorf("stop: %v", err)
	}
	if err := r.db.Close(); err != nil {
		r.t.Error(err)
	}
}

func (r *rig) end() {
	r.t.Helper()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(r.t.Context()), time.Minute)
	defer cancel()
	list, err := r.rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{})
	if err != nil {
		r.t.Errorf("list sandboxes at the end: %v", err)
	}
	for _, s := range list.GetItems() {
		if _, err := r.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: s.Id}); err != nil {
			r.t.Errorf("remove sandbox at the end: %v", err)
		}
	}
	r.noLeftovers()
	r.stop()
}

// noLeftovers fails when anything of a pod is left though none is known.
func (r *rig) noLeftovers() {
	r.t.Helper()
	if n := r.net.size(); n != 0 {
		r.t.Errorf("%d network attachments left", n)
	}
	for _, dir := range []string{"na/ns", "na/sandboxes", "ctr"} {
		entries, err := os.ReadDir(filepath.Join(r.daemon.Dir, dir))
		if err != nil && !os.IsNotExist(err) {
			r.t.Error(err)
		}
		for _, e := range entries {
			r.t.Errorf("left: %s/%s", dir, e.Name())
		}
	}
	ctx := context.WithoutCancel(r.t.Context())
	cs, err := r.containerd.ListContainers(ctx, "")
	if err != nil || len(cs) != 0 {
		r.t.Errorf("containers left in containerd: %v, %v", cs, err)
	}
	keys, err := r.containerd.ContainerSnapshots(ctx, "overlayfs")
	if err != nil || len(keys) != 0 {
		r.t.Errorf("snapshots left in containerd: %v, %v", keys, err)
	}
	kept, err := r.containerd.KeptTasks(ctx)
	if err != nil || len(kept) != 0 {
		r.t.Errorf("kept tasks left in containerd: %v, %v", kept, err)
	}
	r.noCgroups()
}

// noCgroups removes the test's cgroup, which must be empty.
func (r *rig) noCgroups() {
	r.t.Helper()
	dirs, err := filepath.Glob("/sys/fs/cgroup/*" + r.cgroup)
	if err != nil {
		r.t.Fatal(err)
	}
	for _, dir := range append(dirs, "/sys/fs/cgroup"+r.cgroup) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			continue
		}
		for _, e := range entries {
			if e.IsDir() {
				r.t.Errorf("cgroup left: %s/%s", dir, e.Name())
			}
		}
		if err := os.Remove(dir); err != nil {
			r.t.Errorf("remove the test's cgroup: %v", err)
		}
	}
}

// eventually waits for a condition.
func (r *rig) eventually(what string, cond func() bool) {
	r.t.Helper()
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	limit := time.After(time.Minute)
	for !cond() {
		select {
		case <-tick.C:
		case <-limit:
			r.t.Fatalf("did not happen within a minute: %s", what)
		}
	}
}

// pod is the configuration of a sandbox.
func (r *rig) pod(name string) *runtimeapi.PodSandboxConfig {
	return &runtimeapi.PodSandboxConfig{
		Metadata:     &runtimeapi.PodSandboxMetadata{Name: name, Namespace: "default", Uid: name + "-uid"},
		Hostname:     name,
		LogDirectory: r.logs,
		Labels:       map[string]string{"app": name},
		Annotations:  map[string]string{"a/b": "c"},
		DnsConfig:    &runtimeapi.DNSConfig{Servers: []string{"10.0.0.10"}, Searches: []string{"default.svc", "svc"}, Options: []string{"ndots:5"}},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			CgroupParent: r.cgroup,
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{
				Pid: runtimeapi.NamespaceMode_CONTAINER,
			}},
		},
	}
}

// shell is the configuration of a container that runs a script.
func (r *rig) shell(name, script string) *runtimeapi.ContainerConfig {
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: name},
		Image:    &runtimeapi.ImageSpec{Image: containerdtest.Busybox},
		Command:  []string{"/bin/sh", "-c", script},
		LogPath:  name + ".log",
		Labels:   map[string]string{"c": name},
		Linux: &runtimeapi.LinuxContainerConfig{
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
			},
		},
	}
}

func (r *rig) runPod(cfg *runtimeapi.PodSandboxConfig) string {
	r.t.Helper()
	resp, err := r.rt.RunPodSandbox(r.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg})
	if err != nil {
		r.t.Fatalf("RunPodSandbox: %v", err)
	}
	return resp.PodSandboxId
}

func (r *rig) create(sandbox string, pod *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) string {
	r.t.Helper()
	resp, err := r.rt.CreateContainer(r.t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: cfg, SandboxConfig: pod})
	if err != nil {
		r.t.Fatalf("CreateContainer: %v", err)
	}
	return resp.ContainerId
}

func (r *rig) remove(sandbox string) {
	r.t.Helper()
	if _, err := r.rt.RemovePodSandbox(r.t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sandbox}); err != nil {
		r.t.Fatalf("RemovePodSandbox: %v", err)
	}
}

func (r *rig) startContainer(id string) {
	r.t.Helper()
	if _, err := r.rt.StartContainer(r.t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err != nil {
		r.t.Fatalf("StartContainer: %v", err)
	}
}

// run makes and starts a container.
func (r *rig) run(sandbox string, pod *runtimeapi.PodSandboxConfig, cfg *runtimeapi.ContainerConfig) string {
	r.t.Helper()
	id := r.create(sandbox, pod, cfg)
	r.startContainer(id)
	return id
}

func (r *rig) status(id string) *runtimeapi.ContainerStatus {
	r.t.Helper()
	resp, err := r.rt.ContainerStatus(r.t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id})
	if err != nil {
		r.t.Fatalf("ContainerStatus: %v", err)
	}
	return resp.Status
}

// exited waits for the end of a container.
func (r *rig) exited(id string) *runtimeapi.ContainerStatus {
	r.t.Helper()
	r.eventually("container exits", func() bool {
		return r.status(id).State == runtimeapi.ContainerState_CONTAINER_EXITED
	})
	return r.status(id)
}

// output is what a container has written to its log, without times and tags.
func (r *rig) output(name string) string {
	r.t.Helper()
	b, err := os.ReadFile(filepath.Join(r.logs, name+".log"))
	if err != nil {
		r.t.Fatal(err)
	}
	var out strings.Builder
	for line := range strings.Lines(string(b)) {
		f := strings.SplitN(line, " ", 4)
		if len(f) != 4 {
			r.t.Fatalf("malformed log line %q", line)
		}
		out.WriteString(f[3])
	}
	return out.String()
}

// sh runs a container to its end and returns what it printed.
func (r *rig) sh(sandbox string, pod *runtimeapi.PodSandboxConfig, name, script string, change ...func(*runtimeapi.ContainerConfig)) string {
	r.t.Helper()
	cfg := r.shell(name, script)
	for _, c := range change {
		c(cfg)
	}
	id := r.run(sandbox, pod, cfg)
	st := r.exited(id)
	out := r.output(name)
	if st.ExitCode != 0 {
		r.t.Fatalf("%s exited with %d (%s %s): %s", name, st.ExitCode, st.Reason, st.Message, out)
	}
	return out
}
