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
	"github.com/nodeagent/nodeagent/csi/mount/mounttest"
)

// A pool never promises more than it holds, snapshots' copies included: writers
// of thick volumes never find it full, whatever is snapshotted.
func TestRootLedger(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "xfs", 1<<30)
	raw := Capability{Block: true, Mode: SingleWriter}
	avail := func() int64 { return must[Capacity](t)(w.m.Capacity(ctx, nil)).Available }
	free := avail()
	v := must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: "a", Required: 256 << 20, Capabilities: []Capability{raw}}))
	if d := free - avail(); d < 250<<20 || d > 260<<20 {
		t.Errorf("a volume of 256Mi costs %d", d)
	}
	_, err := w.m.Create(ctx, CreateRequest{Name: "b", Required: 900 << 20, Capabilities: []Capability{raw}})
	w.want(err, ErrNoSpace)
	must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: "thin", Required: 4 << 30, Capabilities: []Capability{raw}, Parameters: map[string]string{"provisioning": "thin"}}))
	_, err = w.m.Create(ctx, CreateRequest{Name: "thinner", Required: 8 << 30, Capabilities: []Capability{raw}, Parameters: map[string]string{"provisioning": "thin"}})
	w.want(err, ErrNoSpace)

	stage, target := w.path("stage"), w.target("dev")
	w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: stage, Capability: raw}))
	w.ok(w.m.Publish(ctx, PublishRequest{ID: v.ID, Staging: stage, Target: target, Capability: raw}))
	dev := must[*os.File](t)(os.OpenFile(target, os.O_RDWR|unix.O_SYNC, 0))
	defer func() { _ = dev.Close() }()
	over := func(b byte) {
		buf := []byte(strings.Repeat(string(b), 1<<20))
		for off := int64(0); off < 256<<20; off += 1 << 20 {
			if _, err := dev.WriteAt(buf, off); err != nil {
				t.Fatalf("a thick volume's write at %d: %v", off, err)
			}
		}
	}
	over('1')
	before := avail()
	s := must[Volume](t)(w.m.Snapshot(ctx, SnapshotRequest{Name: "s", Volume: v.ID, Parameters: map[string]string{"freeze": "never"}}))
	if d := before - avail(); d < 256<<20 || d > 260<<20 {
		t.Errorf("a snapshot of 256Mi of data costs %d", d)
	}
	// Take what the pool still promises, then overwrite: the copies have room.
	rest := avail() - 8<<20
	must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: "rest", Required: rest, Capabilities: []Capability{raw}}))
	s2 := must[Volume](t)(w.m.Snapshot(ctx, SnapshotRequest{Name: "s2", Volume: v.ID})) // keeps what s keeps: costs nothing
	over('2')
	_, err = w.m.Snapshot(ctx, SnapshotRequest{Name: "s3", Volume: v.ID})
	w.want(err, ErrNoSpace)
	w.ok(w.m.DeleteSnapshot(ctx, s2.ID))
	w.ok(w.m.DeleteSnapshot(ctx, s.ID))
	if a := avail(); a < 200<<20 {
		t.Errorf("after the snapshot is gone %d bytes are left", a)
	}
	w.ok(dev.Close())
	w.ok(w.m.Unpublish(ctx, v.ID, target))
	w.ok(w.m.Unstage(ctx, v.ID, stage))
}

// Of what a volume and its clones have in common, one keeps the blocks that are
// there: each clone costs its size once, and the first to be overwritten pays.
func TestRootLedgerOfClones(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "xfs", 1<<30)
	raw := Capability{Block: true, Mode: SingleWriter}
	avail := func() int64 { return must[Capacity](t)(w.m.Capacity(ctx, nil)).Available }
	costs := func(what string, want int64, do func()) {
		t.Helper()
		before := avail()
		do()
		w.m.pools["p"].forget() // what was measured is believed for a while
		if d := before - avail(); d < want-4<<20 || d > want+4<<20 {
			t.Errorf("%s costs %d MiB, want %d", what, d>>20, want>>20)
		}
	}
	v := must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: "a", Required: 128 << 20, Capabilities: []Capability{raw}}))
	img := must[*os.File](t)(os.OpenFile(filepath.Join(w.cfg.Pools[0].Path, "v", v.ID, "data.img"), os.O_RDWR, 0))
	defer func() { _ = img.Close() }()
	over := func() {
		must[int](t)(img.WriteAt([]byte(strings.Repeat("x", 128<<20)), 0))
		w.ok(img.Sync())
	}
	over()
	clone := func(name string) func() {
		return func() {
			must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: name, Required: 128 << 20, Capabilities: []Capability{raw}, Source: &SourceRef{Kind: KindVolume, ID: v.ID}}))
		}
	}
	costs("a clone", 128<<20, clone("b"))
	costs("another", 128<<20, clone("c"))
	costs("a snapshot of all three's blocks", 128<<20, func() { must[Volume](t)(w.m.Snapshot(ctx, SnapshotRequest{Name: "s", Volume: v.ID})) })
	costs("a clone while a snapshot keeps them", 128<<20, clone("d"))
	costs("overwriting what was promised", 0, over)
	costs("the snapshot's end", -128<<20, func() { w.ok(w.m.DeleteSnapshot(ctx, w.cfg.snapshotID("s"))) })
	for _, name := range []string{"b", "c", "d"} {
		costs("the end of "+name, -128<<20, func() { w.ok(w.m.Delete(ctx, w.cfg.volumeID(name))) })
	}
}

// A pool filled behind our back: verbs say so, change nothing, and nothing is lost.
func TestRootFullPool(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "xfs", 512<<20)
	v := w.create("a")
	target := w.use(v.ID, "a")
	w.write(target, "1")
	hog := filepath.Join(w.cfg.Pools[0].Path, "hog")
	f := must[*os.File](t)(os.Create(hog))
	defer func() { _ = f.Close() }()
	for size := int64(64 << 20); size >= 4096; size /= 2 {
		for {
			st := must[os.FileInfo](t)(f.Stat())
			if unix.Fallocate(int(f.Fd()), 0, st.Size(), size) != nil {
				break
			}
		}
	}
	_, err := w.m.Create(ctx, CreateRequest{Name: "b", Required: testBytes, Capabilities: []Capability{mounted}})
	w.want(err, ErrNoSpace)
	_, err = w.m.Snapshot(ctx, SnapshotRequest{Name: "s", Volume: v.ID})
	w.want(err, ErrNoSpace)
	_, err = w.m.Expand(ctx, v.ID, 2*testBytes, 0)
	w.want(err, ErrNoSpace)
	if n, err := fill(t, target); !errors.Is(err, unix.ENOSPC) || n < 16<<20 {
		t.Errorf("the reserved volume took %d bytes: %v", n, err)
	}
	w.read(target, "1")
	w.release(v.ID, "a")
	w.restart()
	w.ok(w.m.Delete(ctx, v.ID))
	w.ok(f.Close())
	w.ok(os.Remove(hog))
	w.clean()
}

func TestRootPoolComesLate(t *testing.T) {
	ctx := context.Background()
	mounttest.Root(t)
	disk := mounttest.Disks(t, 2, 512<<20)
	for _, d := range disk {
		if err := mount.MakeFS(ctx, d, mount.FormatOptions{Type: "ext4"}); err != nil {
			t.Fatal(err)
		}
	}
	dir := t.TempDir()
	mountPool := func(d string) {
		if err := mount.Mount(mount.FS{Type: "ext4", Source: d}, dir); err != nil {
			t.Fatal(err)
		}
	}
	mountPool(disk[0])
	t.Cleanup(func() { _ = mount.Unmount(dir) })
	w := newWorldOn(t, PoolConfig{Name: "p", Path: dir, Backend: BackendFile})
	v := w.create("a")
	w.write(w.use(v.ID, "a"), "1")
	w.release(v.ID, "a")
	w.stop()

	away := func(why string) {
		w.start()
		_, err := w.m.Create(ctx, CreateRequest{Name: "b", Required: testBytes, Capabilities: []Capability{mounted}})
		w.want(err, ErrUnavailable)
		w.want(w.m.Delete(ctx, v.ID), ErrUnavailable)
		w.want(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: w.path("s"), Capability: mounted}), ErrUnavailable)
		h := w.m.PoolHealth(ctx)
		if len(h) != 1 || h[0].Type != Inaccessible || !strings.Contains(h[0].Message, why) {
			t.Errorf("pool health: %+v", h)
		}
		if c := must[Capacity](t)(w.m.Capacity(ctx, nil)); c.Available != 0 {
			t.Errorf("an absent pool offers %d bytes", c.Available)
		}
	}
	if err := mount.Unmount(dir); err != nil {
		t.Fatal(err)
	}
	away("not mounted")
	if names := must[[]os.DirEntry](t)(os.ReadDir(dir)); len(names) != 0 {
		t.Errorf("the unmounted pool was written through: %v", names)
	}
	w.stop()
	mountPool(disk[1])
	away("file system is not mounted")
	if err := mount.Unmount(dir); err != nil {
		t.Fatal(err)
	}
	// The right disk comes while the daemon runs.
	mountPool(disk[0])
	w.ok(w.m.bringUp(ctx, w.m.pools["p"]))
	w.read(w.use(v.ID, "a"), "1")

	// Gone while a pod uses a volume and the daemon is down: the pod can still go.
	w.stop()
	w.ok(unix.Unmount(dir, unix.MNT_DETACH))
	w.start()
	w.ok(w.m.Unpublish(ctx, v.ID, w.target("a")))
	w.ok(w.m.Unstage(ctx, v.ID, w.path("stage-a")))
	mountPool(disk[0])
	w.ok(w.m.bringUp(ctx, w.m.pools["p"]))
	w.read(w.use(v.ID, "a"), "1")

	// Taken away again, from under the running daemon.
	w.release(v.ID, "a")
	if err := mount.Unmount(dir); err != nil {
		t.Fatal(err)
	}
	_, err := w.m.Create(ctx, CreateRequest{Name: "b", Required: testBytes, Capabilities: []Capability{mounted}})
	w.want(err, ErrUnavailable)
	if h := must[[]Condition](t)(w.m.Health(ctx, v.ID)); len(h) != 1 || h[0].Reason != "PoolUnavailable" {
		t.Errorf("health: %+v", h)
	}
	mountPool(disk[0])
	w.ok(w.m.Delete(ctx, v.ID))
	w.clean()
}

// What a person or a newer version wrote is refused with the reason, and left.
func TestRootForeignRecords(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "", 0)
	v := w.create("a")
	meta := filepath.Join(w.cfg.Pools[0].Path, dirVolumes, v.ID, metaName)
	good := must[[]byte](t)(os.ReadFile(meta))
	for name, tc := range map[string]struct{ text, why string }{
		"newer version":  {strings.Replace(string(good), `"version": 1`, `"version": 7`, 1), "newer nodeagent"},
		"unknown field":  {strings.Replace(string(good), `"version": 1`, `"version": 1, "colour": "red"`, 1), "colour"},
		"torn":           {string(good[:len(good)/2]), "JSON"},
		"empty":          {"", "JSON"},
		"another id":     {strings.Replace(string(good), v.ID, "vol-"+strings.Repeat("0", 32), 1), "id"},
		"negative size":  {strings.Replace(string(good), `"bytes": `, `"bytes": -`, 1), "size"},
		"unknown format": {strings.Replace(string(good), `"version": 1`, `"version": 1, "format": "fat"`, 1), "format"},
	} {
		t.Run(name, func(t *testing.T) {
			w.t = t
			w.ok(os.WriteFile(meta, []byte(tc.text), 0o600))
			w.restart()
			for verb, err := range map[string]error{
				"stage":  w.m.Stage(ctx, StageRequest{ID: v.ID, Path: w.path("s"), Capability: mounted}),
				"delete": w.m.Delete(ctx, v.ID),
			} {
				if err == nil || !strings.Contains(err.Error(), tc.why) {
					t.Errorf("%s: %v", verb, err)
				}
			}
			_, err := w.m.Create(ctx, CreateRequest{Name: "a", Required: testBytes, Capabilities: []Capability{mounted}})
			if err == nil {
				t.Error("created over it")
			}
			if h := must[[]Condition](t)(w.m.Health(ctx, v.ID)); len(h) != 1 || h[0].Reason != "RecordUnreadable" {
				t.Errorf("health: %+v", h)
			}
			if now := must[[]byte](t)(os.ReadFile(meta)); string(now) != tc.text {
				t.Error("the record was changed")
			}
		})
	}
	w.t = t
	w.ok(os.WriteFile(meta, good, 0o600))
	w.restart()
	w.ok(w.m.Delete(ctx, v.ID))
	w.clean()
}

// Data that is gone or cut short shows in the volume's health, and is never
// formatted over.
func TestRootLostData(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "", 0)
	v := w.create("a")
	w.write(w.use(v.ID, "a"), "1")
	w.release(v.ID, "a")
	img := filepath.Join(w.cfg.Pools[0].Path, dirVolumes, v.ID, "data.img")
	stage := func() error {
		return w.m.Stage(ctx, StageRequest{ID: v.ID, Path: w.path("stage-a"), Capability: mounted})
	}
	reason := func(want string) {
		t.Helper()
		for _, c := range must[[]Condition](t)(w.m.Health(ctx, v.ID)) {
			if c.Reason == want && c.Type == DataLoss {
				return
			}
		}
		t.Errorf("health does not say %s: %+v", want, must[[]Condition](t)(w.m.Health(ctx, v.ID)))
	}
	w.ok(os.Rename(img, img+".away"))
	w.want(stage(), ErrDamaged)
	reason("DataMissing")
	w.ok(os.WriteFile(img, []byte("short"), 0o600))
	w.want(stage(), ErrDamaged)
	reason("DataDamaged")
	w.ok(os.Truncate(img, 0))
	w.ok(os.Truncate(img, testBytes)) // blank: looks like a fresh volume
	w.want(stage(), ErrDamaged)
	if format := must[string](t)(mount.Detect(img)); format != mount.FormatBlank {
		t.Errorf("the blank image was formatted: %q", format)
	}
	w.ok(os.Rename(img+".away", img))
	w.ok(stage())
	if h := must[[]Condition](t)(w.m.Health(ctx, v.ID)); len(h) != 0 {
		t.Errorf("health after the repair: %+v", h)
	}
	w.read(w.path("stage-a"), "1")
	w.ok(w.m.Unstage(ctx, v.ID, w.path("stage-a")))
}

// Damage that the checker will not repair by itself is not mounted over.
func TestRootDamagedFilesystem(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "", 0)
	v := w.create("a")
	w.write(w.use(v.ID, "a"), "1")
	w.release(v.ID, "a")
	img := must[*os.File](t)(os.OpenFile(filepath.Join(w.cfg.Pools[0].Path, dirVolumes, v.ID, "data.img"), os.O_RDWR, 0))
	good := make([]byte, 4096)
	must[int](t)(img.ReadAt(good, 4096))
	must[int](t)(img.WriteAt([]byte(strings.Repeat("\xa5", 4096)), 4096)) // the group descriptors
	w.ok(img.Sync())
	req := StageRequest{ID: v.ID, Path: w.path("stage-a"), Capability: mounted}
	w.want(w.m.Stage(ctx, req), ErrDamaged)
	if h := must[[]Condition](t)(w.m.Health(ctx, v.ID)); len(h) != 1 || h[0].Reason != "StageFailed" || h[0].Type != DataLoss {
		t.Errorf("health: %+v", h)
	}
	must[int](t)(img.WriteAt(good, 4096))
	w.ok(img.Sync())
	w.ok(img.Close())
	w.ok(w.m.Stage(ctx, req))
	w.read(req.Path, "1")
	if h := must[[]Condition](t)(w.m.Health(ctx, v.ID)); len(h) != 0 {
		t.Errorf("health after the repair: %+v", h)
	}
	w.ok(w.m.Unstage(ctx, v.ID, req.Path))
}

// A raw volume's loop device freed by somebody else is missed, said, and made anew.
func TestRootLostLoop(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "", 0)
	raw := Capability{Block: true, Mode: SingleWriter}
	v := must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: "a", Required: testBytes, Capabilities: []Capability{raw}}))
	stage := w.path("stage")
	req := StageRequest{ID: v.ID, Path: stage, Capability: raw}
	w.ok(w.m.Stage(ctx, req))
	id := must[mount.FileID](t)(mount.StatFileID(filepath.Join(w.cfg.Pools[0].Path, dirVolumes, v.ID, "data.img")))
	loops := must[[]*mount.Loop](t)(mount.LoopsOf(id, ""))
	w.ok(mount.DetachLoop(ctx, loops[0]))
	if h := must[[]Condition](t)(w.m.Health(ctx, v.ID)); len(h) != 1 || h[0].Reason != "DeviceLost" {
		t.Errorf("health: %+v", h)
	}
	w.want(w.m.Publish(ctx, PublishRequest{ID: v.ID, Staging: stage, Target: w.target("a"), Capability: raw}), ErrPrecondition)
	w.ok(w.m.Stage(ctx, req))
	w.ok(w.m.Publish(ctx, PublishRequest{ID: v.ID, Staging: stage, Target: w.target("a"), Capability: raw}))
	w.ok(w.m.Unpublish(ctx, v.ID, w.target("a")))
	w.ok(w.m.Unstage(ctx, v.ID, stage))
	w.ok(w.m.Delete(ctx, v.ID))
	w.clean()
}

func TestRootBadRequestsChangeNothing(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "", 0)
	one := []Capability{mounted}
	for name, req := range map[string]CreateRequest{
		"no name":           {Required: 1, Capabilities: one},
		"no capability":     {Name: "x", Required: 1},
		"unknown parameter": {Name: "x", Capabilities: one, Parameters: map[string]string{"colour": "red"}},
		"unknown class":     {Name: "x", Capabilities: one, Parameters: map[string]string{"class": "gold"}},
		"bad provisioning":  {Name: "x", Capabilities: one, Parameters: map[string]string{"provisioning": "fat"}},
		"unknown mutable":   {Name: "x", Capabilities: one, Mutable: map[string]string{"colour": "red"}},
		"negative limit":    {Name: "x", Capabilities: one, Mutable: map[string]string{"readIOPS": "-1"}},
		"unknown fs":        {Name: "x", Capabilities: []Capability{{Mode: SingleWriter, FSType: "ntfs"}}},
		"two nodes":         {Name: "x", Capabilities: []Capability{{Mode: MultiNodeWriters}}},
		"unknown mode":      {Name: "x", Capabilities: []Capability{{Mode: "ALL"}}},
		"bind option":       {Name: "x", Capabilities: []Capability{{Mode: SingleWriter, Flags: []string{"bind"}}}},
	} {
		if _, err := w.m.Create(ctx, req); !errors.Is(err, ErrInvalid) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for name, req := range map[string]CreateRequest{
		"negative":          {Name: "x", Required: -1, Capabilities: one},
		"limit below":       {Name: "x", Required: 10 << 20, Limit: 9 << 20, Capabilities: one},
		"limit too small":   {Name: "x", Limit: 100, Capabilities: one},
		"absurd":            {Name: "x", Required: 1 << 62, Capabilities: one},
		"xfs below minimum": {Name: "x", Required: 1 << 20, Limit: 2 << 20, Capabilities: []Capability{{Mode: SingleWriter, FSType: "xfs"}}},
	} {
		if _, err := w.m.Create(ctx, req); !errors.Is(err, ErrRange) {
			t.Errorf("%s: %v", name, err)
		}
	}
	for _, id := range []string{"../x", "a/b", "..", "vol-" + strings.Repeat("f", 32), ".", "\x00"} {
		w.want(w.m.Stage(ctx, StageRequest{ID: id, Path: w.path("s"), Capability: mounted}), ErrNotFound)
		w.ok(w.m.Delete(ctx, id))
		w.ok(w.m.DeleteSnapshot(ctx, id))
		w.ok(w.m.DeleteGroup(ctx, id, nil))
		w.ok(w.m.Unstage(ctx, id, w.path("s")))
		w.ok(w.m.Unpublish(ctx, id, w.target("s")))
	}
	w.clean()
	v := w.create("a")
	link := filepath.Join(w.dir, "link")
	w.ok(os.Symlink(w.path("real"), link))
	for path, want := range map[string]error{
		link: ErrInvalid, "relative": ErrInvalid, w.path("s") + "/": ErrInvalid, w.path("s") + "/../s": ErrInvalid, "/": ErrInvalid,
		filepath.Join(w.dir, "none"): ErrPrecondition,
	} {
		if err := w.m.Stage(ctx, StageRequest{ID: v.ID, Path: path, Capability: mounted}); !errors.Is(err, want) {
			t.Errorf("stage at %s: %v", path, err)
		}
	}
	// Somebody else's mount is neither taken for ours nor taken away.
	other := w.path("other")
	w.ok(mount.Mount(mount.FS{Type: "tmpfs", Source: "other"}, other))
	w.want(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: other, Capability: mounted}), ErrPrecondition)
	w.want(w.m.Unstage(ctx, v.ID, other), ErrPrecondition)
	w.want(w.m.Unpublish(ctx, v.ID, other), ErrPrecondition)
	w.want(w.m.Unpublish(ctx, "vol-x", other), ErrNotFound)
	if at := must[mount.Point](t)(mount.At(other)); !at.Mounted {
		t.Error("somebody else's mount is gone")
	}
	w.ok(mount.Unmount(other))
	// A mount option that the file system refuses.
	err := w.m.Stage(ctx, StageRequest{ID: v.ID, Path: w.path("s"), Capability: Capability{Mode: SingleWriter, Flags: []string{"colour=red"}}})
	w.want(err, ErrInvalid)
	if strings.Contains(err.Error(), "red") {
		t.Errorf("the option's value is in the error: %v", err)
	}
	w.ok(w.m.Delete(ctx, v.ID))
	w.clean()
}

// A pool whose thin volumes may soon find no room says so, and says no more when
// there is room again.
func TestRootThinAlarm(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "xfs", 512<<20)
	raw := Capability{Block: true, Mode: SingleWriter}
	alarm := func() bool {
		return slices.ContainsFunc(w.m.PoolHealth(ctx), func(c PoolCondition) bool { return c.Pool == "p" && c.Reason == "PoolNearlyFull" })
	}
	v := must[Volume](t)(w.m.Create(ctx, CreateRequest{
		Name: "thin", Required: 2 << 30, Capabilities: []Capability{raw}, Parameters: map[string]string{"provisioning": "thin"},
	}))
	if alarm() {
		t.Error("an empty pool is nearly full")
	}
	img := must[*os.File](t)(os.OpenFile(filepath.Join(w.m.pools["p"].dir(KindVolume, v.ID), "data.img"), os.O_RDWR, 0))
	defer func() { _ = img.Close() }()
	space := must[backend.Space](t)(w.m.pools["p"].be.Space(ctx))
	w.ok(unix.Fallocate(int(img.Fd()), 0, 0, space.Free-space.Total/50)) // as its pod's writes would
	if !alarm() {
		t.Error("2% are left, and nobody says so")
	}
	_, err := w.m.Create(ctx, CreateRequest{Name: "thick", Required: 64 << 20, Capabilities: []Capability{raw}})
	w.want(err, ErrNoSpace)
	w.ok(w.m.Delete(ctx, v.ID))
	if alarm() {
		t.Error("the pool is empty again")
	}
}
