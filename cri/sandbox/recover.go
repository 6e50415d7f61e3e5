// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cri/steps"
	"github.com/nodeagent/nodeagent/cri/store"
)

// Recover compares the records with what there is: half-made sandboxes are
// undone, those whose namespaces are gone become not ready, and directories
// without a record are released. It runs before the first call, after the
// containers' recovery. What fails is reported and retried by the kubelet's
// stop; it does not keep the daemon from serving the other pods.
func (m *Manager) Recover(ctx context.Context) error {
	errs := []error{m.recoverProcesses(ctx), m.recoverSandboxers(ctx)}
	for _, sb := range m.deps.Store.Sandboxes.Select(nil) {
		errs = append(errs, reserve(sb))
		switch sb.State {
		case store.SandboxCreating:
			errs = append(errs, m.undo(ctx, sb))
		case store.SandboxReady:
			if err := checkNamespaces(sb.Namespaces); err != nil {
				m.deps.Log.InfoContext(ctx, "sandbox is not ready any more", "sandbox", sb.ID, "reason", err.Error())
				errs = append(errs, m.markNotReady(sb.ID))
			}
		case store.SandboxNotReady:
		}
	}
	errs = append(errs, m.prune("ns", dropNamespaces))
	errs = append(errs, m.prune("sandboxes", func(p string) error { return Dir(p).remove() }))
	errs = append(errs, m.recoverPool(ctx))
	return errors.Join(errs...)
}

func (m *Manager) undo(ctx context.Context, sb *store.Sandbox) error {
	flags := 0
	if sb.Namespaces.Net != "" {
		flags |= unix.CLONE_NEWNET
	}
	b := &building{m: m, sb: sb, flags: flags}
	if err := steps.Undo(ctx, b.table()); err != nil {
		return errors.Join(err, m.markNotReady(sb.ID))
	}
	m.deps.Log.InfoContext(ctx, "half-made sandbox undone", "sandbox", sb.ID)
	return m.forget(sb.ID)
}

func (m *Manager) markNotReady(id string) error {
	_, err := m.deps.Store.Sandboxes.Update(id, func(s *store.Sandbox) error {
		s.State = store.SandboxNotReady
		return nil
	})
	return err
}

// prune releases the directories below StateDir/name that no sandbox owns.
func (m *Manager) prune(name string, release func(path string) error) error {
	dir := filepath.Join(m.cfg.StateDir, name)
	entries, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look for leftovers of sandboxes: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if _, ok := m.deps.Store.Sandboxes.Get(e.Name()); !ok {
			errs = append(errs, release(filepath.Join(dir, e.Name())))
		}
	}
	return errors.Join(errs...)
}
