// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// recoverPool reads a pool's records, finishes or takes back what a crash left
// half done, and puts the objects in the index. It removes only what a verb had
// begun to make or had begun to destroy, never a committed object.
func (m *Manager) recoverPool(ctx context.Context, p *pool) error {
	for _, d := range []string{dirNew, dirTrash} {
		if err := m.sweep(ctx, p, filepath.Join(p.cfg.Path, d)); err != nil {
			return err
		}
	}
	for kind, d := range map[Kind]string{KindVolume: dirVolumes, KindSnapshot: dirSnapshots} {
		names, err := os.ReadDir(filepath.Join(p.cfg.Path, d))
		if err != nil {
			return fmt.Errorf("%w: pool %s: %w", ErrUnavailable, p.cfg.Name, err)
		}
		for _, n := range names {
			m.load(ctx, p, kind, n.Name())
		}
	}
	return nil
}

// load reads one object. What cannot be read is kept in the index as broken, so
// that verbs on it say why instead of "not found".
func (m *Manager) load(ctx context.Context, p *pool, kind Kind, name string) {
	dir := p.dir(kind, name)
	rec, err := readRecord(dir)
	if err == nil && rec.Kind != kind {
		err = fmt.Errorf("%w: %s is a %s among the %ss", ErrDamaged, dir, rec.Kind, kind)
	}
	if err == nil {
		if other := m.peek(name); other != nil && other.pool != p {
			m.log.ErrorContext(ctx, "the same volume is in two pools, this one is left out", "volume", name, "pool", p.cfg.Name, "other", other.pool.cfg.Name)
			return
		}
	}
	if err == nil && rec.GrowTo > 0 {
		rec, err = m.finishGrow(ctx, p, rec)
	}
	if err != nil {
		if !errors.Is(err, ErrDamaged) {
			err = fmt.Errorf("%w: %w", ErrDamaged, err)
		}
		m.log.ErrorContext(ctx, "volume record not usable", "volume", name, "pool", p.cfg.Name, "err", err)
		m.put(&object{rec: Record{ID: name, Kind: kind, Bytes: rec.Bytes}, pool: p, broken: err})
		return
	}
	_ = os.Remove(filepath.Join(dir, metaName+".tmp"))
	m.put(&object{rec: rec, pool: p})
}

// finishGrow completes an interrupted expansion, or takes the intent back when
// the pool has no room for it any more.
func (m *Manager) finishGrow(ctx context.Context, p *pool, rec Record) (Record, error) {
	obj := m.object(p, rec)
	obj.Bytes = rec.GrowTo
	err := p.be.Grow(ctx, obj)
	switch {
	case err == nil:
		rec = grown(rec, rec.GrowTo)
	case errors.Is(err, backend.ErrNoSpace):
		rec.GrowTo = 0
	default:
		return rec, err
	}
	return rec, writeJSON(filepath.Join(p.dir(rec.Kind, rec.ID), metaName), rec)
}

// sweep destroys what stands in dirNew or dirTrash. A payload that is still in
// use is left for the next time.
func (m *Manager) sweep(ctx context.Context, p *pool, dir string) error {
	names, err := os.ReadDir(dir)
	if err != nil {
		return fmt.Errorf("%w: pool %s: %w", ErrUnavailable, p.cfg.Name, err)
	}
	for _, n := range names {
		path := filepath.Join(dir, n.Name())
		if err := m.sweepOne(ctx, p, path); err != nil {
			m.log.WarnContext(ctx, "leftover not removed yet", "path", path, "err", err)
			continue
		}
		m.log.InfoContext(ctx, "leftover removed", "path", path)
	}
	return mount.SyncDir(dir)
}

func (m *Manager) sweepOne(ctx context.Context, p *pool, path string) error {
	id, _, _ := strings.Cut(filepath.Base(path), ".")
	obj := backend.Object{ID: id, Dir: path}
	// A record that is missing or torn was never followed by a payload outside
	// the directory, so there is no handle to look for.
	var rec Record
	if b, err := readLoose(path); err == nil {
		rec = b
		obj.Handle, obj.Bytes, obj.Options = rec.Handle, rec.Bytes, rec.Params.Options
	}
	if err := p.be.Destroy(ctx, obj); err != nil {
		return err
	}
	return os.RemoveAll(path)
}
