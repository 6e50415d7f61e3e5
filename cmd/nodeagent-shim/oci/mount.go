// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"runtime"
	"strings"

	"golang.org/x/sys/unix"
)

// Mount is one mount of a root file system, as containerd's snapshotters describe it.
type Mount struct {
	Type, Source, Target string
	Options              []string
}

// flagOptions are the mount options that are flags; a flag with Clear set takes one away.
func flagOptions() map[string]struct {
	Clear bool
	Flag  uintptr
} {
	type f = struct {
		Clear bool
		Flag  uintptr
	}
	return map[string]f{
		"async": {true, unix.MS_SYNCHRONOUS}, "atime": {true, unix.MS_NOATIME}, "bind": {false, unix.MS_BIND},
		"defaults": {}, "dev": {true, unix.MS_NODEV}, "diratime": {true, unix.MS_NODIRATIME}, "dirsync": {false, unix.MS_DIRSYNC},
		"exec": {true, unix.MS_NOEXEC}, "noatime": {false, unix.MS_NOATIME}, "nodev": {false, unix.MS_NODEV},
		"nodiratime": {false, unix.MS_NODIRATIME}, "noexec": {false, unix.MS_NOEXEC}, "norelatime": {true, unix.MS_RELATIME},
		"nosuid": {false, unix.MS_NOSUID}, "rbind": {false, unix.MS_BIND | unix.MS_REC}, "relatime": {false, unix.MS_RELATIME},
		"ro": {false, unix.MS_RDONLY}, "rw": {true, unix.MS_RDONLY}, "strictatime": {false, unix.MS_STRICTATIME},
		"suid": {true, unix.MS_NOSUID}, "sync": {false, unix.MS_SYNCHRONOUS},
	}
}

// maxData is how much option text mount(2) takes.
const maxData = 4095

// MountAll mounts a root file system at target. userns is the path of the user namespace that idmapped layers belong to.
func MountAll(mounts []Mount, target, userns string) error {
	if err := os.MkdirAll(target, 0o711); err != nil {
		return fmt.Errorf("make root: %w", err)
	}
	for _, m := range mounts {
		at := filepath.Join(target, m.Target)
		if err := mountOne(m, at, userns); err != nil {
			_ = UnmountAll(target)
			return fmt.Errorf("mount %s at %s: %w", m.Type, at, err)
		}
	}
	return nil
}

// UnmountAll removes all mounts at target; that there is none is fine.
func UnmountAll(target string) error {
	for {
		switch err := unix.Unmount(target, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err {
		case nil:
		case unix.EINVAL, unix.ENOENT:
			return nil
		default:
			return fmt.Errorf("unmount %s: %w", target, err)
		}
	}
}

// RemoveRoot removes all mounts at target, and the empty directory below them: where there is none, containerd's removal of the
// bundle does not look for mounts in it, which takes a reading of the whole mount table.
func RemoveRoot(target string) error {
	if err := UnmountAll(target); err != nil {
		return err
	}
	_ = os.Remove(target) // one that is not empty is not ours
	return nil
}

func mountOne(m Mount, target, userns string) error {
	var flags uintptr
	var data []string
	idmapped := false
	known := flagOptions()
	for _, o := range m.Options {
		f, isFlag := known[o]
		switch {
		case isFlag && f.Clear:
			flags &^= f.Flag
		case isFlag:
			flags |= f.Flag
		case strings.HasPrefix(o, "uidmap=") || strings.HasPrefix(o, "gidmap="):
			idmapped = true
		case o == "loop":
			return fmt.Errorf("option %q is not supported: %w", o, unix.ENOTSUP)
		default:
			data = append(data, o)
		}
	}
	if !idmapped {
		return mountPlain(m, target, flags, data)
	}
	return mountIDMapped(m, target, flags, data, userns)
}

func mountPlain(m Mount, target string, flags uintptr, data []string) error {
	text := strings.Join(data, ",")
	if len(text) > maxData && m.Type == "overlay" {
		return mountFromParent(m, target, flags, data)
	}
	if len(text) > maxData {
		return fmt.Errorf("%d bytes of options: %w", len(text), unix.E2BIG)
	}
	if err := unix.Mount(m.Source, target, m.Type, flags, text); err != nil {
		return err
	}
	// A bind mount takes its other flags in a second step.
	if flags&unix.MS_BIND != 0 && flags&^(unix.MS_BIND|unix.MS_REC) != 0 {
		return unix.Mount("", target, "", flags|unix.MS_REMOUNT, "")
	}
	return nil
}

// mountFromParent mounts an overlay of many layers: relative to their common directory the names are short enough. The thread
// gets a working directory of its own for that and ends with the goroutine.
func mountFromParent(m Mount, target string, flags uintptr, data []string) error {
	parent, short := shorten(data)
	if len(strings.Join(short, ",")) > maxData {
		return fmt.Errorf("options of %d layers: %w", strings.Count(strings.Join(short, ","), ":")+1, unix.E2BIG)
	}
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: the thread is spoilt
		if err := unix.Unshare(unix.CLONE_FS); err != nil {
			done <- err
			return
		}
		if err := unix.Chdir(parent); err != nil {
			done <- err
			return
		}
		done <- unix.Mount(m.Source, target, m.Type, flags, strings.Join(short, ","))
	}()
	return <-done
}

// shorten makes the lower directories relative to the deepest directory they share.
func shorten(data []string) (string, []string) {
	out := append([]string(nil), data...)
	for i, o := range out {
		list, ok := strings.CutPrefix(o, "lowerdir=")
		if !ok {
			continue
		}
		dirs := strings.Split(list, ":")
		parent := path.Dir(dirs[0])
		for _, d := range dirs {
			for !strings.HasPrefix(d, strings.TrimSuffix(parent, "/")+"/") {
				parent = path.Dir(parent)
			}
		}
		for j, d := range dirs {
			dirs[j] = strings.TrimPrefix(d[len(parent):], "/")
		}
		out[i] = "lowerdir=" + strings.Join(dirs, ":")
		return parent, out
	}
	return "/", out
}
