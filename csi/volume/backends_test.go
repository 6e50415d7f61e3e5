// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/mount"
	"github.com/nodeagent/nodeagent/csi/mount/mounttest"
)

// fill writes until the volume says stop, and returns how much it took.
func fill(t *testing.T, dir string) (int64, error) {
	t.Helper()
	f := must[*os.File](t)(os.Create(filepath.Join(dir, "fill")))
	defer func() { _ = f.Close() }()
	buf := make([]byte, 1<<20)
	for i := range buf {
		buf[i] = byte(i * 7)
	}
	for n := int64(0); ; n += int64(len(buf)) {
		if _, err := f.Write(buf); err != nil {
			return n, err
		}
		if err := f.Sync(); err != nil {
			return n, err
		}
		if n > 4<<30 {
			return n, nil
		}
	}
}

// A volume's size is a wall, whatever the backend.
func TestRootHardLimit(t *testing.T) {
	ctx := context.Background()
	for _, tc := range []struct{ backend, fs string }{{BackendFile, ""}, {BackendBtrfs, "btrfs"}, {BackendTmpfs, ""}, {BackendDisk, ""}} {
		t.Run(tc.backend, func(t *testing.T) {
			mounttest.Root(t)
			pool := PoolConfig{Name: "p", Path: mounttest.FileSystem(t, tc.fs, 1<<30), Backend: tc.backend}
			if tc.backend == BackendDisk {
				pool.Devices = mounttest.Disks(t, 2, 64<<20)
			}
			w := newWorldOn(t, pool)
			plain := Capability{Mode: SingleWriter}
			v := must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: "a", Required: 64 << 20, Capabilities: []Capability{plain}}))
			stage, target := w.path("stage"), w.target("a")
			use := func() {
				w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: stage, Capability: plain}))
				w.ok(w.m.Publish(ctx, PublishRequest{ID: v.ID, Staging: stage, Target: target, Capability: plain}))
			}
			use()
			use()
			n, err := fill(t, target)
			if !errors.Is(err, unix.ENOSPC) && !errors.Is(err, unix.EDQUOT) {
				t.Errorf("after %d bytes: %v", n, err)
			}
			if n < 40<<20 || n > 64<<20 {
				t.Errorf("took %d of %d bytes", n, 64<<20)
			}
			s := must[Stats](t)(w.m.Stats(ctx, v.ID, target))
			if s.Total > 64<<20 || s.Available > 16<<20 {
				t.Errorf("stats %+v", s)
			}
			w.ok(w.m.Unpublish(ctx, v.ID, target))
			w.ok(w.m.Unstage(ctx, v.ID, stage))
			w.ok(w.m.Delete(ctx, v.ID))
			w.clean()
		})
	}
}

func TestRootBtrfsSnapshots(t *testing.T) {
	ctx := context.Background()
	mounttest.Root(t)
	w := newWorldOn(t, PoolConfig{Name: "p", Path: mounttest.FileSystem(t, "btrfs", 1<<30), Backend: BackendBtrfs})
	plain := Capability{Mode: SingleWriter}
	make1 := func(name string, src *SourceRef) (Volume, string) {
		v := must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: name, Required: 64 << 20, Capabilities: []Capability{plain}, Source: src}))
		w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: w.path(name), Capability: plain}))
		return v, w.path(name)
	}
	src, at := make1("src", nil)
	w.write(at, "before")
	snap := must[Volume](t)(w.m.Snapshot(ctx, SnapshotRequest{Name: "s", Volume: src.ID}))
	w.write(at, "after")
	restored, rat := make1("restored", &SourceRef{Kind: KindSnapshot, ID: snap.ID})
	w.read(rat, "before")
	w.write(rat, "own")
	w.read(at, "after")
	w.restart()
	_, _, err := w.m.SnapshotGroup(ctx, GroupRequest{Name: "g", Volumes: []string{src.ID, restored.ID}})
	w.want(err, ErrPrecondition)
	for v, p := range map[string]string{src.ID: at, restored.ID: rat} {
		w.ok(w.m.Unstage(ctx, v, p))
		w.ok(w.m.Delete(ctx, v))
	}
	w.ok(w.m.DeleteSnapshot(ctx, snap.ID))
	w.clean()
}

func TestRootMemoryGrows(t *testing.T) {
	ctx := context.Background()
	mounttest.Root(t)
	w := newWorldOn(t, PoolConfig{Name: "p", Path: t.TempDir(), Backend: BackendTmpfs, Limit: "256Mi"})
	plain := Capability{Mode: SingleWriter}
	v := must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: "a", Required: 16 << 20, Capabilities: []Capability{plain}}))
	stage := w.path("stage")
	w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: stage, Capability: plain}))
	must[Expanded](t)(w.m.Expand(ctx, v.ID, 48<<20, 0))
	must[int64](t)(w.m.ExpandOnNode(ctx, v.ID, stage, 48<<20))
	if s := must[mount.Space](t)(mount.StatSpace(stage)); s.Total != 48<<20 {
		t.Errorf("%d bytes", s.Total)
	}
	_, err := w.m.Create(ctx, CreateRequest{Name: "b", Required: 300 << 20, Capabilities: []Capability{plain}})
	w.want(err, ErrNoSpace)
	w.ok(w.m.Unstage(ctx, v.ID, stage))
	w.ok(w.m.Delete(ctx, v.ID))
	w.clean()
}

// Memory outlives pods and the daemon; after a reboot it is empty, with the owner
// that the class says.
func TestRootMemoryStays(t *testing.T) {
	ctx := context.Background()
	mounttest.Root(t)
	w := newWorldOn(t, PoolConfig{Name: "p", Path: t.TempDir(), Backend: BackendTmpfs})
	plain := Capability{Mode: SingleWriter}
	v := must[Volume](t)(w.m.Create(ctx, CreateRequest{
		Name: "a", Required: 16 << 20, Capabilities: []Capability{plain}, Parameters: map[string]string{"uid": "7", "mode": "0750"},
	}))
	stage := w.path("stage")
	use := func() os.FileInfo {
		w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: stage, Capability: plain}))
		return must[os.FileInfo](t)(os.Stat(stage))
	}
	owned := func(st os.FileInfo, mode os.FileMode) {
		t.Helper()
		if sys, _ := st.Sys().(*syscall.Stat_t); sys.Uid != 7 || st.Mode().Perm() != mode {
			t.Errorf("the root belongs to %d with mode %v", sys.Uid, st.Mode())
		}
	}
	owned(use(), 0o750)
	root := must[[]mount.Entry](t)(mount.Table(stage))[0]
	for _, e := range must[[]mount.Entry](t)(mount.MountsOf(root.Dev)) { // the kubelet would never unstage it
		if e.Root == root.Root && e.Point != stage {
			t.Errorf("%s shows the same root as the stage", e.Point)
		}
	}
	w.write(stage, "kept")
	w.ok(os.Chmod(stage, 0o711)) //nolint:gosec // what a pod may do with its volume
	w.ok(w.m.Unstage(ctx, v.ID, stage))
	must[Expanded](t)(w.m.Expand(ctx, v.ID, 32<<20, 0))
	w.restart()
	owned(use(), 0o711)
	w.read(stage, "kept")
	if s := must[mount.Space](t)(mount.StatSpace(stage)); s.Total != 32<<20 {
		t.Errorf("grown while nobody used it, it has %d bytes", s.Total)
	}
	w.ok(w.m.Unstage(ctx, v.ID, stage))
	w.stop()
	w.ok(mount.Unmount(filepath.Join(w.cfg.Pools[0].Path, dirVolumes, v.ID, "memory"))) // a reboot
	w.start()
	owned(use(), 0o750)
	if _, err := os.Stat(filepath.Join(stage, "x")); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("after the reboot: %v", err)
	}
	w.ok(w.m.Unstage(ctx, v.ID, stage))
	w.ok(w.m.Delete(ctx, v.ID))
	w.clean()
}

func TestRootImage(t *testing.T) {
	ctx := context.Background()
	mounttest.Root(t)
	pool := filepath.Join(t.TempDir(), "pool")
	tree := t.TempDir()
	if err := os.MkdirAll(filepath.Join(pool, "images", "sets"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(tree, "x"), []byte("data set"), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(ctx, "mkfs.erofs", "--quiet", filepath.Join(pool, "images", "sets", "a.erofs"), tree).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v %s", err, out)
	}
	if out, err := exec.CommandContext(ctx, "mksquashfs", tree, filepath.Join(pool, "images", "sets", "a.squashfs"), "-quiet", "-no-progress").CombinedOutput(); err != nil {
		t.Fatalf("mksquashfs: %v %s", err, out)
	}
	if err := os.WriteFile(filepath.Join(pool, "images", "junk"), []byte(strings.Repeat("junk", 9999)), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/etc/passwd", filepath.Join(pool, "images", "out")); err != nil {
		t.Fatal(err)
	}
	w := newWorldOn(t, PoolConfig{Name: "p", Path: pool, Backend: BackendImage})
	reader := Capability{Mode: MultiReader}
	create := func(image string, c Capability) (Volume, error) {
		return w.m.Create(ctx, CreateRequest{Name: image, Required: 1 << 20, Capabilities: []Capability{c}, Parameters: map[string]string{"image": image}})
	}
	for _, image := range []string{"junk", "out", "none"} {
		if _, err := create(image, reader); err == nil {
			t.Errorf("image %q was accepted", image)
		}
	}
	for _, image := range []string{"../../../etc/passwd", "/etc/passwd", ""} {
		_, err := create(image, reader)
		w.want(err, ErrInvalid)
	}
	_, err := create("sets/a.erofs", Capability{Mode: SingleWriter})
	w.want(err, ErrInvalid)
	for _, kind := range []string{"erofs", "squashfs"} {
		v := must[Volume](t)(create("sets/a."+kind, reader))
		stage, target := w.path("stage-"+kind), w.target(kind)
		for range 2 {
			w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: stage, Capability: reader}))
			w.ok(w.m.Publish(ctx, PublishRequest{ID: v.ID, Staging: stage, Target: target, Capability: reader}))
			w.restart()
		}
		w.read(target, "data set")
		if err := os.WriteFile(filepath.Join(target, "y"), nil, 0o600); !errors.Is(err, unix.EROFS) {
			t.Errorf("%s: write: %v", kind, err)
		}
		w.ok(w.m.Unpublish(ctx, v.ID, target))
		w.ok(w.m.Unstage(ctx, v.ID, stage))
		w.ok(w.m.Delete(ctx, v.ID))
		w.clean()
	}
	if _, err := os.Stat(filepath.Join(pool, "images", "sets", "a.erofs")); err != nil {
		t.Errorf("the image went with its volume: %v", err)
	}
}

// A disk with data on it, or in use, is never taken; one that is given back is
// zeroed first.
func TestRootDisk(t *testing.T) {
	ctx := context.Background()
	mounttest.Root(t)
	disks := mounttest.Disks(t, 3, 32<<20)
	dirty := must[*os.File](t)(os.OpenFile(disks[0], os.O_RDWR, 0))
	must[int](t)(dirty.WriteAt([]byte("precious"), 4096))
	if err := dirty.Close(); err != nil {
		t.Fatal(err)
	}
	busy := must[int](t)(unix.Open(disks[1], unix.O_RDONLY|unix.O_EXCL, 0))
	w := newWorldOn(t, PoolConfig{Name: "p", Path: t.TempDir(), Backend: BackendDisk, Devices: disks})
	raw := Capability{Block: true, Mode: SingleWriter}
	create := func(name string) (Volume, error) {
		return w.m.Create(ctx, CreateRequest{Name: name, Required: 32 << 20, Capabilities: []Capability{raw}})
	}
	v := must[Volume](t)(create("a"))
	_, err := create("b")
	w.want(err, ErrNoSpace)
	_, err = w.m.Create(ctx, CreateRequest{Name: "c", Required: 33 << 20, Capabilities: []Capability{raw}})
	w.want(err, ErrNoSpace)
	stage, target := w.path("stage"), w.target("a")
	w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: stage, Capability: raw}))
	w.ok(w.m.Publish(ctx, PublishRequest{ID: v.ID, Staging: stage, Target: target, Capability: raw}))
	f := must[*os.File](t)(os.OpenFile(target, os.O_RDWR|unix.O_SYNC, 0))
	must[int](t)(f.WriteAt([]byte("secret"), 8192))
	w.ok(f.Close())
	w.ok(w.m.Unpublish(ctx, v.ID, target))
	w.ok(w.m.Unstage(ctx, v.ID, stage))
	w.ok(w.m.Delete(ctx, v.ID))
	w.ok(unix.Close(busy))
	got := make([]byte, 6)
	f = must[*os.File](t)(os.Open(disks[2]))
	must[int](t)(f.ReadAt(got, 8192))
	w.ok(f.Close())
	if string(got) != strings.Repeat("\x00", 6) {
		t.Errorf("the disk still holds %q", got)
	}
	must[Volume](t)(create("d"))
	must[Volume](t)(create("e"))
	if format := must[string](t)(mount.Detect(disks[0])); format != mount.FormatUnknown {
		t.Errorf("the disk with data now shows %q", format)
	}
}
