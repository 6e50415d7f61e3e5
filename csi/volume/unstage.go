// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/nodeagent/nodeagent/csi/mount"
)

// Unstage takes the volume from the path and frees its device; what is not
// staged, or does not exist, is success.
func (m *Manager) Unstage(ctx context.Context, id, path string) error {
	release, err := m.locks.lock(ctx, id, "unstage volume")
	if err != nil {
		return err
	}
	defer release()
	o, found := m.find(KindVolume, id)
	st, err := m.state.get(id)
	if err != nil {
		return err
	}
	args, known := st.Staged[path]
	switch {
	case known, found == nil, errors.Is(found, ErrDamaged):
		// Also when the pool is away: the pod must be able to go.
	case errors.Is(found, ErrNotFound):
		return nil
	default:
		return found
	}
	if err := m.noTargets(id, st, path); err != nil {
		return err
	}
	if !known || !args.Block {
		if err := m.unmountOurs(ctx, o, path, known); err != nil {
			return err
		}
	}
	if err := m.state.update(id, func(s *attachState) { delete(s.Staged, path) }); err != nil {
		return err
	}
	if o == nil {
		return nil
	}
	if err := m.detachUnused(ctx, o); err != nil {
		// Kept staged in the record, so that a retry comes back here.
		return errors.Join(fmt.Errorf("unstage %s: %w", id, err), m.state.update(id, func(s *attachState) { s.Staged[path] = args }))
	}
	if len(st.Staged) <= 1 {
		m.io.forget(id)
	}
	return nil
}

// noTargets refuses to take away what pods still use.
func (m *Manager) noTargets(id string, st *attachState, staging string) error {
	for path, t := range st.Targets {
		if t.Staging != staging {
			continue
		}
		at, err := mount.At(path)
		if err != nil {
			return err
		}
		if at.Mounted {
			return fmt.Errorf("%w: volume %s is still published at %s", ErrInUse, id, path)
		}
	}
	return nil
}

// unmountOurs unmounts path if what is there is this volume, or is recorded as
// such, or does not answer any more. Anything else stays.
func (m *Manager) unmountOurs(ctx context.Context, o *object, path string, known bool) error {
	at, err := mount.At(path)
	if err != nil || !at.Mounted {
		return err
	}
	if !known && o == nil {
		return fmt.Errorf("%w: what is mounted at %s is not known to be ours; left alone", ErrPrecondition, path)
	}
	if !known && !at.Corrupt {
		ours, err := m.ours(ctx, o, path, at)
		if err != nil {
			return err
		}
		if !ours {
			return fmt.Errorf("%w: what is mounted at %s is not volume %s; left alone", ErrPrecondition, path, o.rec.ID)
		}
	}
	return m.spaceError(mount.Unmount(path))
}
