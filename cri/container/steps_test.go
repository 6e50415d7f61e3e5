// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"go.etcd.io/bbolt"
	"go.uber.org/goleak"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/containerd/containerdtest"
	"github.com/nodeagent/nodeagent/cri/image"
	"github.com/nodeagent/nodeagent/cri/sandbox"
	"github.com/nodeagent/nodeagent/cri/spec"
	"github.com/nodeagent/nodeagent/cri/steps"
	"github.com/nodeagent/nodeagent/cri/steps/stepstest"
	"github.com/nodeagent/nodeagent/cri/store"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// images is the real image service behind this room's interface.
type images struct{ s *image.Service }

func (i images) Resolve(ctx context.Context, ref string) (Image, error) {
	img, err := i.s.Resolve(ctx, ref)
	if err != nil {
		return Image{}, err
	}
	return Image{ID: img.ID, Ref: img.Ref(), Name: img.Name, ChainID: img.ChainID.String(), Config: img.Config.Config}, nil
}

func (i images) MountVolume(context.Context, *store.Sandbox, *runtimeapi.Mount) (string, string, error) {
	return "", "", stepstest.ErrInjected
}

func (i images) Unpack(context.Context, Image, string) error { return stepstest.ErrInjected }

// world is a manager over a private containerd and what it does to the machine.
// Its one sandbox is on the node's namespaces.
type world struct {
	t      *testing.T
	dir    string
	client *containerd.Client
	db     *bbolt.DB
	images images
	sb     *store.Sandbox
	m      *Manager
}

func newWorld(t *testing.T) *world {
	t.Helper()
	d := containerdtest.Start(t)
	d.Import(t, func(i *ocispec.Image) {
		i.Config.Volumes = map[string]struct{}{"/data": {}}
		i.Config.User = "alice" // makes the specification look into the image
	})
	w := &world{t: t, dir: d.Dir, client: d.Client(t)}
	icfg := image.Default()
	icfg.StateDir = filepath.Join(d.Dir, "img")
	svc, err := image.New(icfg, image.Deps{
		Records: w.client, Puller: w.client, Snapshots: w.client, Snapshotter: "overlayfs", Log: containerdtest.Log(t),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := svc.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	w.images = images{svc}
	if w.db, err = bbolt.Open(filepath.Join(d.Dir, "state.db"), 0o600, &bbolt.Options{NoSync: true, Timeout: time.Second}); err != nil {
		t.Fatal(err)
	}
	w.restart()
	w.sb = &store.Sandbox{ID: store.NewID(), State: store.SandboxReady, CreatedAt: 1}
	host := runtimeapi.NamespaceMode_NODE
	w.sb.Config.M = &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "p", Namespace: "n", Uid: "u"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: host, Pid: host, Ipc: host},
		}},
	}
	if err := w.m.deps.Store.Sandboxes.Put(w.sb); err != nil {
		t.Fatal(err)
	}
	dir := w.m.deps.SandboxDir(w.sb.ID)
	if err := os.MkdirAll(string(dir), 0o755); err != nil {
		t.Fatal(err)
	}
	for _, f := range []string{dir.Hostname(), dir.Hosts(), dir.ResolvConf()} {
		if err := os.WriteFile(f, nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		w.m.Close()
		if err := errors.Join(svc.Stop(context.WithoutCancel(t.Context())), w.db.Close()); err != nil {
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
	cfg.RootDir = filepath.Join(w.dir, "ctr")
	w.m, err = New(w.t.Context(), cfg, Deps{
		Store: st, Containerd: w.client, Images: w.images, Streams: FIFOs{Control: w.client},
		SandboxDir: func(id string) sandbox.Dir { return sandbox.Dir(filepath.Join(w.dir, "sandboxes", id)) },
		Handler: func(string) (sandbox.Handler, error) {
			return sandbox.Handler{Runtime: containerd.Runtime{Type: containerd.RuncType}}, nil
		},
		Spec:   spec.Input{Host: host, System: spec.NewSystem()},
		Notify: func(*store.Container, runtimeapi.ContainerEventType) {},
		Log:    containerdtest.Log(w.t),
	})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := w.m.Recover(w.t.Context()); err != nil {
		w.t.Fatal(err)
	}
}

// picture is all that containers leave on the machine.
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
	for _, pattern := range []string{"ctr/*", "sandboxes/*/containers/*"} {
		found, err := filepath.Glob(filepath.Join(w.dir, pattern))
		if err != nil {
			w.t.Fatal(err)
		}
		out = append(out, found...)
	}
	cs, err := w.client.ListContainers(w.t.Context(), "")
	if err != nil {
		w.t.Fatal(err)
	}
	for _, c := range cs {
		out = append(out, "container "+c.ID)
	}
	keys, err := w.client.ContainerSnapshots(w.t.Context(), "overlayfs")
	if err != nil {
		w.t.Fatal(err)
	}
	out = append(out, keys...)
	out = append(out, fmt.Sprintf("%d records", len(w.m.deps.Store.Containers.Select(nil))))
	slices.Sort(out)
	return out
}

func (w *world) same(before []string) {
	w.t.Helper()
	stepstest.Same(w.t, before, w.picture())
}

func (w *world) config() *runtimeapi.ContainerConfig {
	host := runtimeapi.NamespaceMode_NODE
	return &runtimeapi.ContainerConfig{
		Metadata: &runtimeapi.ContainerMetadata{Name: "c"},
		Image:    &runtimeapi.ImageSpec{Image: containerdtest.Busybox},
		Command:  []string{"/bin/sleep", "1000"},
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
			NamespaceOptions: &runtimeapi.NamespaceOption{Network: host, Pid: host, Ipc: host},
		}},
	}
}

// build is a container under construction.
func (w *world) build() *building {
	w.t.Helper()
	b := &building{m: w.m, id: store.NewID()}
	if err := b.prepare(w.t.Context(), w.sb.ID, w.config()); err != nil {
		w.t.Fatal(err)
	}
	if err := w.m.deps.Store.Containers.Put(b.c); err != nil {
		w.t.Fatal(err)
	}
	return b
}

func TestRootCreateCutShort(t *testing.T) {
	w := newWorld(t)
	stepstest.CutShort(t, stepstest.World{
		Restart: w.restart, Picture: w.picture,
		Build: func() ([]steps.Step, func(error) error) {
			b := w.build()
			return b.table(), func(cause error) error { return w.m.abandon(b.c.ID, cause) }
		},
	})
}

// A start that a kill -9 of the daemon cuts short has either not happened, or
// the container runs.
func TestRootStartCutShort(t *testing.T) {
	w := newWorld(t)
	before := w.picture()
	id, err := w.m.Create(t.Context(), w.sb.ID, w.config())
	if err != nil {
		t.Fatal(err)
	}
	c, _ := w.m.deps.Store.Containers.Get(id)
	mounts, err := w.client.SnapshotMounts(t.Context(), c.Snapshotter, c.SnapshotKey)
	if err != nil {
		t.Fatal(err)
	}
	rt := containerd.Runtime{Type: containerd.RuncType}
	if _, err := w.m.createTask(t.Context(), &store.Container{ID: id}, rt, mounts, containerd.Streams{}); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if c, _ := w.m.deps.Store.Containers.Get(id); c.State != store.ContainerCreated {
		t.Errorf("a task that was not started: %s", c.State)
	}
	if _, err := w.m.createTask(t.Context(), &store.Container{ID: id}, rt, mounts, containerd.Streams{}); err != nil {
		t.Fatal(err)
	}
	if _, err := w.client.StartProcess(t.Context(), containerd.Process{ContainerID: id}); err != nil {
		t.Fatal(err)
	}
	w.restart()
	if c, _ := w.m.deps.Store.Containers.Get(id); c.State != store.ContainerRunning || c.PID == 0 {
		t.Errorf("a task that was started: %+v", c)
	}
	for range 2 {
		if err := w.m.Remove(t.Context(), id); err != nil {
			t.Fatal(err)
		}
	}
	w.same(before)
}
