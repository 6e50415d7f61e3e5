// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"fmt"
	"time"

	"github.com/nodeagent/nodeagent/csi/backend"
)

// debtAge is how long a debt measured through extents is believed. A stale one
// errs on the safe side: what was written since has lowered the pool's free
// space as well.
const debtAge = 30 * time.Second

// Capacity is what a class can still get.
type Capacity struct {
	Available int64 // bytes that can be promised
	Largest   int64 // largest single volume
	Smallest  int64
	Total     int64 // size of the pool
	Promised  int64 // bytes promised to all its objects
	Debt      int64 // of these, not yet taken from the pool
}

// account adds up what the pool owes its objects; p.books is held.
func (m *Manager) account(ctx context.Context, p *pool) (Capacity, error) {
	space, err := p.be.Space(ctx)
	if err != nil {
		return Capacity{}, fmt.Errorf("%w: measure pool %s: %w", ErrUnavailable, p.cfg.Name, err)
	}
	keep, err := parseReserve(p.cfg.Reserve, space.Total)
	if err != nil {
		return Capacity{}, err
	}
	limit, err := parseSize(p.cfg.Limit)
	if err != nil {
		return Capacity{}, err
	}
	f, _ := p.ready() // also while it is being opened
	c := Capacity{Total: space.Total, Smallest: f.MinBytes}
	for _, o := range m.objectsOf(p) {
		d, promised := m.debtOf(ctx, p, o.rec)
		c.Debt += d
		c.Promised += promised
	}
	var pending int64
	for _, n := range p.pending {
		pending += n
	}
	c.Available = space.Free - keep - c.Debt - pending
	if limit > 0 {
		c.Total = min(limit, c.Total)
		c.Available = min(c.Available, limit-c.Promised-pending)
	}
	if space.ReadOnly {
		c.Available = 0
	}
	c.Available = max(c.Available, 0) &^ 4095
	c.Largest = c.Available
	if space.Largest > 0 {
		c.Largest = min(c.Largest, space.Largest)
	}
	return c, nil
}

// debtOf says what an object may still ask of the pool, and what it counts for
// against the pool's limit.
func (m *Manager) debtOf(ctx context.Context, p *pool, r Record) (owed, promised int64) {
	if known, ok := p.debts[r.ID]; ok && (!r.Shared || time.Since(known.at) < debtAge) {
		return m.charge(r, backend.Usage{Allocated: r.Bytes, Debt: known.bytes})
	}
	u, err := m.usage(ctx, p, r)
	if err != nil {
		u = backend.Usage{Debt: r.Bytes} // cannot be measured: all of it may come
	}
	if r.Shared {
		p.debts[r.ID] = debt{u.Debt, time.Now()}
	}
	return m.charge(r, u)
}

// usage measures an object; its debt includes the copies of what it shares. p.books is
// held.
func (m *Manager) usage(ctx context.Context, p *pool, r Record) (backend.Usage, error) {
	follow := r.Shared && r.Kind == KindVolume
	u, err := p.be.Usage(ctx, m.object(p, r), follow)
	if s, ok := p.be.(backend.Sharer); ok && follow && u.Shared > 0 && err == nil {
		u.Shared, err = m.sharedDebt(ctx, p, s, r.ID)
	}
	u.Debt += u.Shared
	return u, err
}

func (m *Manager) charge(r Record, u backend.Usage) (owed, promised int64) {
	switch {
	case r.Kind == KindSnapshot: // never written to
		return 0, u.Allocated
	case r.Params.Thin:
		return 0, u.Allocated
	default:
		return u.Debt, max(r.Bytes, r.GrowTo)
	}
}

// reserve promises bytes of the pool to verb on id until release is called; by
// then the bytes are taken, or are in a record that account sees.
func (m *Manager) reserve(ctx context.Context, p *pool, id string, bytes int64, thin bool) (release func(), err error) {
	p.books.Lock()
	defer p.books.Unlock()
	c, err := m.account(ctx, p)
	if err != nil {
		return nil, err
	}
	if thin {
		if err := m.overcommit(p, c, bytes); err != nil {
			return nil, err
		}
		bytes = 0
	}
	if bytes > c.Available || bytes > c.Largest {
		return nil, fmt.Errorf("%w: pool %s can promise %s, %s are asked for", ErrNoSpace, p.cfg.Name, about(min(c.Available, c.Largest)), about(bytes))
	}
	p.pending[id] = bytes
	return func() {
		p.books.Lock()
		defer p.books.Unlock()
		delete(p.pending, id)
	}, nil
}

// overcommit bounds what thin volumes promise.
func (m *Manager) overcommit(p *pool, c Capacity, bytes int64) error {
	if p.cfg.Overcommit == 0 {
		return fmt.Errorf("%w: pool %s does not allow thin volumes (overcommit is 0)", ErrInvalid, p.cfg.Name)
	}
	promised := bytes
	for _, o := range m.objectsOf(p) {
		if o.rec.Kind == KindVolume {
			promised += o.rec.Bytes
		}
	}
	if most := int64(float64(c.Total) * p.cfg.Overcommit); promised > most {
		return fmt.Errorf("%w: pool %s may promise %s thinly, that would be %s", ErrNoSpace, p.cfg.Name, about(most), about(promised))
	}
	return nil
}

// forget drops measured debts after a verb that changes who shares blocks with
// whom.
func (p *pool) forget() {
	p.books.Lock()
	defer p.books.Unlock()
	clear(p.debts)
	p.shared = nil
}

// Capacity says what a class with these parameters can still get.
func (m *Manager) Capacity(ctx context.Context, params map[string]string) (Capacity, error) {
	parsed, err := m.cfg.parameters(params, nil)
	if err != nil {
		return Capacity{}, err
	}
	p := m.pools[parsed.Pool]
	if p == nil {
		return Capacity{}, nil // another node's pool: nothing here, and no error
	}
	if _, err := p.ready(); err != nil {
		return Capacity{}, nil // a pool that is away has nothing to offer; its health says why
	}
	p.books.Lock()
	defer p.books.Unlock()
	c, err := m.account(ctx, p)
	if err != nil {
		return Capacity{}, err
	}
	if parsed.Thin {
		promised := int64(0)
		for _, o := range m.objectsOf(p) {
			if o.rec.Kind == KindVolume {
				promised += o.rec.Bytes
			}
		}
		c.Available = max(int64(float64(c.Total)*p.cfg.Overcommit)-promised, 0)
		c.Largest = c.Available
	}
	return c, nil
}
