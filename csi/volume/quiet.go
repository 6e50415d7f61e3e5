// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"sync"
	"time"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// How long writers may be held for a cut: reflinks take milliseconds, a copy as
// long as the data is large.
const (
	holdInstant = 5 * time.Second
	holdCopy    = 30 * time.Second
)

// quiet runs cut while nobody writes to the sources. Their mounted file systems
// are frozen, so that the image is a clean one and several of them are of one
// moment; every freeze is recorded first, and thawed whatever happens: on
// return, by the watchdog, or at the next start of the daemon.
func (m *Manager) quiet(ctx context.Context, sources []*object, f backend.Features, cut func(context.Context) error) error {
	var frozen []*attachState
	for _, o := range sources {
		st, err := m.state.get(o.rec.ID)
		if err != nil {
			return err
		}
		if err := m.canHold(o, st, len(sources), f); err != nil {
			return err
		}
		if at, ok := m.mountedAt(ctx, o, st); ok && f.OwnSuperblock {
			st.Frozen = at
			frozen = append(frozen, st)
		}
	}
	if len(frozen) == 0 {
		return cut(ctx)
	}
	hold := holdCopy
	if f.Instant {
		hold = holdInstant
	}
	return m.whileFrozen(ctx, frozen, hold, cut)
}

// canHold refuses cuts that could not be of one moment: a raw block device in
// use has no file system to freeze.
func (m *Manager) canHold(o *object, st *attachState, sources int, f backend.Features) error {
	for path, a := range st.Staged {
		if !a.Block {
			continue
		}
		if sources > 1 {
			return fmt.Errorf("%w: volume %s is in use as a raw block device (%s) and cannot be held still with the rest of its group", ErrPrecondition, o.rec.ID, path)
		}
		if !f.Instant {
			return fmt.Errorf("%w: volume %s is in use as a raw block device (%s), and pool %s has no reflinks to take it in one moment", ErrPrecondition, o.rec.ID, path, o.pool.cfg.Name)
		}
	}
	return nil
}

// whileFrozen freezes, cuts and thaws. What is dirty is written out before
// anybody is held, so that the freeze finds little left to do.
func (m *Manager) whileFrozen(ctx context.Context, frozen []*attachState, hold time.Duration, cut func(context.Context) error) (retErr error) {
	if err := syncAll(frozen); err != nil {
		return err
	}
	var once sync.Once
	var thawErr error
	thaw := func() { once.Do(func() { thawErr = m.thaw(context.WithoutCancel(ctx), frozen) }) }
	defer func() {
		thaw()
		retErr = errors.Join(retErr, thawErr)
	}()
	ctx, cancel := context.WithTimeoutCause(ctx, hold, fmt.Errorf("%w: %w", ErrPrecondition, errThawed))
	defer cancel()
	watchdog := time.AfterFunc(hold, thaw)
	defer func() {
		if !watchdog.Stop() && retErr == nil {
			retErr = fmt.Errorf("%w: %w", ErrPrecondition, errThawed)
		}
	}()
	if err := m.freezeAll(ctx, frozen); err != nil {
		return err
	}
	if m.deps.Checkpoint != nil {
		if err := m.deps.Checkpoint("create snapshot", "frozen"); err != nil {
			return err
		}
	}
	err := cut(ctx)
	if err != nil && ctx.Err() != nil {
		return errors.Join(context.Cause(ctx), err)
	}
	return err
}

func syncAll(list []*attachState) error {
	errs := make([]error, len(list))
	var wg sync.WaitGroup
	for i, st := range list {
		wg.Go(func() { errs[i] = mount.SyncFS(st.Frozen) })
	}
	wg.Wait()
	return errors.Join(errs...)
}

func (m *Manager) freezeAll(ctx context.Context, list []*attachState) error {
	for _, st := range list {
		if err := m.state.update(st.Volume, func(s *attachState) { s.Frozen = st.Frozen }); err != nil {
			return err
		}
	}
	m.haste.begin(ctx)
	defer m.haste.end(ctx)
	if m.deps.Checkpoint != nil {
		if err := m.deps.Checkpoint("create snapshot", "freezing"); err != nil {
			return err
		}
	}
	for _, st := range list {
		if err := mount.Freeze(st.Frozen); err != nil {
			return err
		}
	}
	return nil
}

// thaw lets all writers go and forgets the intents. It goes on past errors: one
// file system that cannot be thawed must not keep the others frozen.
func (m *Manager) thaw(ctx context.Context, frozen []*attachState) error {
	var errs []error
	for _, st := range frozen {
		if err := mount.Thaw(st.Frozen); err != nil {
			m.log.ErrorContext(ctx, "file system not thawed", "volume", st.Volume, "path", st.Frozen, "err", err)
			errs = append(errs, err)
			continue
		}
		errs = append(errs, m.state.update(st.Volume, func(s *attachState) { s.Frozen = "" }))
	}
	return errors.Join(errs...)
}

// thawAll thaws what a daemon that was killed left frozen; it comes before
// anything else at start, because a frozen file system hangs its pod.
func (m *Manager) thawAll(ctx context.Context) error {
	all, err := m.state.all()
	if err != nil {
		m.log.ErrorContext(ctx, "some attachment records are not readable", "err", err)
	}
	var frozen []*attachState
	for _, st := range all {
		if st.Frozen != "" {
			frozen = append(frozen, st)
		}
	}
	if len(frozen) == 0 {
		return nil
	}
	m.log.InfoContext(ctx, "thawing file systems left frozen", "volumes", len(frozen))
	_ = m.thaw(ctx, frozen) // logged there; the start goes on
	return nil
}
