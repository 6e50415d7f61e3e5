// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/nodeagent/nodeagent/csi/mount"
)

//nolint:cyclop // one volume's way out and in
func TestRootExportImport(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "xfs", 1<<30)
	v := w.create("a")
	target := w.use(v.ID, "a")
	w.write(target, "1")
	out := filepath.Join(t.TempDir(), "out.img")
	var last, of int64
	w.ok(w.m.Export(ctx, v.ID, out, func(done, total int64) error {
		if done < last {
			t.Errorf("progress went back from %d to %d", last, done)
		}
		last, of = done, total
		return nil
	}))
	if last == 0 || of != testBytes {
		t.Errorf("progress ended at %d of %d", last, of)
	}
	if len(w.m.Snapshots()) != 0 {
		t.Error("the export's own snapshot is left")
	}
	w.want(w.m.Export(ctx, v.ID, out, nil), ErrInvalid) // never over a file that is there
	w.want(w.m.Export(ctx, "vol-none", out+"2", nil), ErrNotFound)
	stop := errors.New("stop")
	if err := w.m.Export(ctx, v.ID, out+"2", func(int64, int64) error { return stop }); !errors.Is(err, stop) {
		t.Errorf("stopped export: %v", err)
	}
	if _, err := os.Stat(out + "2"); !errors.Is(err, os.ErrNotExist) {
		t.Error("the stopped export left a file")
	}
	in := must[Volume](t)(w.m.Import(ctx, CreateRequest{Name: "b", Required: 64 << 20}, out, nil))
	if in.Format != FormatDone || in.FSType != "ext4" || in.Bytes != 64<<20 {
		t.Errorf("imported %+v", in.Record)
	}
	other := w.use(in.ID, "b")
	w.read(other, "1")
	if s := must[Stats](t)(w.m.Stats(ctx, in.ID, other)); s.Total < 50<<20 {
		t.Errorf("the file system was not grown: %d", s.Total)
	}
	_, err := w.m.Import(ctx, CreateRequest{Name: "b"}, out, nil)
	w.want(err, ErrExists)
	junk := filepath.Join(t.TempDir(), "junk")
	w.ok(os.WriteFile(junk, []byte("just some bytes, no file system at all"), 0o600))
	_, err = w.m.Import(ctx, CreateRequest{Name: "j", Capabilities: []Capability{mounted}}, junk, nil)
	w.want(err, ErrInvalid)
	raw := must[Volume](t)(w.m.Import(ctx, CreateRequest{Name: "j"}, junk, nil))
	if raw.Format != FormatRaw || !raw.Block {
		t.Errorf("imported %+v", raw.Record)
	}
	w.want(w.m.Stage(ctx, StageRequest{ID: raw.ID, Path: w.path("s"), Capability: mounted}), ErrPrecondition)
	d := w.m.Describe(ctx)
	if len(d) != 3 || len(d[0].Conditions)+len(d[1].Conditions)+len(d[2].Conditions) != 0 {
		t.Errorf("described %+v", d)
	}
	w.release(v.ID, "a")
	w.release(in.ID, "b")
	for _, id := range []string{v.ID, in.ID, raw.ID} {
		w.ok(w.m.Delete(ctx, id))
	}
	w.clean()
}

func TestRootFsck(t *testing.T) {
	ctx := context.Background()
	w := newWorld(t, "", 0)
	v := w.create("a")
	pool := w.cfg.Pools[0].Path
	if f := w.m.Fsck(ctx, false); len(f) != 0 {
		t.Fatalf("a healthy pool: %+v", f)
	}
	w.ok(os.MkdirAll(filepath.Join(pool, dirNew, "vol-half"), 0o700))
	w.ok(os.MkdirAll(filepath.Join(pool, dirTrash, "vol-dead.1"), 0o700))
	img := filepath.Join(pool, dirVolumes, v.ID, "data.img")
	l := must[*mount.Loop](t)(mount.AttachLoop(ctx, img, mount.LoopOptions{BlockSize: 4096, DirectIO: true}))
	w.ok(l.Close())
	if f := w.m.Fsck(ctx, false); len(f) != 3 {
		t.Errorf("found %+v", f)
	}
	for _, f := range w.m.Fsck(ctx, true) {
		if !f.Fixed {
			t.Errorf("not fixed: %+v", f)
		}
	}
	if f := w.m.Fsck(ctx, true); len(f) != 0 {
		t.Errorf("after the repair: %+v", f)
	}
	w.ok(os.Truncate(img, 5))
	if f := w.m.Fsck(ctx, true); len(f) != 1 || f[0].Fixed {
		t.Errorf("a short image: %+v", f)
	}
	w.ok(w.m.Delete(ctx, v.ID))
	w.clean()
}
