// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"bytes"
	"context"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/csi/mount"
)

// A request is counted once, with the mean of its interval; what did nothing changes
// nothing.
func TestMeterBuckets(t *testing.T) {
	v := &metered{}
	for op := range v.hist {
		v.hist[op] = make([]uint64, len(LatencyBounds()))
	}
	io := func(n uint64, took time.Duration) mount.DiskIO {
		return mount.DiskIO{Count: n, Bytes: n * 4096, Time: took}
	}
	v.add([ops]mount.DiskIO{opWrite: io(100, 20*time.Millisecond)}) // 200 µs each
	v.add([ops]mount.DiskIO{opWrite: io(100, 20*time.Millisecond)})
	v.add([ops]mount.DiskIO{opWrite: io(110, 120*time.Millisecond)}) // ten of 10 ms
	if v.sum[opWrite] != io(110, 120*time.Millisecond) || v.sum[opRead].Count != 0 {
		t.Errorf("sum %+v", v.sum)
	}
	for i, bound := range LatencyBounds() {
		want := uint64(0)
		if bound >= 250e-6 {
			want = 100
		}
		if bound >= 10e-3 {
			want = 110
		}
		if got := v.hist[opWrite][i]; got != want {
			t.Errorf("at most %v: %d requests, want %d", bound, got, want)
		}
	}
}

// TestRootMeter writes to a volume and finds it in the volume's account, not in that of
// the next one on the same device.
func TestRootMeter(t *testing.T) {
	w := newWorld(t, "", 0)
	v := w.create("busy")
	target := w.use(v.ID, "busy")
	const size = 4 << 20
	w.ok(os.WriteFile(filepath.Join(target, "x"), bytes.Repeat([]byte("x"), size), 0o600))
	f, err := os.Open(filepath.Join(target, "x"))
	w.ok(err)
	w.ok(f.Sync())
	w.ok(f.Close())
	var wrote, flushed IO
	for _, io := range w.m.IO()[v.ID] {
		switch io.Op {
		case "write":
			wrote = io
		case "flush":
			flushed = io
		}
	}
	if wrote.Bytes < size || wrote.Count == 0 || wrote.Buckets[len(wrote.Buckets)-1] > wrote.Count {
		t.Errorf("writes %+v", wrote)
	}
	if flushed.Count == 0 {
		t.Errorf("flushes %+v", flushed)
	}
	if fill := w.m.Fill(context.Background())[v.ID]; fill.Used < size || fill.Total > testBytes || fill.InodesUsed == 0 {
		t.Errorf("fill %+v", fill)
	}
	w.restart() // what was attached is found again, and counted from now
	deadline := time.Now().Add(10 * time.Second)
	for len(w.m.IO()[v.ID]) != int(ops) {
		if time.Now().After(deadline) {
			t.Fatal("not followed after a restart")
		}
	}
	w.release(v.ID, "busy")
	if left := w.m.IO(); len(left) > 0 {
		t.Errorf("still counted: %v", left)
	}
	w.ok(w.m.Delete(context.Background(), v.ID))
}
