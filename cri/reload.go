// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"

	"github.com/containerd/errdefs"

	"github.com/nodeagent/nodeagent/cri/store"
)

// Reload puts the runtime handlers of a valid configuration in force: new ones, changed
// ones, and no longer the missing ones. Calls that are under way end with those that they
// began with. It is refused as a whole when pods that are there would lose their runtime:
// when a handler that they use is missing, or has another shim or OCI runtime.
func (s *Server) Reload(ctx context.Context, cfg Config) error {
	if err := cfg.Validate(); err != nil {
		return err
	}
	next := s.cfg
	next.Handlers = cfg.Handlers
	if cfg.DefaultHandler != s.cfg.DefaultHandler {
		return fmt.Errorf("defaultHandler: changes with a restart only: %w", errdefs.ErrFailedPrecondition)
	}
	if err := s.handlers.replace(ctx, next, s.deps.Containerd, s.keepsUsed); err != nil {
		return err
	}
	s.images.SetSnapshotters(next.snapshotters())
	s.deps.Log.InfoContext(ctx, "runtime handlers reloaded", "handlers", slices.Sorted(maps.Keys(next.Handlers)))
	return nil
}

// keepsUsed refuses handlers with which pods that are there could not go on.
func (s *Server) keepsUsed(old, next *handlerSet) error {
	pods := map[string]int{}
	for _, sb := range s.store.Sandboxes.Select(func(*store.Sandbox) bool { return true }) {
		name := sb.Handler
		if name == "" {
			name = old.cfg.DefaultHandler
		}
		pods[name]++
	}
	var errs []error
	for _, name := range slices.Sorted(maps.Keys(pods)) {
		was, is := old.cfg.Handlers[name], next.cfg.Handlers[name]
		_, there := next.cfg.Handlers[name]
		switch {
		case !there:
			errs = append(errs, fmt.Errorf("handlers[%s]: %d pods use it and it is missing: %w", name, pods[name], errdefs.ErrFailedPrecondition))
		case was.Type != is.Type || was.Path != is.Path || was.Binary != is.Binary || was.Root != is.Root:
			errs = append(errs, fmt.Errorf("handlers[%s]: %d pods use it and its type, path, binary or root changes: %w", name, pods[name], errdefs.ErrFailedPrecondition))
		}
	}
	return errors.Join(errs...)
}
