// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"

	"github.com/containerd/containerd/v2/pkg/sys"
	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/store"
)

// kind is one kind of namespace: its name under /proc/<pid>/ns and its flag.
type kind struct {
	name string
	flag int
}

// kinds that a sandbox may pin, in the order in which they are entered.
func kinds() []kind {
	return []kind{
		{"user", unix.CLONE_NEWUSER},
		{"net", unix.CLONE_NEWNET},
		{"ipc", unix.CLONE_NEWIPC},
		{"uts", unix.CLONE_NEWUTS},
	}
}

// wanted returns the namespaces that a pod has of its own. The host's network
// comes with the host's name, as everywhere in Kubernetes.
func wanted(o *runtimeapi.NamespaceOption) int {
	flags := 0
	if o.GetNetwork() != runtimeapi.NamespaceMode_NODE {
		flags |= unix.CLONE_NEWNET | unix.CLONE_NEWUTS
	}
	if o.GetIpc() != runtimeapi.NamespaceMode_NODE {
		flags |= unix.CLONE_NEWIPC
	}
	if userNamespace(o) != nil {
		flags |= unix.CLONE_NEWUSER
	}
	return flags
}

// userNamespace returns the options of the pod's own user namespace, or nil.
func userNamespace(o *runtimeapi.NamespaceOption) *runtimeapi.UserNamespace {
	if u := o.GetUsernsOptions(); u != nil && u.GetMode() == runtimeapi.NamespaceMode_POD {
		return u
	}
	return nil
}

// paths returns where the namespaces of flags are pinned below dir.
func paths(dir string, flags int) store.Namespaces {
	var n store.Namespaces
	for _, k := range kinds() {
		if flags&k.flag == 0 {
			continue
		}
		p := filepath.Join(dir, k.name)
		switch k.flag {
		case unix.CLONE_NEWUSER:
			n.User = p
		case unix.CLONE_NEWNET:
			n.Net = p
		case unix.CLONE_NEWIPC:
			n.IPC = p
		case unix.CLONE_NEWUTS:
			n.UTS = p
		}
	}
	return n
}

// makeNamespaces makes the namespaces of flags, runs setup inside them and
// pins them below dir.
func makeNamespaces(dir string, flags int, user *runtimeapi.UserNamespace, setup func() error) error {
	if flags == 0 {
		return nil
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory of namespaces: %w", err)
	}
	if user == nil {
		return onThread(func() error {
			if err := unix.Unshare(flags); err != nil {
				return fmt.Errorf("make namespaces: %w", err)
			}
			if err := setup(); err != nil {
				return err
			}
			return pin(dir, flags, "thread-self")
		})
	}
	// A process may not enter a user namespace with several threads; a stopped
	// child makes the namespaces, and they are configured from the outside.
	err := sys.UnshareAfterEnterUserns(mapping(user.Uids), mapping(user.Gids), uintptr(flags&^unix.CLONE_NEWUSER),
		func(pid int) error { return pin(dir, flags, fmt.Sprint(pid)) })
	if err != nil {
		return fmt.Errorf("make namespaces in a user namespace: %w", err)
	}
	return inside(dir, flags&^unix.CLONE_NEWUSER, setup)
}

// mapping writes the single mapping of a pod as container:host:size.
func mapping(m []*runtimeapi.IDMapping) string {
	return fmt.Sprintf("%d:%d:%d", m[0].GetContainerId(), m[0].GetHostId(), m[0].GetLength())
}

// onThread runs fn on an operating system thread that ends with it, so that
// whatever namespace fn enters is not met by other goroutines. The process's
// first thread cannot end, and others look at it as the process (/proc/<pid>/ns):
// a goroutine that gets it only holds it until another one has done the work.
func onThread(fn func() error) error {
	errs := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // never unlocked: the thread dies with the goroutine
		if unix.Gettid() == unix.Getpid() {
			errs <- onThread(fn)
			return
		}
		errs <- fn()
	}()
	return <-errs
}

// inside runs fn in the pinned namespaces of flags.
func inside(dir string, flags int, fn func() error) error {
	return onThread(func() error {
		for _, k := range kinds() {
			if flags&k.flag == 0 {
				continue
			}
			if err := enter(filepath.Join(dir, k.name), k.flag); err != nil {
				return err
			}
		}
		return fn()
	})
}

func enter(path string, flag int) error {
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("open namespace: %w", err)
	}
	defer f.Close() //nolint:errcheck // read only
	if err := unix.Setns(int(f.Fd()), flag); err != nil {
		return fmt.Errorf("enter namespace %s: %w", path, err)
	}
	return nil
}

// pin binds the namespaces of /proc/<proc> to files below dir. Files that are
// already there belong to an earlier try and are replaced.
func pin(dir string, flags int, proc string) error {
	for _, k := range kinds() {
		if flags&k.flag == 0 {
			continue
		}
		if err := pinFile(filepath.Join("/proc", proc, "ns", k.name), filepath.Join(dir, k.name)); err != nil {
			return err
		}
	}
	return nil
}

// pinFile binds the namespace src to the file dst.
func pinFile(src, dst string) error {
	if err := unpin(dst); err != nil {
		return err
	}
	f, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_RDONLY, 0o400)
	if err != nil {
		return fmt.Errorf("make pin of namespace: %w", err)
	}
	if err := f.Close(); err != nil {
		return fmt.Errorf("make pin of namespace: %w", err)
	}
	if err := unix.Mount(src, dst, "", unix.MS_BIND, ""); err != nil {
		return fmt.Errorf("pin namespace %s at %s: %w", src, dst, err)
	}
	return nil
}

// unpin releases the pin at path; the absent is released already.
func unpin(path string) error {
	if err := unmount(path); err != nil {
		return fmt.Errorf("release namespace: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("release namespace: %w", err)
	}
	return nil
}

// dropNamespaces releases all pins below dir, and dir.
func dropNamespaces(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list namespaces: %w", err)
	}
	var errs []error
	for _, e := range entries {
		errs = append(errs, unpin(filepath.Join(dir, e.Name())))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.Remove(dir); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("remove directory of namespaces: %w", err)
	}
	return nil
}

// unmount detaches all mounts at path; a path without a mount is no error.
func unmount(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == nil:
		case errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOENT):
			return nil
		default:
			return fmt.Errorf("unmount %s: %w", path, err)
		}
	}
}

// pinned tells whether path is a namespace.
func pinned(path string) bool {
	var st unix.Statfs_t
	return unix.Statfs(path, &st) == nil && st.Type == unix.NSFS_MAGIC
}

// checkNamespaces fails when a recorded namespace is gone, as after a reboot.
func checkNamespaces(n store.Namespaces) error {
	for _, p := range []string{n.Net, n.IPC, n.UTS, n.User, n.PID} {
		if p != "" && !pinned(p) {
			return fmt.Errorf("namespace %s: %w", p, errdefs.ErrNotFound)
		}
	}
	return nil
}
