// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/mount"
	"github.com/nodeagent/nodeagent/csi/mount/mounttest"
)

// replays is how many power cuts TestRootReplay tries on each file system; 0 tries
// one before and one after every flush.
var replays = flag.Int("replays", 5, "power cuts to replay on each file system; 0: around every flush") //nolint:gochecknoglobals // flags are

// The power goes between any two writes to the pool's disk. Every write and flush
// of a volume's life is recorded; the disk is made again as it may be after a cut:
// with what was flushed, and any part of what was not. The pool's file system is
// whole, what had been answered is there, and the life goes on.
func TestRootReplay(t *testing.T) {
	for _, fs := range []string{"xfs", "ext4"} {
		t.Run(fs, func(t *testing.T) {
			d := newDisk(t, fs)
			rec := mounttest.Record(t, d.image)
			pool := t.TempDir()
			d.mount(rec.Path, pool)
			w := newWorldOn(t, PoolConfig{Name: "p", Path: pool, Backend: BackendFile, RequireMount: true})
			answered := map[int]string{} // when which verb was
			born := rec.Now()
			for _, l := range lifeOf("life") {
				w.ok(l.do(context.Background(), w.m, w.dir))
				answered[rec.Now()] = l.name
			}
			w.stop()
			w.ok(mount.Unmount(pool))
			for _, c := range moments(t, rec, born) {
				t.Run(fmt.Sprintf("write %d, seed %d", c.events, c.seed), func(t *testing.T) {
					w.t, d.t = t, t
					image := d.image + "-replayed"
					rec.Cut(image, c.events, c.chance, rand.New(rand.NewPCG(c.seed, 0)))
					comeBack(t, w, d, cut{image: image, done: by(answered, c.events), whole: true}, pool)
				})
			}
			w.t, d.t = t, t
			d.mount(d.image, pool) // for the world's own end
			t.Cleanup(func() { _ = unix.Unmount(pool, unix.MNT_DETACH) })
			w.start()
		})
	}
}

// moment is one power cut.
type moment struct {
	events int // how many the disk had answered
	chance float64
	seed   uint64
}

// moments chooses power cuts, ascending: around every flush, or so many at random.
func moments(t *testing.T, rec *mounttest.Recorder, born int) []moment {
	t.Helper()
	var out []moment
	chances := []float64{0.5, 0, 0.9, 0.1}
	add := func(events int) {
		out = append(out, moment{events, chances[len(out)%len(chances)], rand.Uint64()})
	}
	if *replays == 0 {
		for _, f := range rec.Flushes() {
			if f >= born {
				add(f)
				add(f + 1)
			}
		}
	}
	for i := range *replays { // one in each stretch of the life
		stretch := (rec.Now() - born) / *replays
		add(born + i*stretch + rand.IntN(stretch+1))
	}
	t.Logf("%d power cuts among %d writes and flushes", len(out), rec.Now()-born)
	return out
}

// by lists the verbs that were answered by then.
func by(answered map[int]string, then int) []string {
	var out []string
	for at, name := range answered {
		if at <= then {
			out = append(out, name)
		}
	}
	return out
}

// checkDisk fails when the file system on the image is not whole; it was mounted
// since the cut, so that its log has been replayed.
func checkDisk(t *testing.T, image, fsType string) {
	t.Helper()
	argv := map[string][]string{"xfs": {"xfs_repair", "-n", "-f"}, "ext4": {"e2fsck", "-f", "-n"}}[fsType]
	out, err := exec.CommandContext(t.Context(), argv[0], append(argv[1:], image)...).CombinedOutput()
	if err != nil {
		t.Errorf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

// restores fails when the snapshot does not carry what was written before it.
func restores(w *world, snapshot string) {
	w.t.Helper()
	ctx := context.Background()
	v := must[Volume](w.t)(w.m.Create(ctx, CreateRequest{
		Name: "restored", Required: lifeBytes, Capabilities: []Capability{mounted}, Source: &SourceRef{Kind: KindSnapshot, ID: snapshot},
	}))
	stage := w.path("restored")
	w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: stage, Capability: mounted}))
	b, err := os.ReadFile(filepath.Join(stage, "data"))
	if err != nil || string(b) != lifeText {
		w.t.Errorf("the snapshot holds %q: %v", b, err)
	}
	w.ok(w.m.Unstage(ctx, v.ID, stage))
	w.ok(w.m.Delete(ctx, v.ID))
}
