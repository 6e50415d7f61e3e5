// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/csi/mount/mounttest"
)

// BenchmarkRootVerbs measures what a pod waits for, per verb, as p50 and p95 in
// milliseconds, on a volume of 10 GiB in a reserved pool: `go test -bench Verbs
// ./csi/volume`. The pool is the machine's own file system, or an XFS on a loop
// device.
func BenchmarkRootVerbs(b *testing.B) {
	for _, tc := range []struct{ pool, fs string }{{"", "ext4"}, {"", "xfs"}, {"xfs", "ext4"}} {
		b.Run(fmt.Sprintf("pool=%s/fs=%s", orOwn(tc.pool), tc.fs), func(b *testing.B) { benchVerbs(b, tc.pool, tc.fs) })
	}
}

func orOwn(fs string) string {
	if fs == "" {
		return "own"
	}
	return fs
}

func benchVerbs(b *testing.B, pool, fs string) {
	b.Helper()
	mounttest.Root(b)
	const bytes = 10 << 30
	dir := b.TempDir()
	w := benchManager(b, dir, PoolConfig{Name: "p", Path: mounttest.FileSystem(b, pool, 16<<30), Backend: BackendFile})
	took := map[string][]float64{}
	ctx := b.Context()
	timed := func(name string, f func() error) {
		start := time.Now()
		if err := f(); err != nil {
			b.Fatalf("%s: %v", name, err)
		}
		took[name] = append(took[name], float64(time.Since(start).Microseconds())/1000)
	}
	c := Capability{Mode: SingleWriter, FSType: fs}
	stage, target := filepath.Join(dir, "stage"), filepath.Join(dir, "target")
	if err := os.Mkdir(stage, 0o755); err != nil {
		b.Fatal(err)
	}
	for i := 0; b.Loop(); i++ {
		name := fmt.Sprintf("v%d", i)
		id := w.cfg.volumeID(name)
		start := time.Now()
		timed("create", func() error {
			_, err := w.Create(ctx, CreateRequest{Name: name, Required: bytes, Capabilities: []Capability{c}})
			return err
		})
		timed("stage", func() error { return w.Stage(ctx, StageRequest{ID: id, Path: stage, Capability: c}) })
		timed("publish", func() error {
			return w.Publish(ctx, PublishRequest{ID: id, Staging: stage, Target: target, Capability: c})
		})
		took["ready"] = append(took["ready"], float64(time.Since(start).Microseconds())/1000)
		if pool == "xfs" {
			timed("snapshot", func() error {
				_, err := w.Snapshot(ctx, SnapshotRequest{Name: name, Volume: id})
				return err
			})
			timed("unsnapshot", func() error { return w.DeleteSnapshot(ctx, w.cfg.snapshotID(name)) })
		}
		timed("unpublish", func() error { return w.Unpublish(ctx, id, target) })
		timed("unstage", func() error { return w.Unstage(ctx, id, stage) })
		timed("delete", func() error { return w.Delete(ctx, id) })
	}
	for name, all := range took {
		slices.Sort(all)
		b.ReportMetric(all[len(all)/2], name+"-p50-ms")
		b.ReportMetric(all[len(all)*95/100], name+"-p95-ms")
	}
}

func benchManager(b *testing.B, dir string, pool PoolConfig) *Manager {
	b.Helper()
	db, err := openDB(dir)
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = db.Close() })
	m, err := New(testConfig(dir, pool), Deps{Log: discard(), DB: db})
	if err != nil {
		b.Fatal(err)
	}
	if err := m.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { _ = m.Stop(context.WithoutCancel(b.Context())) })
	return m
}
