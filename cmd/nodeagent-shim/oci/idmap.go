// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// mountIDMapped mounts a root file system whose files appear with the owners of a user namespace. An overlay gets idmapped
// clones of its lower layers, held by descriptors until the overlay holds them itself: nothing appears in the mount table of
// the host. Anything else is mounted and then mapped.
func mountIDMapped(m Mount, target string, flags uintptr, data []string, userns string) error {
	if userns == "" {
		return errors.New("idmapped layers, but the container has no user namespace of its own")
	}
	ns, err := os.Open(userns)
	if err != nil {
		return fmt.Errorf("open user namespace: %w", err)
	}
	defer func() { _ = ns.Close() }()
	if m.Type != "overlay" {
		fd, err := cloneMapped(m.Source, ns)
		if err != nil {
			return err
		}
		defer func() { _ = unix.Close(fd) }()
		if err := unix.MoveMount(fd, "", unix.AT_FDCWD, target, unix.MOVE_MOUNT_F_EMPTY_PATH); err != nil {
			return fmt.Errorf("attach mapped root: %w", err)
		}
		return nil
	}
	return mountMappedOverlay(m, target, flags, data, ns)
}

func mountMappedOverlay(m Mount, target string, flags uintptr, data []string, ns *os.File) error {
	var clones []int
	defer func() {
		for _, fd := range clones {
			_ = unix.Close(fd)
		}
	}()
	mapped := append([]string(nil), data...)
	for i, o := range mapped {
		list, ok := strings.CutPrefix(o, "lowerdir=")
		if !ok {
			continue
		}
		dirs := strings.Split(list, ":")
		// Clones of one parent directory are one idmapped mount, however many layers there are.
		parents := map[string]int{}
		for j, d := range dirs {
			parent := filepath.Dir(filepath.Dir(d))
			fd, ok := parents[parent]
			if !ok {
				var err error
				if fd, err = cloneMapped(parent, ns); err != nil {
					return err
				}
				clones = append(clones, fd)
				parents[parent] = fd
			}
			dirs[j] = fmt.Sprintf("%s/%d%s", descriptors(), fd, strings.TrimPrefix(d, parent))
		}
		mapped[i] = "lowerdir=" + strings.Join(dirs, ":")
	}
	return mountPlain(m, target, flags, mapped)
}

// descriptors is the directory that names the process's own. The container sees it in its mount table,
// where programs look for "/proc" and shall find that one alone.
func descriptors() string {
	const dir = "/dev/fd"
	if _, err := os.Stat(dir); err != nil {
		return "/proc/self/fd"
	}
	return dir
}

// cloneMapped returns a detached, idmapped clone of the mount at a path.
func cloneMapped(path string, ns *os.File) (int, error) {
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, unix.OPEN_TREE_CLONE|unix.OPEN_TREE_CLOEXEC)
	if err != nil {
		return -1, fmt.Errorf("clone %s: %w", path, err)
	}
	attr := &unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(ns.Fd())}
	if err := unix.MountSetattr(fd, "", unix.AT_EMPTY_PATH, attr); err != nil {
		_ = unix.Close(fd)
		return -1, fmt.Errorf("map owners of %s: %w", path, err)
	}
	return fd, nil
}
