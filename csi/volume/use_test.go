// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

func TestRootSecondPublish(t *testing.T) {
	ctx := context.Background()
	for _, tc := range []struct {
		name          string
		first, second AccessMode
		sameTarget    bool
		readOnly      bool // the second
		want          error
	}{
		{"same again", SingleWriter, SingleWriter, true, false, nil},
		{"same target, read-only now", SingleWriter, SingleWriter, true, true, ErrExists},
		{"same target, other mode", SingleWriter, NodePodsWriter, true, false, ErrExists},
		{"second pod, single writer (the kubelet allows it)", SingleWriter, SingleWriter, false, false, nil},
		{"second pod, several writers", NodePodsWriter, NodePodsWriter, false, false, nil},
		{"second pod, single pod writer", SinglePodWriter, SinglePodWriter, false, false, ErrPrecondition},
		{"second pod beside a single pod writer", SinglePodWriter, NodePodsWriter, false, false, ErrPrecondition},
		{"readers", MultiReader, MultiReader, false, false, nil},
	} {
		t.Run(tc.name, func(t *testing.T) {
			w := newWorld(t, "", 0)
			v := w.create("a")
			stage := w.path("stage")
			w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: stage, Capability: Capability{Mode: tc.first}}))
			pub := func(name string, mode AccessMode, ro bool) error {
				return w.m.Publish(ctx, PublishRequest{ID: v.ID, Staging: stage, Target: w.target(name), ReadOnly: ro, Capability: Capability{Mode: mode}})
			}
			w.ok(pub("one", tc.first, false))
			second := "two"
			if tc.sameTarget {
				second = "one"
			}
			if err := pub(second, tc.second, tc.readOnly); !errors.Is(err, tc.want) {
				t.Errorf("second publish: %v, want %v", err, tc.want)
			}
			w.want(w.m.Unstage(ctx, v.ID, stage), ErrInUse)
			w.want(w.m.Delete(ctx, v.ID), ErrInUse)
			for range 2 {
				w.ok(w.m.Unpublish(ctx, v.ID, w.target("one")))
				w.ok(w.m.Unpublish(ctx, v.ID, w.target("two")))
				w.ok(w.m.Unstage(ctx, v.ID, stage))
			}
			w.ok(w.m.Delete(ctx, v.ID))
			w.clean()
		})
	}
}

// The kubelet stages and publishes everything again after its own restart, and
// so do we after ours; with the state file lost (as by a reboot, but with the
// mounts still there) the kernel's word is enough.
func TestRootAgainAfterRestart(t *testing.T) {
	w := newWorld(t, "", 0)
	v := w.create("a")
	target := w.use(v.ID, "a")
	w.write(target, "1")
	for _, lose := range []bool{false, true} {
		w.stop()
		if lose {
			w.ok(os.Remove(filepath.Join(w.dir, "state.db")))
		}
		w.start()
		w.use(v.ID, "a")
		w.use(v.ID, "a")
		w.read(target, "1")
		if n := len(must[[]mount.Entry](t)(mount.Table(target))); n != 1 {
			t.Errorf("%d mounts at the target", n)
		}
		if loops := loopsBelow(t, w.cfg.Pools[0].Path); len(loops) != 1 {
			t.Errorf("loops: %s", loops)
		}
	}
	w.release(v.ID, "a")
	w.ok(w.m.Delete(context.Background(), v.ID))
	w.clean()
}

// After a reboot there are records of the kubelet's, but no mounts and no loops.
func TestRootReboot(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "", 0)
	v := w.create("a")
	target := w.use(v.ID, "a")
	w.write(target, "1")
	w.stop()
	w.ok(mount.Unmount(target))
	w.ok(mount.Unmount(w.path("stage-a")))
	w.ok(os.Remove(filepath.Join(w.dir, "state.db")))
	w.start()
	w.want(w.m.Publish(ctx, PublishRequest{ID: v.ID, Staging: w.path("stage-a"), Target: target, Capability: mounted}), ErrPrecondition)
	w.use(v.ID, "a")
	w.read(target, "1")
	w.release(v.ID, "a")
	w.ok(w.m.Delete(ctx, v.ID))
	w.clean()
}

func TestRootReadOnly(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "", 0)
	v := w.create("a")
	target := w.use(v.ID, "a")
	ro := w.target("ro")
	w.ok(w.m.Publish(ctx, PublishRequest{ID: v.ID, Staging: w.path("stage-a"), Target: ro, ReadOnly: true, Capability: mounted}))
	w.write(target, "1")
	w.read(ro, "1")
	if err := os.WriteFile(filepath.Join(ro, "y"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write at the read-only target: %v", err)
	}
	w.ok(w.m.Unpublish(ctx, v.ID, ro))
	w.release(v.ID, "a")
}

func TestRootBlock(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "", 0)
	raw := Capability{Block: true, Mode: NodePodsWriter}
	v := must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: "a", Required: testBytes, Capabilities: []Capability{raw}}))
	stage, rw, ro := w.path("stage"), w.target("rw"), w.target("ro")
	pub := func(target string, readOnly bool) error {
		return w.m.Publish(ctx, PublishRequest{ID: v.ID, Staging: stage, Target: target, ReadOnly: readOnly, Capability: raw})
	}
	w.want(pub(rw, false), ErrPrecondition) // not staged
	for range 2 {
		w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: stage, Capability: raw}))
		w.ok(pub(rw, false))
		w.ok(pub(ro, true))
	}
	if n := len(must[[]mount.Entry](t)(mount.Table(rw))); n != 1 {
		t.Errorf("%d mounts at the target", n)
	}
	data := []byte(strings.Repeat("raw!", 1024))
	dev := must[*os.File](t)(os.OpenFile(rw, os.O_RDWR|unix.O_SYNC, 0))
	must[int](t)(dev.WriteAt(data, 8192))
	w.ok(dev.Close())
	if f, err := os.OpenFile(ro, os.O_WRONLY, 0); err == nil {
		_, err = f.WriteAt(data, 0)
		if err == nil {
			err = f.Sync()
		}
		if err == nil {
			t.Error("the read-only device was written")
		}
		_ = f.Close()
	}
	got := make([]byte, len(data))
	f := must[*os.File](t)(os.Open(ro))
	must[int](t)(f.ReadAt(got, 8192))
	w.ok(f.Close())
	if string(got) != string(data) {
		t.Error("the reader does not see what was written")
	}
	if s := must[Stats](t)(w.m.Stats(ctx, v.ID, rw)); s.Total != testBytes || !s.Block {
		t.Errorf("stats %+v", s)
	}
	must[Expanded](t)(w.m.Expand(ctx, v.ID, 2*testBytes, 0))
	must[int64](t)(w.m.ExpandOnNode(ctx, v.ID, rw, 2*testBytes))
	if n := must[int64](t)(mount.DeviceSize(rw)); n != 2*testBytes {
		t.Errorf("device has %d bytes", n)
	}
	// A raw volume is never formatted, and one with data of its own never mounted.
	w.want(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: w.path("stage2"), Capability: mounted}), ErrExists)
	w.ok(w.m.Unpublish(ctx, v.ID, rw))
	w.ok(w.m.Unpublish(ctx, v.ID, ro))
	w.ok(w.m.Unstage(ctx, v.ID, stage))
	w.want(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: stage, Capability: mounted}), ErrPrecondition)
	w.ok(w.m.Delete(ctx, v.ID))
	w.clean()
}

func TestRootExpandFilesystem(t *testing.T) {
	ctx := context.Background()
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fs, func(t *testing.T) {
			w := newWorld(t, "", 0)
			c := Capability{Mode: SingleWriter, FSType: fs}
			v := must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: "a", Required: 320 << 20, Capabilities: []Capability{c}}))
			stage := w.path("stage")
			w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: stage, Capability: c}))
			w.write(stage, "1")
			before := must[Stats](t)(w.m.Stats(ctx, v.ID, stage))
			must[Expanded](t)(w.m.Expand(ctx, v.ID, 640<<20, 0))
			_, err := w.m.ExpandOnNode(ctx, v.ID, stage, 640<<20)
			if errors.Is(err, ErrPrecondition) && fs == "ext4" {
				// No CAP_SYS_RESOURCE: the next stage grows it.
				w.ok(w.m.Unstage(ctx, v.ID, stage))
				w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: stage, Capability: c}))
				_, err = w.m.ExpandOnNode(ctx, v.ID, stage, 640<<20)
			}
			w.ok(err)
			after := must[Stats](t)(w.m.Stats(ctx, v.ID, stage))
			if after.Total < before.Total+(280<<20) {
				t.Errorf("file system went from %d to %d bytes", before.Total, after.Total)
			}
			w.read(stage, "1")
			w.ok(w.m.Unstage(ctx, v.ID, stage))
			w.ok(w.m.Delete(ctx, v.ID))
			w.clean()
		})
	}
}

func TestRootSnapshotCloneRestoreLarger(t *testing.T) {
	ctx := context.Background()
	for _, tc := range []struct{ pool, fs string }{{"", "ext4"}, {"xfs", "ext4"}, {"xfs", "xfs"}, {"btrfs", "ext4"}} {
		t.Run("pool "+tc.pool+", volume "+tc.fs, func(t *testing.T) {
			w := newWorld(t, tc.pool, 4<<30)
			c := Capability{Mode: SingleWriter, FSType: tc.fs}
			make1 := func(name string, bytes int64, src *SourceRef) (Volume, string) {
				v := must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: name, Required: bytes, Capabilities: []Capability{c}, Source: src}))
				p := w.path(name)
				w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: p, Capability: c}))
				return v, p
			}
			src, at := make1("src", 304<<20, nil)
			w.write(at, "before")
			snap := must[Volume](t)(w.m.Snapshot(ctx, SnapshotRequest{Name: "s", Volume: src.ID}))
			again := must[Volume](t)(w.m.Snapshot(ctx, SnapshotRequest{Name: "s", Volume: src.ID}))
			if again.ID != snap.ID || again.Handle != snap.Handle {
				t.Error("the same name made another snapshot")
			}
			w.write(at, "after")
			restored, rat := make1("restored", 400<<20, &SourceRef{Kind: KindSnapshot, ID: snap.ID})
			w.read(rat, "before")
			clone, cat := make1("clone", 304<<20, &SourceRef{Kind: KindVolume, ID: src.ID})
			w.read(cat, "after")
			w.write(cat, "clone's own")
			w.read(at, "after")
			if s := must[Stats](t)(w.m.Stats(ctx, restored.ID, rat)); s.Total < 320<<20 {
				t.Errorf("the larger restore has %d bytes", s.Total)
			}
			_, err := w.m.Create(ctx, CreateRequest{Name: "small", Required: testBytes, Limit: testBytes, Capabilities: []Capability{c}, Source: &SourceRef{Kind: KindSnapshot, ID: snap.ID}})
			w.want(err, ErrRange)
			w.ok(w.m.Unstage(ctx, src.ID, at))
			w.ok(w.m.Delete(ctx, src.ID))
			w.ok(w.m.DeleteSnapshot(ctx, snap.ID))
			w.read(rat, "before")
			for _, v := range []struct {
				v  Volume
				at string
			}{{restored, rat}, {clone, cat}} {
				w.ok(w.m.Unstage(ctx, v.v.ID, v.at))
				w.ok(w.m.Delete(ctx, v.v.ID))
			}
			w.clean()
		})
	}
}

func TestRootChangedBlocks(t *testing.T) {
	ctx := context.Background()
	for _, pool := range []string{"xfs", ""} {
		t.Run("pool "+pool, func(t *testing.T) {
			w := newWorld(t, pool, 1<<30)
			raw := Capability{Block: true, Mode: SingleWriter}
			v := must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: "a", Required: 16 << 20, Capabilities: []Capability{raw}}))
			stage, target := w.path("stage"), w.target("dev")
			write := func(offsets ...int64) {
				w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: stage, Capability: raw}))
				w.ok(w.m.Publish(ctx, PublishRequest{ID: v.ID, Staging: stage, Target: target, Capability: raw}))
				f := must[*os.File](t)(os.OpenFile(target, os.O_RDWR|unix.O_SYNC, 0))
				for _, off := range offsets {
					must[int](t)(f.WriteAt([]byte(strings.Repeat("x", 4096)), off))
				}
				w.ok(f.Close())
				w.ok(w.m.Unpublish(ctx, v.ID, target))
				w.ok(w.m.Unstage(ctx, v.ID, stage))
			}
			write(0, 1<<20, 1<<20+4096, 8<<20)
			s1 := must[Volume](t)(w.m.Snapshot(ctx, SnapshotRequest{Name: "1", Volume: v.ID}))
			write(2<<20, 8<<20+4096)
			s2 := must[Volume](t)(w.m.Snapshot(ctx, SnapshotRequest{Name: "2", Volume: v.ID}))
			collect := func(walk func(yield func(backend.Range) bool) (int64, error)) []backend.Range {
				var out []backend.Range
				if size, err := walk(func(r backend.Range) bool { out = append(out, r); return true }); err != nil || size != 16<<20 {
					t.Fatalf("size %d, %v", size, err)
				}
				return out
			}
			alloc := func(from int64) []backend.Range {
				return collect(func(y func(backend.Range) bool) (int64, error) { return w.m.Allocated(ctx, s1.ID, from, y) })
			}
			if got, want := alloc(0), []backend.Range{{Offset: 0, Length: 4096}, {Offset: 1 << 20, Length: 8192}, {Offset: 8 << 20, Length: 4096}}; !slices.Equal(got, want) {
				t.Errorf("allocated %v, want %v", got, want)
			}
			if got, want := alloc(1<<20+4096), []backend.Range{{Offset: 1<<20 + 4096, Length: 4096}, {Offset: 8 << 20, Length: 4096}}; !slices.Equal(got, want) {
				t.Errorf("allocated from the middle %v, want %v", got, want)
			}
			got := collect(func(y func(backend.Range) bool) (int64, error) { return w.m.Delta(ctx, s1.ID, s2.ID, 0, y) })
			if want := []backend.Range{{Offset: 2 << 20, Length: 4096}, {Offset: 8<<20 + 4096, Length: 4096}}; !slices.Equal(got, want) {
				t.Errorf("delta %v, want %v", got, want)
			}
			_, err := w.m.Delta(ctx, "snap-none", s2.ID, 0, nil)
			w.want(err, ErrNotFound)
			_, err = w.m.Allocated(ctx, s1.ID, 17<<20, nil)
			w.want(err, ErrRange)
		})
	}
}

// A writer that appends to two volumes in turn never sees, in a group snapshot,
// the later write without the earlier one.
func TestRootGroupSnapshotKeepsOrder(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "xfs", 2<<30)
	a, b := w.create("a"), w.create("b")
	ta, tb := w.use(a.ID, "a"), w.use(b.ID, "b")
	stop, done := make(chan struct{}), make(chan struct{})
	fa := must[*os.File](t)(os.Create(filepath.Join(ta, "log")))
	fb := must[*os.File](t)(os.Create(filepath.Join(tb, "log")))
	go func() {
		defer close(done)
		for {
			select {
			case <-stop:
				return
			default:
			}
			for _, f := range []*os.File{fa, fb} {
				if _, err := f.WriteString("x"); err != nil {
					return
				}
			}
		}
	}()
	var groups []Group
	for _, name := range []string{"1", "2", "3"} {
		g, members, err := w.m.SnapshotGroup(ctx, GroupRequest{Name: name, Volumes: []string{a.ID, b.ID}})
		w.ok(err)
		if len(members) != 2 {
			t.Fatalf("%d members", len(members))
		}
		groups = append(groups, g)
	}
	close(stop)
	<-done
	w.ok(fa.Close())
	w.ok(fb.Close())
	for _, g := range groups {
		size := map[string]int64{}
		for snap, vol := range g.Members {
			v := must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: "r" + snap, Required: testBytes, Capabilities: []Capability{mounted}, Source: &SourceRef{Kind: KindSnapshot, ID: snap}}))
			at := w.path(v.ID)
			w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: at, Capability: mounted}))
			st := must[os.FileInfo](t)(os.Stat(filepath.Join(at, "log")))
			size[vol] = st.Size()
			w.ok(w.m.Unstage(ctx, v.ID, at))
			w.ok(w.m.Delete(ctx, v.ID))
		}
		if d := size[a.ID] - size[b.ID]; d != 0 && d != 1 {
			t.Errorf("group %s: %d bytes in the first volume, %d in the second", g.Name, size[a.ID], size[b.ID])
		}
		for snap := range g.Members {
			w.want(w.m.DeleteSnapshot(ctx, snap), ErrInvalid)
		}
		w.want(w.m.DeleteGroup(ctx, g.ID, []string{"snap-other"}), ErrInvalid)
		w.ok(w.m.DeleteGroup(ctx, g.ID, nil))
		w.ok(w.m.DeleteGroup(ctx, g.ID, nil))
	}
	_, _, err := w.m.SnapshotGroup(ctx, GroupRequest{Name: "x", Volumes: []string{a.ID, "vol-none"}})
	w.want(err, ErrSourceNotFound)
	w.release(a.ID, "a")
	w.release(b.ID, "b")
	w.ok(w.m.Delete(ctx, a.ID))
	w.ok(w.m.Delete(ctx, b.ID))
	w.clean()
}

func TestRootEphemeral(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "", 0)
	req := EphemeralRequest{
		ID: "csi-" + strings.Repeat("0123abcd", 8), Target: w.target("inline"), Capability: Capability{Mode: SingleWriter},
		Attributes: map[string]string{"size": "40Mi", "csi.storage.k8s.io/pod.uid": "u", "writeIOPS": "100"},
		Pod:        PodRef{Namespace: "n", Name: "p", UID: "u-1"},
	}
	for range 2 {
		w.ok(w.m.PublishEphemeral(ctx, req))
	}
	w.write(req.Target, "1")
	w.restart()
	w.ok(w.m.PublishEphemeral(ctx, req))
	w.read(req.Target, "1")
	if v := must[Volume](t)(w.m.Get(req.ID)); v.Bytes != 40<<20 || v.Params.Limits.WriteIOPS != 100 {
		t.Errorf("made %+v", v)
	}
	for range 2 {
		w.ok(w.m.Unpublish(ctx, req.ID, req.Target))
	}
	w.clean()
	req.Attributes = map[string]string{"size": "-1"}
	w.want(w.m.PublishEphemeral(ctx, req), ErrInvalid)
	req.Attributes = map[string]string{"colour": "red"}
	w.want(w.m.PublishEphemeral(ctx, req), ErrInvalid)
	req.ID = "../../etc"
	w.want(w.m.PublishEphemeral(ctx, req), ErrInvalid)
	w.clean()
}
