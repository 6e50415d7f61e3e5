// SPDX-License-Identifier: Apache-2.0

// Package hooks adds OCI hooks to containers from directories in the format
// that CRI-O and Podman read (oci-hooks(5), version 1.0.0): one JSON file a
// hook, which says what to run, at which stages, and for which containers.
//
// It promises that a file is in force from the next container on after it was
// written, and that a file which cannot be understood keeps containers from
// being made, for it may guard them.
package hooks

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Directory reads hooks of several directories; a file of a later one replaces
// one of the same name in an earlier one. None is a valid number of directories.
type Directory struct {
	dirs []string

	// mu guards cache, which holds the files that have not changed since they were read.
	mu    sync.Mutex
	cache map[string]cached
}

type cached struct {
	modified time.Time
	size     int64
	hook     *hook
}

// New makes a Directory; nothing is read yet.
func New(dirs []string) *Directory {
	return &Directory{dirs: dirs, cache: map[string]cached{}}
}

// Container is what the conditions of hooks look at beside the specification.
type Container struct {
	// Annotations are those that the container was asked for with.
	Annotations map[string]string
	// HasBindMounts means that the container has mounts of its own.
	HasBindMounts bool
}

// Inject adds the hooks whose conditions hold to the specification, in the order of
// the files' names.
func (d *Directory) Inject(s *specs.Spec, c Container) error {
	if len(d.dirs) == 0 {
		return nil
	}
	hooks, err := d.read()
	if err != nil {
		return fmt.Errorf("OCI hooks: %w: %w", err, errdefs.ErrFailedPrecondition)
	}
	for _, h := range hooks {
		if h.matches(s, c) {
			h.add(s)
		}
	}
	return nil
}

// read returns the hooks in force.
func (d *Directory) read() ([]*hook, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	files := map[string]string{}
	for _, dir := range d.dirs {
		entries, err := os.ReadDir(dir)
		if errors.Is(err, fs.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, e := range entries {
			if strings.HasSuffix(e.Name(), ".json") {
				files[e.Name()] = filepath.Join(dir, e.Name())
			}
		}
	}
	names := make([]string, 0, len(files))
	for n := range files {
		names = append(names, n)
	}
	slices.Sort(names)
	var hooks []*hook
	var errs []error
	for _, n := range names {
		h, err := d.file(files[n])
		hooks, errs = append(hooks, h), append(errs, err)
	}
	return hooks, errors.Join(errs...)
}

// file returns a file's hook, read again only when it has changed.
func (d *Directory) file(path string) (*hook, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if c, ok := d.cache[path]; ok && c.modified.Equal(info.ModTime()) && c.size == info.Size() {
		return c.hook, nil
	}
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, err
	}
	h, err := parse(data)
	if err != nil {
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	d.cache[path] = cached{modified: info.ModTime(), size: info.Size(), hook: h}
	return h, nil
}
