// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// hierarchies lists the mounted cgroup hierarchies: one on v2, several on v1.
func hierarchies() []string {
	if _, err := os.Stat(cgroupRoot + "/cgroup.controllers"); err == nil {
		return []string{cgroupRoot}
	}
	var out []string
	dirs, _ := os.ReadDir(cgroupRoot)
	for _, d := range dirs {
		if d.IsDir() {
			out = append(out, filepath.Join(cgroupRoot, d.Name()))
		}
	}
	return out
}

// unifiedRoot is where cgroup v2 is mounted: by itself, or beside v1.
func unifiedRoot() string {
	if all := hierarchies(); len(all) == 1 {
		return all[0]
	}
	return cgroupRoot + "/unified"
}

// makeCgroup makes name in a hierarchy, with everything handed down to it that
// its parents have.
func makeCgroup(hierarchy, name string) error {
	dir := hierarchy
	for part := range strings.SplitSeq(name, "/") {
		parent := dir
		dir = filepath.Join(dir, part)
		if err := os.Mkdir(dir, 0o755); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
		for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
			data, err := os.ReadFile(filepath.Join(parent, f))
			if err != nil || hierarchy == unifiedRoot() {
				continue // not the v1 cpuset hierarchy
			}
			if err := os.WriteFile(filepath.Join(dir, f), data, 0); err != nil {
				return err
			}
		}
		if err := delegate(parent); err != nil {
			return err
		}
	}
	return nil
}

// delegate gives the children of a v2 cgroup every controller that it has itself.
func delegate(dir string) error {
	data, err := os.ReadFile(filepath.Join(dir, "cgroup.controllers"))
	if err != nil || len(bytes.TrimSpace(data)) == 0 {
		return nil //nolint:nilerr // v1, or a v2 beside v1 that has none
	}
	all := "+" + strings.Join(strings.Fields(string(data)), " +")
	return os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte(all), 0)
}

// removeCgroups removes name and all below it from every hierarchy. A process
// that is still ending holds its cgroup for a moment.
func removeCgroups(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeoutCause(ctx, 10*time.Second, errors.New("cgroups are still in use"))
	defer cancel()
	return waitFor(ctx, func(context.Context) error {
		var errs []error
		for _, h := range hierarchies() {
			errs = append(errs, removeTree(filepath.Join(h, name)))
		}
		return errors.Join(errs...)
	})
}

// removeTree removes a directory of directories from the leaves up.
func removeTree(dir string) error {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	errs := []error{err}
	for _, e := range entries {
		if e.IsDir() {
			errs = append(errs, removeTree(filepath.Join(dir, e.Name())))
		}
	}
	if err := unix.Rmdir(dir); err != nil && !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, fmt.Errorf("remove cgroup %s: %w", dir, err))
	}
	return errors.Join(errs...)
}

// inOwnCgroup is a command that begins in a cgroup of every hierarchy, as the root of a cgroup
// namespace.
func inOwnCgroup(name string, argv []string) []string {
	const script = `for h do [ "$h" = -- ] && break; shift; echo 0 >"$h/cgroup.procs" || exit; done; shift; exec unshare --cgroup -- "$@"`
	out := []string{"/bin/sh", "-c", script, "sh"}
	for _, h := range hierarchies() {
		out = append(out, filepath.Join(h, name))
	}
	return append(append(out, "--"), argv...)
}

// inSystemCgroup is a command that begins in the cgroup "system" of every hierarchy that
// its box sees.
func inSystemCgroup(argv []string) []string {
	const script = `for f in ` + cgroupRoot + `/system/cgroup.procs ` + cgroupRoot + `/*/system/cgroup.procs; do
	[ ! -e "$f" ] || echo 0 >"$f" || exit; done; exec "$@"`
	return append([]string{"/bin/sh", "-c", script, "sh"}, argv...)
}

// rootCgroups puts a cgroup in the place of its hierarchy, in all of them: what is above and
// beside it is not seen any more.
func rootCgroups(name string) error {
	for _, h := range hierarchies() {
		if err := unix.Mount(filepath.Join(h, name), h, "", unix.MS_BIND, ""); err != nil {
			return fmt.Errorf("make %s the root of %s: %w", name, h, err)
		}
	}
	return nil
}
