// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// sizeUnit is what sizes are rounded up to.
const sizeUnit = 4096

// defaultBytes is a volume's size when the request names none.
const defaultBytes = 1 << 30

// maxBytes keeps arithmetic on sizes far from overflow.
const maxBytes = int64(1) << 60

// CreateRequest asks for a volume.
type CreateRequest struct {
	Name string
	// Required and Limit bound the size in bytes; 0 means unbounded.
	Required, Limit int64
	Capabilities    []Capability
	// Parameters are the class's; Mutable those that Modify may change later.
	Parameters, Mutable map[string]string
	Source              *SourceRef
}

// Volume is what callers see of one.
type Volume struct {
	Record
	Pool string
	// Broken says why the volume cannot be used; nil when it can.
	Broken error
}

func view(o *object) Volume { return Volume{Record: o.rec, Pool: o.pool.cfg.Name, Broken: o.broken} }

// Create makes the volume that the name stands for, or returns it when it is
// there and agrees with the request.
func (m *Manager) Create(ctx context.Context, req CreateRequest) (Volume, error) {
	plan, err := m.planCreate(req)
	if err != nil {
		return Volume{}, err
	}
	ids := []string{plan.rec.ID}
	if req.Source != nil {
		ids = append(ids, req.Source.ID)
	}
	release, err := m.locks.lockAll(ctx, ids, "create volume")
	if err != nil {
		return Volume{}, err
	}
	defer release()
	if o := m.peek(plan.rec.ID); o != nil {
		return m.existing(o, plan, req)
	}
	if err := m.planSource(plan, req); err != nil {
		return Volume{}, err
	}
	if err := m.build(ctx, plan, "create volume"); err != nil {
		return Volume{}, err
	}
	m.log.InfoContext(ctx, "volume created", "volume", plan.rec.ID, "pool", plan.pool.cfg.Name, "bytes", plan.rec.Bytes)
	m.changed(plan.pool)
	return view(m.peek(plan.rec.ID)), nil
}

// plan is a volume about to be made.
type plan struct {
	rec      Record
	pool     *pool
	features backend.Features
	from     *object
	// content (may be nil) fills the fresh payload, for imports.
	content func(ctx context.Context, obj backend.Object) error
}

func (r CreateRequest) check() error {
	switch {
	case r.Name == "":
		return fmt.Errorf("%w: name is missing", ErrInvalid)
	case r.Required < 0 || r.Limit < 0 || r.Required > maxBytes:
		return fmt.Errorf("%w: required %d, limit %d bytes", ErrRange, r.Required, r.Limit)
	case r.Limit > 0 && r.Required > r.Limit:
		return fmt.Errorf("%w: %s are required, more than the limit of %s", ErrRange, exactly(r.Required), exactly(r.Limit))
	case len(r.Capabilities) == 0:
		return fmt.Errorf("%w: volume capabilities are missing", ErrInvalid)
	}
	return nil
}

// use settles, from how it is going to be used, what a new volume carries.
func (r *Record) use(caps []Capability, f backend.Features) error {
	for _, c := range caps {
		if err := errors.Join(c.check(), c.fits(f)); err != nil {
			return err
		}
		r.Block = r.Block || c.Block
		if !c.Block && r.FSType == "" {
			r.FSType = c.FSType
		}
	}
	if r.FSType == "" {
		r.FSType = r.Params.FSType
	}
	if r.FSType == "" && !r.Block && f.Block {
		r.FSType = "ext4"
	}
	if !f.Block {
		r.Format = FormatNative
	}
	return nil
}

// planCreate checks everything that does not depend on other objects.
func (m *Manager) planCreate(req CreateRequest) (*plan, error) {
	if err := req.check(); err != nil {
		return nil, err
	}
	params, err := m.cfg.parameters(req.Parameters, req.Mutable)
	if err != nil {
		return nil, err
	}
	p := m.pools[params.Pool]
	if p == nil {
		return nil, fmt.Errorf("%w: no pool %q", ErrElsewhere, params.Pool)
	}
	rec := Record{
		Version: recordVersion, Kind: KindVolume, ID: m.cfg.volumeID(req.Name), Name: req.Name, Handle: newHandle(),
		Created: time.Now().UTC(), Params: params, Labels: labels(req.Parameters), Source: req.Source,
	}
	f, err := p.ready()
	if err != nil {
		return nil, err
	}
	if err := rec.use(req.Capabilities, f); err != nil {
		return nil, err
	}
	if !f.Reserve && !params.Thin && f.Block {
		return nil, fmt.Errorf("%w: pool %s cannot reserve space, use provisioning: thin", ErrInvalid, params.Pool)
	}
	// Refused early here; chosen in planSource, when the source is known.
	if _, err := sized(req.Required, req.Limit, smallest(rec, f)); err != nil {
		return nil, err
	}
	return &plan{rec: rec, pool: p, features: f}, nil
}

func smallest(rec Record, f backend.Features) int64 {
	if rec.Block || !f.Block {
		return f.MinBytes
	}
	return max(f.MinBytes, mount.MinSize(rec.FSType))
}

// sized chooses a size: what is required, rounded up, or as little as the file
// system and the source allow, never beyond the limit.
func sized(required, limit, least int64) (int64, error) {
	n := required
	if n == 0 {
		n = max(defaultBytes, least)
		if limit > 0 && n > limit {
			n = max(least, limit&^(sizeUnit-1))
		}
	}
	n = max(n, least, sizeUnit)
	n = (n + sizeUnit - 1) &^ (sizeUnit - 1)
	if limit > 0 && n > limit {
		return 0, fmt.Errorf("%w: the smallest possible size is %s (multiples of %d), the limit is %s", ErrRange, exactly(n), sizeUnit, exactly(limit))
	}
	return n, nil
}

// planSource finds the source, inherits from it and settles the size.
func (m *Manager) planSource(pl *plan, req CreateRequest) error {
	least := smallest(pl.rec, pl.features)
	if req.Source != nil {
		if err := m.takeSource(pl, req); err != nil {
			return err
		}
		least = max(least, pl.from.rec.Bytes)
	}
	n, err := sized(req.Required, req.Limit, least)
	if err != nil {
		return err
	}
	pl.rec.Bytes = n
	if pl.from != nil {
		pl.rec.Resize = pl.rec.Format == FormatDone && n > pl.from.rec.Bytes
		pl.rec.Shared = pl.features.Instant
	}
	return nil
}

func (m *Manager) takeSource(pl *plan, req CreateRequest) error {
	from, err := m.source(*req.Source)
	if err != nil {
		return err
	}
	if from.pool != pl.pool {
		return fmt.Errorf("%w: source %s is in pool %s, the class names pool %s", ErrInvalid, req.Source.ID, from.pool.cfg.Name, pl.pool.cfg.Name)
	}
	if !pl.features.Snapshots {
		return fmt.Errorf("%w: pool %s has no snapshots or clones", ErrInvalid, pl.pool.cfg.Name)
	}
	if err := inherit(&pl.rec, from.rec); err != nil {
		return err
	}
	if req.Required > 0 && req.Required < from.rec.Bytes {
		return fmt.Errorf("%w: %s are less than the %s of source %s", ErrRange, exactly(req.Required), exactly(from.rec.Bytes), from.rec.ID)
	}
	pl.from = from
	return nil
}

func (m *Manager) source(ref SourceRef) (*object, error) {
	from, err := m.find(ref.Kind, ref.ID)
	if errors.Is(err, ErrNotFound) {
		return nil, fmt.Errorf("%w: %w", ErrSourceNotFound, err)
	}
	return from, err
}

// inherit gives a restored volume its source's contents in the record.
func inherit(rec *Record, from Record) error {
	rec.Format = from.Format
	if from.Format != FormatDone {
		return nil
	}
	if rec.Block {
		rec.FSType, rec.Format = "", FormatRaw
		return nil
	}
	if rec.FSType != "" && rec.FSType != from.FSType {
		return fmt.Errorf("%w: source %s carries %s, the class asks for %s", ErrInvalid, from.ID, from.FSType, rec.FSType)
	}
	rec.FSType = from.FSType
	return nil
}

// existing decides whether the volume of that name is the one asked for.
func (m *Manager) existing(o *object, pl *plan, req CreateRequest) (Volume, error) {
	if o.broken != nil {
		return Volume{}, o.broken
	}
	differs := func(what string) (Volume, error) {
		return Volume{}, fmt.Errorf("%w: volume %q (%s) exists with %s", ErrExists, req.Name, o.rec.ID, what)
	}
	switch {
	case o.rec.Kind != KindVolume || o.rec.Name != req.Name:
		return differs("another name")
	case req.Required > o.rec.Bytes || (req.Limit > 0 && o.rec.Bytes > req.Limit):
		return differs(exactly(o.rec.Bytes))
	case !o.rec.Params.equal(pl.rec.Params):
		return differs("other parameters")
	case (o.rec.Source == nil) != (req.Source == nil) || (req.Source != nil && *req.Source != *o.rec.Source):
		return differs("another source")
	}
	if err := m.suits(o, req.Capabilities); err != nil {
		return differs(err.Error())
	}
	return view(o), nil
}

// build makes the planned volume: in dirNew first, committed by one rename.
func (m *Manager) build(ctx context.Context, pl *plan, verb string) error {
	if err := pl.pool.check(); err != nil {
		return err
	}
	var unreserve func()
	defer func() {
		if unreserve != nil {
			unreserve()
		}
	}()
	rec, fresh := pl.rec, filepath.Join(pl.pool.cfg.Path, dirNew, pl.rec.ID)
	obj := m.object(pl.pool, rec)
	obj.Dir = fresh
	var from *backend.Object
	if pl.from != nil {
		src := m.object(pl.from.pool, pl.from.rec)
		from = &src
	}
	final := pl.pool.dir(rec.Kind, rec.ID)
	return m.run(ctx, rec.ID, verb, []step{
		{name: "reserve space", do: func(ctx context.Context) (err error) {
			unreserve, err = m.reserve(ctx, pl.pool, rec.ID, rec.Bytes, rec.Params.Thin)
			return err
		}},
		{name: "record intent", do: func(context.Context) error {
			return m.spaceError(newDir(fresh, rec))
		}, undo: func(context.Context) error { return os.RemoveAll(fresh) }},
		{name: "make payload", do: func(ctx context.Context) error {
			return m.spaceError(m.fill(ctx, pl, obj, from))
		}, undo: func(ctx context.Context) error { return pl.pool.be.Destroy(ctx, obj) }},
		{name: "commit", do: func(context.Context) error {
			if err := errors.Join(mount.SyncDir(fresh), commit(fresh, final)); err != nil {
				return m.spaceError(err)
			}
			m.put(&object{rec: rec, pool: pl.pool})
			pl.pool.forget()
			return nil
		}},
	})
}

// fill makes the payload; a live source is frozen for the cut, and marked as
// sharing blocks before it does.
func (m *Manager) fill(ctx context.Context, pl *plan, obj backend.Object, from *backend.Object) error {
	if pl.from == nil || pl.from.rec.Kind == KindSnapshot {
		if err := pl.pool.be.Create(ctx, obj, from); err != nil || pl.content == nil {
			return err
		}
		return pl.content(ctx, obj)
	}
	if err := m.markShared(pl.pool, pl.from.rec, pl.features); err != nil {
		return err
	}
	return m.quiet(ctx, []*object{pl.from}, pl.features, func(ctx context.Context) error {
		return pl.pool.be.Create(ctx, obj, from)
	})
}

// newDir makes an object's directory with its record, replacing what an
// interrupted attempt left there.
func newDir(dir string, rec Record) error {
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	if err := os.Mkdir(dir, 0o700); err != nil {
		return err
	}
	b, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	// No rename and no sync of the directory: a torn record in dirNew is swept like
	// a whole one, and the commit syncs the names.
	f, err := os.OpenFile(filepath.Join(dir, metaName), os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = f.Write(append(b, '\n'))
	return errors.Join(err, f.Sync(), f.Close())
}

// commit moves a finished object to its place. One directory is enough to sync:
// a rename is one transaction, whichever end is forced out.
func commit(from, to string) error {
	if err := os.Rename(from, to); err != nil {
		return err
	}
	return mount.SyncDir(filepath.Dir(to))
}

// spaceError translates the errors of a full pool, and what backends say.
func (m *Manager) spaceError(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, backend.ErrNoSpace), errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return fmt.Errorf("%w: %w", ErrNoSpace, err)
	case errors.Is(err, backend.ErrNotSupported):
		return fmt.Errorf("%w: %w", ErrInvalid, err)
	case errors.Is(err, backend.ErrMissing), errors.Is(err, backend.ErrDamaged):
		return fmt.Errorf("%w: %w", ErrDamaged, err)
	case errors.Is(err, backend.ErrBusy), errors.Is(err, mount.ErrBusy):
		return fmt.Errorf("%w: %w", ErrInUse, err)
	case errors.Is(err, unix.EROFS):
		return fmt.Errorf("%w: %w", ErrUnavailable, err)
	default:
		return err
	}
}

// Get returns one volume.
func (m *Manager) Get(id string) (Volume, error) {
	o, err := m.find(KindVolume, id)
	if err != nil {
		return Volume{}, err
	}
	return view(o), nil
}

// List returns every volume, broken ones too, by id.
func (m *Manager) List() []Volume { return m.list(KindVolume) }

func (m *Manager) list(kind Kind) []Volume {
	m.mu.Lock()
	defer m.mu.Unlock()
	var out []Volume
	for _, id := range slices.Sorted(maps.Keys(m.objects)) {
		if o := m.objects[id]; o.rec.Kind == kind {
			out = append(out, view(o))
		}
	}
	return out
}
