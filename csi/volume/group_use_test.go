// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"os"
	"path/filepath"
	"syscall"
	"testing"
)

// TestRootMountGroup shares a volume between pods of several groups: each publish gives
// what is in it to its group, a read-only one gives nothing, and a bad group is refused
// before anything is done.
func TestRootMountGroup(t *testing.T) {
	w := newWorld(t, "", 0)
	ctx := context.Background()
	v := w.create("shared")
	as := func(group string) Capability {
		c := mounted
		c.Group = group
		return c
	}
	publish := func(target, group string, readOnly bool) error {
		return w.m.Publish(ctx, PublishRequest{
			ID: v.ID, Staging: w.path("stage"), Target: w.target(target), Capability: as(group), ReadOnly: readOnly,
		})
	}
	is := func(gid int) {
		t.Helper()
		for _, path := range []string{"", "x"} {
			info, err := os.Stat(filepath.Join(w.path("stage"), path))
			w.ok(err)
			st, _ := info.Sys().(*syscall.Stat_t)
			if int(st.Gid) != gid || info.Mode()&0o060 != 0o060 {
				t.Errorf("%q: group %d, mode %v, want %d", path, st.Gid, info.Mode(), gid)
			}
		}
	}
	w.want(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: w.path("stage"), Capability: as("staff")}), ErrInvalid)
	w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: w.path("stage"), Capability: as("2000")}))
	w.write(w.path("stage"), "shared")
	w.ok(os.Chmod(filepath.Join(w.path("stage"), "x"), 0o660))
	is(2000)
	w.want(publish("bad", "-1", false), ErrInvalid)
	w.ok(publish("one", "2000", false))
	w.ok(publish("two", "3000", false))
	is(3000)
	w.ok(publish("three", "4000", true))
	is(3000)
	// The kubelet asks again after a restart, with any of the pods' groups.
	w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: w.path("stage"), Capability: as("3000")}))
	w.ok(publish("one", "2000", false))
	is(3000)
	for _, target := range []string{"one", "two", "three"} {
		w.ok(w.m.Unpublish(ctx, v.ID, w.target(target)))
	}
	w.ok(w.m.Unstage(ctx, v.ID, w.path("stage")))
	w.ok(w.m.Delete(ctx, v.ID))
	w.clean()
}
