// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// Delete removes a volume and its data; what does not exist is deleted. A volume
// in use is refused. Snapshots and clones of it stay whole.
func (m *Manager) Delete(ctx context.Context, id string) error {
	return m.remove(ctx, KindVolume, id, "delete volume")
}

func (m *Manager) remove(ctx context.Context, kind Kind, id, verb string) error {
	release, err := m.locks.lock(ctx, id, verb)
	if err != nil {
		return err
	}
	defer release()
	o, err := m.find(kind, id)
	switch {
	case errors.Is(err, ErrNotFound):
		m.sweepTrash(ctx, id)
		return nil
	case errors.Is(err, ErrDamaged) && m.peek(id) != nil:
		return fmt.Errorf("%w: its directory is left for a person to look at: %w", ErrPrecondition, err)
	case err != nil:
		return err
	}
	if kind == KindVolume {
		if err := m.unused(id); err != nil {
			return err
		}
	}
	return m.discard(ctx, o, verb)
}

// unused refuses a volume that is staged or published.
func (m *Manager) unused(id string) error {
	st, err := m.state.get(id)
	if err != nil {
		return err
	}
	for _, path := range append(st.targetPaths(), st.stagePaths()...) {
		at, err := mount.At(path)
		if err != nil {
			return err
		}
		if at.Mounted {
			return fmt.Errorf("%w: volume %s is still at %s", ErrInUse, id, path)
		}
	}
	return nil
}

// discard takes an object out of the pool: out of sight by one rename, then
// destroyed. What a crash leaves of it, recovery destroys.
func (m *Manager) discard(ctx context.Context, o *object, verb string) error {
	p, rec := o.pool, o.rec
	if err := p.check(); err != nil {
		return err
	}
	obj := m.object(p, rec)
	trash := filepath.Join(p.cfg.Path, dirTrash, rec.ID+"."+rec.Handle)
	err := m.run(ctx, rec.ID, verb, []step{
		{name: "detach", do: func(ctx context.Context) error { return m.spaceError(p.be.Detach(ctx, obj)) }},
		{name: "hide", do: func(context.Context) error {
			if err := commit(obj.Dir, trash); err != nil {
				return err
			}
			m.drop(rec.ID)
			return m.state.update(rec.ID, func(st *attachState) { *st = attachState{} })
		}},
	})
	if err != nil {
		return err
	}
	// The object is gone for everybody: what fails from here on is garbage, which
	// the background sweep collects.
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	err = m.run(ctx, rec.ID, verb, []step{{name: "destroy", do: func(ctx context.Context) error {
		return destroyTrash(ctx, p, obj, trash)
	}}})
	if errors.Is(err, errCrash) {
		return err
	}
	if err != nil {
		m.log.WarnContext(ctx, "deleted volume left data in the trash", "volume", rec.ID, "path", trash, "err", err)
	}
	p.forget()
	m.log.InfoContext(ctx, "volume deleted", "volume", rec.ID, "kind", string(rec.Kind), "pool", p.cfg.Name)
	m.changed(p)
	return nil
}

// sweepTrash destroys what earlier deletes of id left; all of the trash when id
// is empty. What fails stays for the next time.
func (m *Manager) sweepTrash(ctx context.Context, id string) {
	for _, p := range m.pools {
		if p.check() != nil {
			continue
		}
		pattern := "*"
		if id != "" {
			if !validID(id) {
				return
			}
			pattern = id + ".*"
		}
		left, err := filepath.Glob(filepath.Join(p.cfg.Path, dirTrash, pattern))
		if err != nil {
			continue
		}
		for _, path := range left {
			if err := m.sweepOne(ctx, p, path); err != nil {
				m.log.WarnContext(ctx, "trash not removed yet", "path", path, "err", err)
			}
		}
	}
}

func destroyTrash(ctx context.Context, p *pool, obj backend.Object, trash string) error {
	obj.Dir = trash
	if err := p.be.Destroy(ctx, obj); err != nil {
		return err
	}
	return os.RemoveAll(trash)
}
