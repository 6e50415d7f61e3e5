// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"context"
	"fmt"
	"io/fs"
	"os"
	"syscall"
)

// What a group may do in a tree that was given to it, as the kubelet sets it for a
// pod's fsGroup: files read and written, directories entered and handed down.
const (
	groupFile = 0o660
	groupDir  = 0o770 | fs.ModeSetgid
)

// GiveGroup gives the tree at dir to a group, owners staying as they are. The root is
// done last: a root that is the group's says that all below it is, so that the next
// time costs one call, and an interrupted walk is walked again. Whatever the tree's
// users do meanwhile, nothing outside of it is touched.
func GiveGroup(ctx context.Context, dir string, gid int) error {
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("give %s to group %d: %w", dir, gid, err)
	}
	defer func() { _ = root.Close() }()
	top, err := root.Lstat(".")
	if err != nil {
		return fmt.Errorf("give %s to group %d: %w", dir, gid, err)
	}
	if groupHas(top, gid) {
		return nil
	}
	err = fs.WalkDir(root.FS(), ".", func(path string, d fs.DirEntry, err error) error {
		switch {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case os.IsNotExist(err) || path == ".":
			return nil // gone meanwhile; and the root comes last
		case err != nil:
			return err
		}
		info, err := d.Info()
		if err == nil && !groupHas(info, gid) {
			err = giveOne(root, path, info, gid)
		}
		if os.IsNotExist(err) {
			return nil
		}
		return err
	})
	if err == nil {
		err = giveOne(root, ".", top, gid)
	}
	if err != nil {
		return fmt.Errorf("give %s to group %d: %w", dir, gid, err)
	}
	return nil
}

// groupHas reports whether a file already is the group's in every way.
func groupHas(info fs.FileInfo, gid int) bool {
	st, ok := info.Sys().(*syscall.Stat_t)
	if !ok || int(st.Gid) != gid {
		return false
	}
	want := groupMode(info)
	return info.Mode()&want == want
}

func groupMode(info fs.FileInfo) fs.FileMode {
	switch {
	case info.IsDir():
		return groupDir
	case info.Mode()&fs.ModeSymlink != 0:
		return 0
	default:
		return groupFile
	}
}

func giveOne(root *os.Root, path string, info fs.FileInfo, gid int) error {
	if err := root.Lchown(path, -1, gid); err != nil {
		return err
	}
	if more := groupMode(info); more != 0 {
		// After the owner: changing it takes setuid and setgid bits off files.
		return root.Chmod(path, info.Mode().Perm()|info.Mode()&(fs.ModeSetuid|fs.ModeSetgid|fs.ModeSticky)|more)
	}
	return nil
}
