// SPDX-License-Identifier: Apache-2.0

package oci

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// Starting and deleting a container take runc two processes of some 9 ms each, for opening a FIFO and for removing a few
// directories. Both are done here when nothing speaks against it: no hook to run, and for the deletion no systemd unit and no RDT
// group to remove, by what runc's state on disk says.

// state is the part of runc's state.json that says so.
type state struct {
	CgroupPaths  map[string]string `json:"cgroup_paths"`
	IntelRdtPath string            `json:"intel_rdt_path"`
	Config       struct {
		// Hooks are lists of hooks by their name.
		Hooks map[string]json.RawMessage `json:"Hooks"`
	} `json:"config"`
}

func (r *Runtime) dir(id string) string { return filepath.Join(r.Root, id) }

// Dir is the OCI runtime's directory of a container.
func (r *Runtime) Dir(id string) string { return r.dir(id) }

// Runc says whether the OCI runtime is runc, whose state and ways are known.
func (r *Runtime) Runc() bool { return filepath.Base(r.Binary) == "runc" }

// plain returns runc's state of a container when this process may act on it in runc's place.
func (r *Runtime) plain(id string, hooks ...string) (*state, bool) {
	if !r.Runc() || r.Systemd {
		return nil, false
	}
	raw, err := os.ReadFile(filepath.Join(r.dir(id), "state.json"))
	if err != nil {
		return nil, false
	}
	s := &state{}
	if json.Unmarshal(raw, s) != nil || s.IntelRdtPath != "" || len(s.CgroupPaths) == 0 {
		return nil, false
	}
	for name, list := range s.Config.Hooks {
		if slices.Contains(hooks, name) && string(list) != "null" && string(list) != "[]" {
			return nil, false
		}
	}
	return s, true
}

// Start lets a created container run. hooked says that the OCI runtime has hooks to run then; exited is closed when the container's
// first process ends before that.
func (r *Runtime) Start(ctx context.Context, id string, hooked bool, exited <-chan struct{}) error {
	fifo := filepath.Join(r.dir(id), "exec.fifo")
	if info, err := os.Lstat(fifo); hooked || err != nil || info.Mode().Type() != os.ModeNamedPipe {
		return r.quiet(ctx, "start", id)
	}
	switch {
	case r.Runc():
		return releaseRunc(ctx, fifo, exited)
	case r.crun():
		return releaseCrun(fifo)
	default:
		return r.quiet(ctx, "start", id)
	}
}

// releaseRunc does what runc start does.
func releaseRunc(ctx context.Context, fifo string, exited <-chan struct{}) error {
	released := make(chan error, 1)
	go func() { released <- release(fifo) }()
	select {
	case err := <-released:
		return err
	case <-exited:
	case <-ctx.Done():
	}
	// The reader waits for a writer that will not come.
	if f, err := os.OpenFile(fifo, os.O_WRONLY|unix.O_NONBLOCK, 0); err == nil {
		_ = f.Close()
	}
	if err := <-released; err == nil {
		return nil // it ran, and ended at once
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("start container: %w", err)
	}
	return errors.New("OCI runtime start failed: container process is already dead")
}

// release reads the FIFO that runc's init waits at. The open blocks in a thread until init is there.
func release(fifo string) error {
	fd, err := unix.Open(fifo, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	for errors.Is(err, unix.EINTR) {
		fd, err = unix.Open(fifo, unix.O_RDONLY|unix.O_CLOEXEC, 0)
	}
	if err != nil {
		return fmt.Errorf("open %s: %w", fifo, err)
	}
	f := os.NewFile(uintptr(fd), fifo)
	defer func() { _ = f.Close() }()
	data, err := io.ReadAll(f)
	if err != nil {
		return fmt.Errorf("read %s: %w", fifo, err)
	}
	if len(data) == 0 {
		return errors.New("OCI runtime start failed: container process ended before its start")
	}
	// Its absence is how runc tells a running container from a created one.
	if err := os.Remove(fifo); err != nil {
		return fmt.Errorf("remove %s: %w", fifo, err)
	}
	return nil
}

// Delete removes a stopped container; force kills it first. The absent is removed already.
func (r *Runtime) Delete(ctx context.Context, id string, force bool) error {
	if !force {
		if s, ok := r.plain(id, "poststop"); ok && s.removeCgroups(id) == nil {
			if err := os.RemoveAll(r.dir(id)); err != nil {
				return fmt.Errorf("remove state of container: %w", err)
			}
			return nil
		}
	}
	if _, err := os.Lstat(r.dir(id)); absent(err) {
		return nil
	}
	if force {
		return r.quiet(ctx, "delete", "--force", id)
	}
	return r.quiet(ctx, "delete", id)
}

// removeCgroups removes the container's cgroups. One that is not empty is left to the OCI runtime, which waits; so is one that
// does not bear the container's name, because others may live in it.
func (s *state) removeCgroups(id string) error {
	for _, path := range s.CgroupPaths {
		if !strings.Contains(filepath.Base(path), id) {
			return fmt.Errorf("cgroup %s is not the container's alone", path)
		}
		if err := removeCgroup(path); err != nil {
			return err
		}
	}
	return nil
}

// removeCgroup removes a cgroup and those the container made below it.
func removeCgroup(path string) error {
	err := unix.Rmdir(path)
	if err == nil || err == unix.ENOENT {
		return nil
	}
	entries, rerr := os.ReadDir(path)
	if rerr != nil {
		return rerr
	}
	for _, e := range entries {
		if e.IsDir() {
			if err := removeCgroup(filepath.Join(path, e.Name())); err != nil {
				return err
			}
		}
	}
	if err := unix.Rmdir(path); err != nil && err != unix.ENOENT {
		return err
	}
	return nil
}
