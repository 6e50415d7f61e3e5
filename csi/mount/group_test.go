// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/nodeagent/nodeagent/csi/mount"
	"github.com/nodeagent/nodeagent/csi/mount/mounttest"
)

// TestRootGiveGroup gives a tree to one group and then to another: owners, rights of
// others and what symbolic links point to stay as they were.
func TestRootGiveGroup(t *testing.T) {
	mounttest.Root(t)
	dir, outside := t.TempDir(), filepath.Join(t.TempDir(), "outside")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(os.MkdirAll(filepath.Join(dir, "a/b"), 0o700))
	must(os.WriteFile(filepath.Join(dir, "a/b/tool"), nil, 0o755))
	must(os.WriteFile(outside, nil, 0o600))
	must(os.Symlink(outside, filepath.Join(dir, "a/link")))
	must(os.Lchown(filepath.Join(dir, "a/b"), 1000, 1000))
	is := func(path string, uid, gid int, mode fs.FileMode) {
		t.Helper()
		info, err := os.Lstat(path)
		must(err)
		st, _ := info.Sys().(*syscall.Stat_t)
		if int(st.Uid) != uid || int(st.Gid) != gid || mode != 0 && info.Mode()&(fs.ModePerm|fs.ModeSetgid) != mode {
			t.Errorf("%s: %d:%d %v, want %d:%d %v", path, st.Uid, st.Gid, info.Mode(), uid, gid, mode)
		}
	}
	for _, gid := range []int{2000, 3000} {
		must(mount.GiveGroup(t.Context(), dir, gid))
		is(dir, 0, gid, 0o775|fs.ModeSetgid)
		is(filepath.Join(dir, "a/b"), 1000, gid, 0o770|fs.ModeSetgid)
		is(filepath.Join(dir, "a/b/tool"), 0, gid, 0o775)
		is(filepath.Join(dir, "a/link"), 0, gid, 0)
		is(outside, 0, 0, 0o600)
	}

	// The root says that all is done: one call, and files stay as their users made them.
	must(os.Chown(filepath.Join(dir, "a/b/tool"), 0, 77))
	must(mount.GiveGroup(t.Context(), dir, 3000))
	is(filepath.Join(dir, "a/b/tool"), 0, 77, 0o775)

	// A walk that was cut short leaves a root that says so, and is done again.
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := mount.GiveGroup(ctx, dir, 4000); !errors.Is(err, context.Canceled) {
		t.Errorf("cancelled: %v", err)
	}
	is(dir, 0, 3000, 0)
	must(mount.GiveGroup(t.Context(), dir, 4000))
	is(filepath.Join(dir, "a/b/tool"), 0, 4000, 0o775)
}
