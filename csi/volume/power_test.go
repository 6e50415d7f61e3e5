// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/mount"
	"github.com/nodeagent/nodeagent/csi/mount/mounttest"
)

// platter is a pool's disk of which an image can be taken at any moment: exactly
// the blocks that have reached it, as after a power cut. What is only in the page
// cache, or in a journal that was not flushed, is lost.
type platter struct {
	t      *testing.T
	image  string // on a file system with reflinks
	fsType string
	cuts   []cut
}

type cut struct {
	image string
	after string   // the checkpoint it was taken at
	done  []string // verbs that had answered by then
	// whole asks for a look at the pool's file system and the snapshot's contents, too.
	whole bool
}

func newDisk(t *testing.T, fsType string) *platter {
	t.Helper()
	mounttest.Root(t)
	dir := mounttest.FileSystem(t, "xfs", 3<<30)
	d := &platter{t: t, image: filepath.Join(dir, "disk"), fsType: fsType}
	f := must[*os.File](t)(os.Create(d.image))
	defer func() { _ = f.Close() }()
	if err := f.Truncate(512 << 20); err != nil {
		t.Fatal(err)
	}
	l := d.attach(d.image)
	defer func() { _ = l.Close() }()
	if err := mount.MakeFS(context.Background(), l.Path, mount.FormatOptions{Type: fsType}); err != nil {
		t.Fatal(err)
	}
	return d
}

func (d *platter) attach(image string) *mount.Loop {
	d.t.Helper()
	return must[*mount.Loop](d.t)(mount.AttachLoop(context.Background(), image, mount.LoopOptions{BlockSize: 4096, DirectIO: true, AutoClear: true}))
}

func (d *platter) mount(image, at string) {
	d.t.Helper()
	l := d.attach(image)
	defer func() { _ = l.Close() }()
	if err := mount.Mount(mount.FS{Type: d.fsType, Source: l.Path}, at); err != nil {
		d.t.Fatal(err)
	}
}

// cut takes the disk's image now.
func (d *platter) cut(after string, done []string) {
	src := must[*os.File](d.t)(os.Open(d.image))
	defer func() { _ = src.Close() }()
	name := fmt.Sprintf("%s-%d", d.image, len(d.cuts))
	dst := must[*os.File](d.t)(os.Create(name))
	defer func() { _ = dst.Close() }()
	if err := mount.Clone(dst, src); err != nil {
		d.t.Fatal(err)
	}
	d.cuts = append(d.cuts, cut{image: name, after: after, done: slices.Clone(done)})
}

// The power goes at every checkpoint of a volume's life. What a verb had
// answered for is there when it comes back, with its data; what was being made
// is gone; and the life goes on.
func TestRootPowerLoss(t *testing.T) {
	for _, fs := range []string{"xfs", "ext4"} {
		t.Run(fs, func(t *testing.T) {
			d := newDisk(t, fs)
			pool := t.TempDir()
			d.mount(d.image, pool)
			w := newWorldOn(t, PoolConfig{Name: "p", Path: pool, Backend: BackendFile, RequireMount: true})
			var done []string
			w.point = func(verb, step string) error {
				if fs == "xfs" { // the verbs' ends are enough for the second file system
					d.cut(verb+"/"+step, done)
				}
				return nil
			}
			for _, l := range lifeOf("life") {
				w.ok(l.do(context.Background(), w.m, w.dir))
				done = append(done, l.name)
				d.cut("end of "+l.name, done)
			}
			w.point = nil
			w.stop()
			w.ok(mount.Unmount(pool))
			for _, c := range d.cuts {
				t.Run(c.after, func(t *testing.T) {
					w.t, d.t = t, t
					comeBack(t, w, d, c, pool)
				})
			}
			w.t, d.t = t, t
			d.mount(d.image, pool) // for the world's own end
			t.Cleanup(func() { _ = unix.Unmount(pool, unix.MNT_DETACH) })
			w.start()
		})
	}
}

//nolint:cyclop // what must be true after a power cut, in the order of a life
func comeBack(t *testing.T, w *world, d *platter, c cut, pool string) {
	t.Helper()
	d.mount(c.image, pool)
	// A reboot takes everything under /run with it.
	if err := os.Remove(filepath.Join(w.dir, "state.db")); err != nil && !os.IsNotExist(err) {
		t.Fatal(err)
	}
	if err := os.RemoveAll(filepath.Join(w.dir, "kubelet")); err != nil {
		t.Fatal(err)
	}
	w.start()
	defer func() {
		w.stop()
		for _, p := range []string{"target", "stage"} { // still there when the test failed
			_ = mount.Unmount(filepath.Join(w.dir, "kubelet", p))
		}
		if err := mount.Unmount(pool); err != nil {
			t.Error(err)
		}
		if c.whole {
			checkDisk(t, c.image, d.fsType)
		}
		_ = os.Remove(c.image)
	}()
	id := w.cfg.volumeID("life")
	has := func(verb string) bool { return slices.Contains(c.done, verb) }
	if has("create") && !has("unstage") {
		if _, err := w.m.Get(id); err != nil {
			t.Fatalf("the volume is lost: %v", err)
		}
	}
	if has("snapshot") && !has("delete clone") {
		if _, err := w.m.GetSnapshot(w.cfg.snapshotID("life")); err != nil {
			t.Errorf("the snapshot is lost: %v", err)
		}
		if c.whole {
			restores(w, w.cfg.snapshotID("life"))
		}
	}
	if has("delete") && w.m.peek(id) != nil {
		t.Error("the deleted volume is back")
	}
	if has("write") && !has("unstage") {
		stage := w.path("stage")
		w.ok(w.m.Stage(context.Background(), StageRequest{ID: id, Path: stage, Capability: mounted}))
		b, err := os.ReadFile(filepath.Join(stage, "data"))
		if err != nil || string(b) != lifeText {
			t.Errorf("the volume holds %q: %v", b, err)
		}
		w.ok(w.m.Unstage(context.Background(), id, stage))
	}
	for _, l := range lifeOf("life") {
		if err := l.do(context.Background(), w.m, w.dir); err != nil {
			t.Fatalf("%s after the power came back: %v", l.name, err)
		}
	}
	w.clean()
}
