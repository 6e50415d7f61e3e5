// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// Expanded is the outcome of Expand.
type Expanded struct {
	Bytes int64
	// NodeExpansion says that ExpandOnNode has to follow for the users of the
	// volume to see the new size at once; at the next stage they do anyway.
	NodeExpansion bool
}

// Expand makes a volume at least required bytes large (and at most limit, if
// not 0). A volume that is large enough stays as it is.
func (m *Manager) Expand(ctx context.Context, id string, required, limit int64) (Expanded, error) {
	if err := checkRange(required, limit); err != nil {
		return Expanded{}, err
	}
	release, err := m.locks.lock(ctx, id, "expand volume")
	if err != nil {
		return Expanded{}, err
	}
	defer release()
	o, err := m.find(KindVolume, id)
	if err != nil {
		return Expanded{}, err
	}
	f, err := o.pool.ready()
	if err != nil {
		return Expanded{}, err
	}
	if f.ReadOnly {
		return Expanded{}, fmt.Errorf("%w: volumes of pool %s are read-only images", ErrInvalid, o.pool.cfg.Name)
	}
	done := Expanded{Bytes: o.rec.Bytes, NodeExpansion: f.Block}
	if required <= o.rec.Bytes {
		if limit > 0 && o.rec.Bytes > limit {
			return Expanded{}, fmt.Errorf("%w: volume %s has %s, a volume does not shrink to %s", ErrRange, id, exactly(o.rec.Bytes), exactly(limit))
		}
		return done, nil
	}
	done.Bytes = (required + sizeUnit - 1) &^ (sizeUnit - 1)
	if limit > 0 && done.Bytes > limit {
		return Expanded{}, fmt.Errorf("%w: sizes are multiples of %d, the limit is %s", ErrRange, sizeUnit, exactly(limit))
	}
	if err := m.grow(ctx, o, done.Bytes); err != nil {
		return Expanded{}, err
	}
	m.log.InfoContext(ctx, "volume expanded", "volume", id, "bytes", done.Bytes)
	m.changed(o.pool)
	return done, nil
}

func checkRange(required, limit int64) error {
	if required < 0 || limit < 0 || required > maxBytes || (limit > 0 && required > limit) {
		return fmt.Errorf("%w: required %d, limit %d bytes", ErrRange, required, limit)
	}
	return nil
}

func (m *Manager) grow(ctx context.Context, o *object, bytes int64) error {
	var unreserve func()
	defer func() {
		if unreserve != nil {
			unreserve()
		}
	}()
	p, old := o.pool, o.rec
	want := m.object(p, old)
	want.Bytes = bytes
	return m.run(ctx, old.ID, "expand volume", []step{
		{name: "reserve space", do: func(ctx context.Context) (err error) {
			unreserve, err = m.reserve(ctx, p, old.ID, bytes-old.Bytes, old.Params.Thin)
			return err
		}},
		{name: "record intent", do: func(context.Context) error {
			r := old
			r.GrowTo = bytes
			return m.save(p, r)
		}, undo: func(context.Context) error { return m.save(p, old) }},
		{name: "grow payload", do: func(ctx context.Context) error { return m.spaceError(p.be.Grow(ctx, want)) }},
		{name: "commit", do: func(context.Context) error { return m.save(p, grown(old, bytes)) }},
	})
}

// grown is the record of a volume whose payload now has bytes.
func grown(r Record, bytes int64) Record {
	r.Bytes, r.GrowTo = bytes, 0
	r.Resize = r.Resize || r.Format == FormatDone
	return r
}

// ExpandOnNode makes the devices and the mounted file system of a volume as
// large as its payload. It returns the size in bytes. Where the file system can
// only grow offline here, it fails with ErrPrecondition, and the next stage
// grows it before mounting.
func (m *Manager) ExpandOnNode(ctx context.Context, id, path string, required int64) (int64, error) {
	release, err := m.locks.lock(ctx, id, "expand volume on node")
	if err != nil {
		return 0, err
	}
	defer release()
	o, err := m.find(KindVolume, id)
	if err != nil {
		return 0, err
	}
	if required > o.rec.Bytes {
		return 0, fmt.Errorf("%w: volume %s has %s, %s are asked for: expand it in the pool first", ErrRange, id, exactly(o.rec.Bytes), exactly(required))
	}
	st, err := m.state.get(id)
	if err != nil {
		return 0, err
	}
	if _, err := m.located(ctx, o, st, path); err != nil {
		return 0, err
	}
	if err := m.refresh(ctx, o, st); err != nil {
		return 0, err
	}
	return o.rec.Bytes, nil
}

// refresh grows devices and the file system in place.
func (m *Manager) refresh(ctx context.Context, o *object, st *attachState) error {
	if err := o.pool.be.Refresh(ctx, m.object(o.pool, o.rec)); err != nil {
		return m.spaceError(err)
	}
	if !o.rec.Resize || o.rec.Format != FormatDone {
		return nil
	}
	at, ok := m.mountedAt(ctx, o, st)
	if !ok {
		return nil // the next stage does it
	}
	err := mount.GrowFS(at, o.rec.FSType, o.rec.Bytes)
	if errors.Is(err, mount.ErrOffline) {
		return fmt.Errorf("%w: volume %s: the file system is grown at the next start of its pod, when it is not in use: %w", ErrPrecondition, o.rec.ID, err)
	}
	if err != nil {
		return err
	}
	return m.resized(o)
}

// resized records that file system and device have one size.
func (m *Manager) resized(o *object) error {
	r := m.peek(o.rec.ID).rec
	r.Resize = false
	return m.save(o.pool, r)
}

// resizeOffline grows an ext file system before it is mounted; the others grow
// after.
func (m *Manager) resizeOffline(ctx context.Context, o *object, att *backend.Attachment) error {
	if !o.rec.Resize || o.rec.Format != FormatDone || len(o.rec.FSType) < 3 || o.rec.FSType[:3] != "ext" {
		return nil
	}
	if err := mount.ResizeOffline(ctx, att.Path, o.rec.FSType); err != nil {
		return err
	}
	return m.resized(o)
}
