// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"go.etcd.io/bbolt"

	"github.com/nodeagent/nodeagent/csi/mount"
	"github.com/nodeagent/nodeagent/csi/mount/mounttest"
)

// world is one node's storage: a pool, a state file, a kubelet's directories. The
// manager in it can be stopped, crashed and started again.
type world struct {
	t     *testing.T
	cfg   Config
	dir   string
	db    *bbolt.DB
	m     *Manager
	point func(verb, step string) error
}

func testConfig(dir string, pools ...PoolConfig) Config {
	return Config{NodeName: "node-a", StateDir: filepath.Join(dir, "state"), CgroupRoot: filepath.Join(dir, "cgroup"), Pools: pools}
}

// newWorld makes a world on one pool of image files; fsType "" is the machine's own
// file system (ext4, no reflink).
func newWorld(t *testing.T, fsType string, size int64) *world {
	t.Helper()
	mounttest.Root(t)
	pool := mounttest.FileSystem(t, fsType, size)
	return newWorldOn(t, PoolConfig{Name: "p", Path: pool, Backend: BackendFile, Overcommit: 10})
}

func newWorldOn(t *testing.T, pools ...PoolConfig) *world {
	t.Helper()
	dir := t.TempDir()
	w := &world{t: t, dir: dir, cfg: testConfig(dir, pools...)}
	w.start()
	t.Cleanup(w.stop)
	return w
}

func openDB(dir string) (*bbolt.DB, error) {
	return bbolt.Open(filepath.Join(dir, "state.db"), 0o600, &bbolt.Options{NoSync: true, Timeout: 10 * time.Second})
}

func (w *world) start() {
	w.t.Helper()
	db, err := openDB(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	w.db = db
	m, err := New(w.cfg, Deps{Log: discard(), DB: db, Checkpoint: func(verb, step string) error {
		if w.point == nil {
			return nil
		}
		return w.point(verb, step)
	}})
	if err != nil {
		w.t.Fatal(err)
	}
	if err := m.Start(context.Background()); err != nil {
		w.t.Fatal(err)
	}
	w.m = m
}

func (w *world) stop() {
	if w.m == nil {
		return
	}
	if err := w.m.Stop(context.Background()); err != nil {
		w.t.Error(err)
	}
	_ = w.db.Close()
	w.m = nil
}

func (w *world) restart() {
	w.t.Helper()
	w.stop()
	w.start()
}

// path makes a directory of the kubelet's.
func (w *world) path(name string) string {
	w.t.Helper()
	p := filepath.Join(w.dir, "kubelet", name)
	if err := os.MkdirAll(p, 0o755); err != nil {
		w.t.Fatal(err)
	}
	return p
}

// target is a path whose parent exists.
func (w *world) target(name string) string { return filepath.Join(w.path("targets"), name) }

// clean fails when anything is left of the world's volumes but its pools.
func (w *world) clean() {
	w.t.Helper()
	if left := w.left(); len(left) > 0 {
		w.t.Errorf("left behind: %s", strings.Join(left, ", "))
	}
}

func (w *world) left() []string {
	var out []string
	for _, p := range w.cfg.Pools {
		for _, d := range []string{dirVolumes, dirSnapshots, dirNew, dirTrash} {
			names, err := os.ReadDir(filepath.Join(p.Path, d))
			if err != nil {
				w.t.Fatal(err)
			}
			for _, n := range names {
				out = append(out, p.Name+"/"+d+"/"+n.Name())
			}
		}
		for _, l := range loopsBelow(w.t, p.Path) {
			out = append(out, "loop "+l)
		}
	}
	entries, err := mount.Table(w.dir)
	if err != nil {
		w.t.Fatal(err)
	}
	for _, e := range entries {
		if !slices.ContainsFunc(w.cfg.Pools, func(p PoolConfig) bool { return p.Path == e.Point }) {
			out = append(out, "mount "+e.Point)
		}
	}
	if w.m.state.hurried() {
		out = append(out, "grace periods in a hurry")
	}
	states, err := w.m.state.all()
	if err != nil {
		w.t.Fatal(err)
	}
	for _, s := range states {
		out = append(out, "attachment record of "+s.Volume)
	}
	return out
}

func loopsBelow(t *testing.T, dir string) []string {
	t.Helper()
	ids := map[mount.FileID]string{}
	_ = filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err == nil && d.Type().IsRegular() {
			if id, err := mount.StatFileID(path); err == nil {
				ids[id] = path
			}
		}
		return nil
	})
	loops, err := mount.Loops()
	if err != nil {
		t.Fatal(err)
	}
	var out []string
	for _, l := range loops {
		if p, ok := ids[l.Backing]; ok {
			out = append(out, l.Path+" "+p)
		}
	}
	return out
}

var mounted = Capability{Mode: SingleWriter, FSType: "ext4"} //nolint:gochecknoglobals // a constant in all but name

const testBytes = 32 << 20

// must fails the test on an error.
func must[T any](t *testing.T) func(v T, err error) T {
	t.Helper()
	return func(v T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return v
	}
}

func (w *world) ok(err error) {
	w.t.Helper()
	if err != nil {
		w.t.Fatal(err)
	}
}

func (w *world) create(name string) Volume {
	w.t.Helper()
	return must[Volume](w.t)(w.m.Create(context.Background(), CreateRequest{Name: name, Required: testBytes, Capabilities: []Capability{mounted}}))
}

// use stages and publishes a volume and returns its target.
func (w *world) use(id, name string) string {
	w.t.Helper()
	ctx := context.Background()
	w.ok(w.m.Stage(ctx, StageRequest{ID: id, Path: w.path("stage-" + name), Capability: mounted}))
	target := w.target(name)
	w.ok(w.m.Publish(ctx, PublishRequest{ID: id, Staging: w.path("stage-" + name), Target: target, Capability: mounted}))
	return target
}

func (w *world) release(id, name string) {
	w.t.Helper()
	ctx := context.Background()
	w.ok(w.m.Unpublish(ctx, id, w.target(name)))
	w.ok(w.m.Unstage(ctx, id, w.path("stage-"+name)))
}

func (w *world) want(err, is error) {
	w.t.Helper()
	if !errors.Is(err, is) {
		w.t.Fatalf("error is %v, want %v", err, is)
	}
}

// write puts text into the file x of a volume, on stable storage.
func (w *world) write(dir, text string) {
	w.t.Helper()
	f, err := os.Create(filepath.Join(dir, "x"))
	w.ok(err)
	_, err = f.WriteString(text)
	w.ok(err)
	w.ok(f.Sync())
	w.ok(f.Close())
}

func (w *world) read(dir, text string) {
	w.t.Helper()
	b, err := os.ReadFile(filepath.Join(dir, "x"))
	if err != nil || string(b) != text {
		w.t.Fatalf("the volume holds %q, %v; want %q", b, err, text)
	}
}

func discard() *slog.Logger { return slog.New(slog.DiscardHandler) }
