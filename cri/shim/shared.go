// SPDX-License-Identifier: Apache-2.0

package shim

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/store"
)

// A handler with podsPerShim runs the containers of that many pods under one shim: less memory, and when that process
// dies all of them die. A shared shim has a directory with its sockets and an empty file for each of its pods; the pod's socket
// is a link to the shim's. So which pods are where survives this daemon.

// podsDir is the directory of a shared shim's pods.
const podsDir = "pods"

// share finds a sandbox's place in a shared shim, or starts one.
func (l *Launcher) share(ctx context.Context, w *waiting, sandboxID, handler string, rt containerd.Runtime) error {
	l.sharing.Lock()
	defer l.sharing.Unlock()
	dirs, err := filepath.Glob(filepath.Join(l.SharedDir, handler+"-*"))
	if err != nil {
		return fmt.Errorf("look for shared shims: %w", err)
	}
	for _, dir := range dirs {
		pods := l.podsOf(dir)
		switch {
		case len(pods) == 0:
			_ = os.RemoveAll(dir) // its shim ends by itself; what is left is looked at again
		case len(pods) < rt.PodsPerShim && l.expectIn(ctx, dir):
			return l.enter(dir, sandboxID)
		}
	}
	dir := filepath.Join(l.SharedDir, handler+"-"+store.NewID()[:16])
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return fmt.Errorf("make directory of shared shim: %w", err)
	}
	if err := l.start(w, dir, filepath.Base(dir), rt); err != nil {
		return errors.Join(err, os.RemoveAll(dir))
	}
	return l.enter(dir, sandboxID)
}

// enter makes a sandbox one of a shim's pods.
func (l *Launcher) enter(dir, sandboxID string) error {
	if err := os.MkdirAll(filepath.Join(dir, podsDir), 0o700); err != nil {
		return fmt.Errorf("enter shared shim: %w", err)
	}
	if err := os.WriteFile(filepath.Join(dir, podsDir, sandboxID), nil, 0o600); err != nil {
		return fmt.Errorf("enter shared shim: %w", err)
	}
	link := l.socket(sandboxID)
	if err := os.Remove(link); err != nil && !errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("enter shared shim: %w", err)
	}
	if err := os.Symlink(filepath.Join(dir, TaskSocket), link); err != nil {
		return fmt.Errorf("enter shared shim: %w", err)
	}
	return nil
}

// leave takes a sandbox out of its shared shim, if it is in one. The last one takes the directory with it.
func (l *Launcher) leave(sandboxID string) {
	target, err := os.Readlink(l.socket(sandboxID))
	if err != nil {
		return
	}
	l.sharing.Lock()
	defer l.sharing.Unlock()
	dir := filepath.Dir(target)
	_, _ = os.Remove(filepath.Join(dir, podsDir, sandboxID)), os.Remove(l.socket(sandboxID)) // absent is as good
	if len(l.podsOf(dir)) == 0 {
		_ = os.RemoveAll(dir)
	}
}

// podsOf are a shared shim's pods; those that have gone without leaving are taken out.
func (l *Launcher) podsOf(dir string) []string {
	entries, err := os.ReadDir(filepath.Join(dir, podsDir))
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		if _, err := os.Lstat(l.socket(e.Name())); errors.Is(err, os.ErrNotExist) {
			_ = os.Remove(filepath.Join(dir, podsDir, e.Name()))
			continue
		}
		out = append(out, e.Name())
	}
	return out
}
