// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// SnapshotRequest asks for an image of a volume at one moment.
type SnapshotRequest struct {
	Name, Volume string
	// Parameters are the snapshot class's: freeze is auto (default) or never.
	Parameters map[string]string
}

// Snapshot makes the snapshot that the name stands for, or returns it. It is
// ready to use on return.
func (m *Manager) Snapshot(ctx context.Context, req SnapshotRequest) (Volume, error) {
	if req.Name == "" || req.Volume == "" {
		return Volume{}, fmt.Errorf("%w: snapshot name or source volume is missing", ErrInvalid)
	}
	freeze, err := snapshotParameters(req.Parameters)
	if err != nil {
		return Volume{}, err
	}
	id := m.cfg.snapshotID(req.Name)
	release, err := m.locks.lockAll(ctx, []string{id, req.Volume}, "create snapshot")
	if err != nil {
		return Volume{}, err
	}
	defer release()
	if o := m.peek(id); o != nil {
		if o.broken != nil {
			return Volume{}, o.broken
		}
		if o.rec.Volume != req.Volume || o.rec.Name != req.Name {
			return Volume{}, fmt.Errorf("%w: snapshot %q (%s) is of volume %s", ErrExists, req.Name, id, o.rec.Volume)
		}
		return view(o), nil
	}
	src, err := m.source(SourceRef{Kind: KindVolume, ID: req.Volume})
	if err != nil {
		return Volume{}, err
	}
	cut, err := m.planCut(src, id, req.Name)
	if err != nil {
		return Volume{}, err
	}
	cut.rec.Labels = labels(req.Parameters)
	if err := m.cutAll(ctx, []*cutting{cut}, id, freeze); err != nil {
		return Volume{}, err
	}
	m.log.InfoContext(ctx, "snapshot created", "snapshot", id, "volume", req.Volume)
	return view(m.peek(id)), nil
}

func snapshotParameters(in map[string]string) (freeze bool, err error) {
	freeze = true
	for _, k := range sortedKeys(in) {
		switch {
		case strings.HasPrefix(k, labelPrefix):
		case k == "deletionPolicy" && (in[k] == "Delete" || in[k] == "Retain"):
			// A field of the class, which Kubernetes' own tests repeat here.
		case k == ParamFreeze && (in[k] == "auto" || in[k] == "never"):
			freeze = in[k] == "auto"
		case k == ParamFreeze:
			return false, fmt.Errorf("%w: parameter %s: %q is neither auto nor never", ErrInvalid, k, in[k])
		default:
			return false, fmt.Errorf("%w: unknown snapshot parameter %q", ErrInvalid, k)
		}
	}
	return freeze, nil
}

// cutting is one snapshot about to be made.
type cutting struct {
	rec       Record
	src       *object
	snap      backend.Snapshotter
	features  backend.Features
	unreserve func()
}

func (c *cutting) fresh() string { return filepath.Join(c.src.pool.cfg.Path, dirNew, c.rec.ID) }

func (m *Manager) planCut(src *object, id, name string) (*cutting, error) {
	if err := src.pool.check(); err != nil {
		return nil, err
	}
	f, err := src.pool.ready()
	if err != nil {
		return nil, err
	}
	s, ok := src.pool.be.(backend.Snapshotter)
	if !ok || !f.Snapshots {
		return nil, fmt.Errorf("%w: pool %s (backend %s) has no snapshots", ErrInvalid, src.pool.cfg.Name, src.pool.cfg.Backend)
	}
	return &cutting{
		rec: Record{
			Version: recordVersion, Kind: KindSnapshot, ID: id, Name: name, Handle: newHandle(), Created: time.Now().UTC(),
			Bytes: src.rec.Bytes, Params: src.rec.Params, Volume: src.rec.ID,
			Block: src.rec.Block, FSType: src.rec.FSType, Format: src.rec.Format, Shared: f.Instant,
		},
		src: src, snap: s, features: f,
	}, nil
}

// cutAll makes snapshots at one moment; verbs of their sources are locked out.
func (m *Manager) cutAll(ctx context.Context, cuts []*cutting, id string, freeze bool) error {
	defer func() {
		for _, c := range cuts {
			if c.unreserve != nil {
				c.unreserve()
			}
		}
	}()
	each := func(f func(context.Context, *cutting) error) func(context.Context) error {
		return func(ctx context.Context) error {
			for _, c := range cuts {
				if err := f(ctx, c); err != nil {
					return err
				}
			}
			return nil
		}
	}
	return m.run(ctx, id, "create snapshot", []step{
		{name: "reserve space", do: each(m.reserveCut)},
		{name: "record intent", do: each(func(_ context.Context, c *cutting) error {
			if err := newDir(c.fresh(), c.rec); err != nil {
				return m.spaceError(err)
			}
			return m.markShared(c.src.pool, c.src.rec, c.features)
		}), undo: each(func(ctx context.Context, c *cutting) error { return m.sweepOne(ctx, c.src.pool, c.fresh()) })},
		{name: "cut", do: func(ctx context.Context) error { return m.cut(ctx, cuts, freeze) }},
		{name: "commit", do: each(func(_ context.Context, c *cutting) error {
			if err := errors.Join(mount.SyncDir(c.fresh()), commit(c.fresh(), c.src.pool.dir(KindSnapshot, c.rec.ID))); err != nil {
				return m.spaceError(err)
			}
			m.put(&object{rec: c.rec, pool: c.src.pool})
			c.src.pool.forget()
			m.changed(c.src.pool)
			return nil
		}), undo: each(func(ctx context.Context, c *cutting) error {
			if o := m.peek(c.rec.ID); o != nil {
				return m.discard(ctx, o, "take back snapshot")
			}
			return nil
		})},
	})
}

// reserveCut promises what the cut costs: on a pool with reflinks, every block of
// the source that nobody else keeps may have to be written a second time; elsewhere
// it is copied.
func (m *Manager) reserveCut(ctx context.Context, c *cutting) error {
	need, err := m.costOf(ctx, c)
	if err != nil {
		return m.spaceError(err)
	}
	c.unreserve, err = m.reserve(ctx, c.src.pool, c.rec.ID, need, false)
	return err
}

func (m *Manager) costOf(ctx context.Context, c *cutting) (int64, error) {
	if s, ok := c.src.pool.be.(backend.Sharer); ok && c.features.Instant {
		return m.costOfCut(ctx, c.src, s)
	}
	d, ok := c.src.pool.be.(backend.Differ)
	if !ok {
		return c.rec.Bytes, nil
	}
	var need int64
	err := d.Allocated(ctx, m.object(c.src.pool, c.src.rec), 0, func(r backend.Range) bool {
		need += r.Length
		return true
	})
	return need, err
}

// cut takes all images while the sources stand still.
func (m *Manager) cut(ctx context.Context, cuts []*cutting, freeze bool) error {
	var sources []*object
	for _, c := range cuts {
		sources = append(sources, c.src)
	}
	work := func(ctx context.Context) error {
		for _, c := range cuts {
			dst := m.object(c.src.pool, c.rec)
			dst.Dir = c.fresh()
			if err := c.snap.Snapshot(ctx, m.object(c.src.pool, c.src.rec), dst); err != nil {
				return m.spaceError(err)
			}
		}
		return nil
	}
	if !freeze && len(cuts) == 1 && cuts[0].features.Instant {
		return work(ctx)
	}
	return m.quiet(ctx, sources, cuts[0].features, work)
}

// markShared records, before the first shared block exists, that the ledger has
// to follow this object's extents.
func (m *Manager) markShared(p *pool, r Record, f backend.Features) error {
	if !f.Instant || r.Shared {
		return nil
	}
	r = m.peek(r.ID).rec
	r.Shared = true
	return m.save(p, r)
}

// DeleteSnapshot removes a snapshot; what does not exist is deleted. Volumes
// restored from it stay whole. A group's member goes with its group only.
func (m *Manager) DeleteSnapshot(ctx context.Context, id string) error {
	if o := m.peek(id); o != nil && o.rec.Kind == KindSnapshot && o.rec.Group != nil {
		return fmt.Errorf("%w: snapshot %s belongs to group %s and is deleted with it", ErrInvalid, id, o.rec.Group.ID)
	}
	return m.remove(ctx, KindSnapshot, id, "delete snapshot")
}

// GetSnapshot returns one snapshot.
func (m *Manager) GetSnapshot(id string) (Volume, error) {
	o, err := m.find(KindSnapshot, id)
	if err != nil {
		return Volume{}, err
	}
	return view(o), nil
}

// Snapshots returns every snapshot, by id.
func (m *Manager) Snapshots() []Volume { return m.list(KindSnapshot) }

// Allocated yields the ranges of a snapshot that hold data.
func (m *Manager) Allocated(ctx context.Context, id string, offset int64, yield func(backend.Range) bool) (size int64, err error) {
	o, d, err := m.differ(id, offset)
	if err != nil {
		return 0, err
	}
	return o.rec.Bytes, m.spaceError(d.Allocated(ctx, m.object(o.pool, o.rec), offset, yield))
}

// Delta yields the ranges in which target differs from base; both are snapshots
// of one volume.
func (m *Manager) Delta(ctx context.Context, base, target string, offset int64, yield func(backend.Range) bool) (size int64, err error) {
	t, d, err := m.differ(target, offset)
	if err != nil {
		return 0, err
	}
	b, _, err := m.differ(base, 0)
	if err != nil {
		return 0, err
	}
	if b.rec.Volume != t.rec.Volume || b.pool != t.pool {
		return 0, fmt.Errorf("%w: snapshots %s and %s are of different volumes", ErrInvalid, base, target)
	}
	return t.rec.Bytes, m.spaceError(d.Delta(ctx, m.object(b.pool, b.rec), m.object(t.pool, t.rec), offset, yield))
}

func (m *Manager) differ(id string, offset int64) (*object, backend.Differ, error) {
	o, err := m.find(KindSnapshot, id)
	if err != nil {
		return nil, nil, err
	}
	if err := o.pool.check(); err != nil {
		return nil, nil, err
	}
	d, ok := o.pool.be.(backend.Differ)
	if !ok {
		return nil, nil, fmt.Errorf("%w: backend %s has no changed-block metadata", ErrPrecondition, o.pool.cfg.Backend)
	}
	if offset < 0 || offset >= o.rec.Bytes && offset > 0 {
		return nil, nil, fmt.Errorf("%w: offset %d of a volume of %d bytes", ErrRange, offset, o.rec.Bytes)
	}
	return o, d, nil
}

// errThawed says that the watchdog let the writers go before the cut was made.
var errThawed = errors.New("the cut took longer than writers may be held")
