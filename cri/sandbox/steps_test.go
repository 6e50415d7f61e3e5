// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/containerd/containerdtest"
	"github.com/nodeagent/nodeagent/cri/spec"
	"github.com/nodeagent/nodeagent/cri/steps"
	"github.com/nodeagent/nodeagent/cri/steps/stepstest"
	"github.com/nodeagent/nodeagent/cri/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// network counts attachments.
type network struct {
	// mu guards attached.
	mu       sync.Mutex
	attached map[cni.Key]bool
	detach   error              // of the next Detach
	attach   error              // of the next Attach
	warm     map[cni.Key]uint64 // the inodes of their namespaces
}

func (n *network) Warm(_ context.Context, k cni.Key, path string) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	var st unix.Stat_t
	if err := unix.Stat(path, &st); err != nil || !pinned(path) {
		return fmt.Errorf("%s is no namespace: %w", path, errors.Join(err, os.ErrInvalid))
	}
	n.warm[k] = st.Ino
	return nil
}

func (n *network) WarmSlots() []cni.Key {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Collect(maps.Keys(n.warm))
}

func (n *network) Attach(_ context.Context, r cni.Request) (*cni.Result, error) {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.attach; err != nil {
		n.attach = nil
		return nil, err
	}
	n.attached[r.Key] = true
	var st unix.Stat_t
	if err := unix.Stat(r.NetNS, &st); err == nil {
		maps.DeleteFunc(n.warm, func(_ cni.Key, ino uint64) bool { return ino == st.Ino }) // taken over
	}
	return &cni.Result{Key: r.Key, Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/32")}}, nil
}

func (n *network) Detach(_ context.Context, k cni.Key) error {
	n.mu.Lock()
	defer n.mu.Unlock()
	if err := n.detach; err != nil {
		n.detach = nil
		return err
	}
	delete(n.attached, k)
	delete(n.warm, k)
	return nil
}

func (n *network) Status(context.Context) error { return nil }

// none stands for the containers of a sandbox that has none.
type none struct{}

func (none) StopAll(context.Context, string) error   { return nil }
func (none) RemoveAll(context.Context, string) error { return nil }

func (none) UnmountVolumes(context.Context, string) error { return nil }

// world is a manager over a private containerd and what it does to the machine.
type world struct {
	t      *testing.T
	dir    string
	client *containerd.Client
	db     *bbolt.DB
	net    *network
	m      *Manager
	pool   int // Config.WarmPool
}

func newWorld(t *testing.T) *world {
	t.Helper()
	d := containerdtest.Start(t)
	w := &world{t: t, dir: d.Dir, client: d.Client(t), net: &network{attached: map[cni.Key]bool{}, warm: map[cni.Key]uint64{}}}
	db, err := bbolt.Open(filepath.Join(d.Dir, "state.db"), 0o600, &bbolt.Options{NoSync: true, Timeout: time.Second})
	if err != nil {
		t.Fatal(err)
	}
	w.db = db
	w.restart()
	t.Cleanup(func() {
		w.m.Close()
		if err := db.Close(); err != nil {
			t.Error(err)
		}
	})
	return w
}

// restart makes a new manager over the same state, as after kill -9.
func (w *world) restart() {
	w.t.Helper()
	if w.m != nil {
		w.m.Close()
	}
	host, err := spec.Probe()
	if err != nil {
		w.t.Fatal(err)
	}
	st := store.New(w.db)
	if err := st.Load(); err != nil {
		w.t.Fatal(err)
	}
	cfg := Default()
	cfg.WarmPool = w.pool
	cfg.StateDir, cfg.RootDir = filepath.Join(w.dir, "na"), filepath.Join(w.dir, "lib")
	w.m, err = New(w.t.Context(), cfg, Deps{
		Shims: noShims{}, Warm: w.net,
		Store: st, Network: w.net, Containers: none{}, Volumes: none{}, Containerd: w.client,
		Handler: func(string) (Handler, error) {
			return Handler{Runtime: containerd.Runtime{Type: containerd.RuncType}}, nil
		},
		Spec:   spec.Input{Host: host, System: spec.NewSystem()},
		Notify: func(*store.Sandbox, runtimeapi.ContainerEventType) {},
		Log:    containerdtest.Log(w.t),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.m.Recover(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// picture is all that sandboxes leave on the machine.
func (w *world) picture() []string {
	w.t.Helper()
	var out []string
	b, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		w.t.Fatal(err)
	}
	for line := range strings.Lines(string(b)) {
		if f := strings.Fields(line); strings.HasPrefix(f[4], w.dir) {
			out = append(out, "mount "+f[4])
		}
	}
	for _, d := range []string{"na/ns", "na/sandboxes"} {
		entries, err := os.ReadDir(filepath.Join(w.dir, d))
		if err != nil && !os.IsNotExist(err) {
			w.t.Fatal(err)
		}
		for _, e := range entries {
			out = append(out, d+"/"+e.Name())
		}
	}
	cs, err := w.client.ListContainers(w.t.Context(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range cs {
		out = append(out, "container "+c.ID)
	}
	tasks, err := w.client.Tasks(w.t.Context())
	if err != nil {
		w.t.Fatal(err)
	}
	out = append(out, fmt.Sprintf("%d tasks, %d attachments, %d records", len(tasks), len(w.net.attached), len(w.m.deps.Store.Sandboxes.Select(nil))))
	slices.Sort(out)
	return out
}

func (w *world) same(before []string) {
	w.t.Helper()
	stepstest.Same(w.t, before, w.picture())
}

// build is a sandbox under construction with every step there is.
func (w *world) build() *building {
	w.t.Helper()
	sb := &store.Sandbox{ID: store.NewID(), State: store.SandboxCreating, CreatedAt: 1, NetworkUp: true, Process: true}
	sb.Config.M = &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}, Hostname: "p",
		Linux: &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/" + containerdtest.Name(w.t)},
	}
	flags := wanted(sb.NamespaceOptions())
	sb.Namespaces = paths(w.m.pins(sb.ID), flags)
	if err := w.m.deps.Store.Sandboxes.Put(sb); err != nil {
		w.t.Fatal(err)
	}
	return &building{m: w.m, sb: sb, flags: flags}
}

func TestRootRunCutShort(t *testing.T) {
	w := newWorld(t)
	t.Cleanup(func() { removeCgroups(w.t) })
	w.m.Close()
	w.restart()
	stepstest.CutShort(t, stepstest.World{
		Restart: w.restart, Picture: w.picture,
		Build: func() ([]steps.Step, func(error) error) {
			b := w.build()
			return b.table(), func(cause error) error { return w.m.abandon(b.sb.ID, cause) }
		},
	})
}

func removeCgroups(t *testing.T) {
	t.Helper()
	dirs, err := filepath.Glob("/sys/fs/cgroup/*/" + containerdtest.Name(t))
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range append(dirs, "/sys/fs/cgroup/"+containerdtest.Name(t)) {
		if err := os.Remove(d); err != nil && !os.IsNotExist(err) {
			t.Errorf("cgroup left: %v", err)
		}
	}
}

func TestRootFailedUndoStaysListed(t *testing.T) {
	w := newWorld(t)
	before := w.picture()
	b := w.build()
	b.sb.Process = false
	table := b.table()
	table[len(table)-1].Do = func(context.Context) error { return stepstest.ErrInjected }
	w.net.detach = stepstest.ErrInjected
	err := steps.Run(t.Context(), table)
	if err := w.m.abandon(b.sb.ID, err); err != nil {
		t.Fatal(err)
	}
	sb, ok := w.m.deps.Store.Sandboxes.Get(b.sb.ID)
	if !ok || sb.State != store.SandboxNotReady {
		t.Fatalf("record %+v", sb)
	}
	if err := w.m.Remove(t.Context(), sb.ID); err != nil {
		t.Fatal(err)
	}
	w.same(before)
}

func TestRootStopRetriesWhatFailed(t *testing.T) {
	w := newWorld(t)
	before := w.picture()
	cfg := &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"}, Linux: &runtimeapi.LinuxPodSandboxConfig{
		SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER}},
	}}
	id, err := w.m.Run(t.Context(), cfg, "")
	if err != nil {
		t.Fatal(err)
	}
	again, err := w.m.Run(t.Context(), cfg, "")
	if err != nil || again != id {
		t.Errorf("a repeated run gave %q, %v", again, err)
	}
	w.net.detach = stepstest.ErrInjected
	if err := w.m.Stop(t.Context(), id); !errors.Is(err, stepstest.ErrInjected) {
		t.Errorf("stop gave %v", err)
	}
	if !pinned(w.m.pins(id) + "/net") {
		t.Error("the namespace went before its network")
	}
	if err := w.m.Remove(t.Context(), id[:12]); err != nil {
		t.Fatal(err)
	}
	w.same(before)
}

// noShims is a node whose containerd starts all shims.
type noShims struct{}

var _ Shims = noShims{}

func (noShims) Prepare(context.Context, string, string) {}
func (noShims) Release(string)                          {}
