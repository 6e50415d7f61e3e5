// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"cmp"
	"context"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nodeagent/nodeagent/csi/backend"
)

// sharer is an object that has blocks in common with others.
type sharer struct {
	id   string
	made time.Time
	// owed says that the object was promised every one of its blocks, so that a
	// write to one in common has to find room for a copy. Snapshots are not written
	// to, thin volumes were promised nothing.
	owed   bool
	blocks []backend.Range
}

// sharedDebts says, by id, how many bytes of copies the pool may have to make for
// each object. Of a block that only promised volumes have, the last one keeps what
// is there: all but the oldest are charged. Where somebody else has it, too, each
// is: a snapshot keeps the block for good. others says that there are holders whom
// nobody knows.
func sharedDebts(all []sharer, others bool) map[string]int64 {
	type edge struct {
		at     int64
		holder int
		ends   bool
	}
	out := map[string]int64{}
	var edges []edge
	for i, h := range all {
		for _, b := range h.blocks {
			if b.Offset < 0 { // nobody knows where, or who else has it
				chargeCopies(all, []int{i}, true, b.Length, out)
				continue
			}
			edges = append(edges, edge{b.Offset, i, false}, edge{b.Offset + b.Length, i, true})
		}
	}
	slices.SortFunc(edges, func(a, b edge) int { return cmp.Compare(a.at, b.at) })
	var have []int // holders of the blocks before the next edge
	from := int64(0)
	for _, e := range edges {
		if e.at > from {
			chargeCopies(all, have, others, e.at-from, out)
			from = e.at
		}
		if !e.ends {
			have = append(have, e.holder)
		} else if i := slices.Index(have, e.holder); i >= 0 {
			have = slices.Delete(have, i, i+1)
		}
	}
	return out
}

func chargeCopies(all []sharer, have []int, others bool, bytes int64, out map[string]int64) {
	oldest := -1
	kept := others || len(have) == 1 // in common with something that is being made or destroyed
	for _, i := range have {
		kept = kept || !all[i].owed
		if oldest < 0 || all[i].made.Before(all[oldest].made) {
			oldest = i
		}
	}
	for _, i := range have {
		if all[i].owed && (kept || i != oldest) {
			out[all[i].id] += bytes
		}
	}
}

// sharers lists the pool's objects that have, or had, blocks in common.
func (m *Manager) sharers(ctx context.Context, p *pool, s backend.Sharer) ([]sharer, error) {
	var out []sharer
	for _, o := range m.objectsOf(p) {
		if !o.rec.Shared {
			continue
		}
		h := sharer{id: o.rec.ID, made: o.rec.Created, owed: o.rec.Kind == KindVolume && !o.rec.Params.Thin}
		err := s.Blocks(ctx, m.object(p, o.rec), func(r backend.Range, shared bool) bool {
			if shared {
				h.blocks = append(h.blocks, r)
			}
			return true
		})
		if err != nil {
			return nil, err
		}
		out = append(out, h)
	}
	return out, nil
}

// strangers says whether the pool has objects that are not in the index: what is
// being destroyed may still have blocks. What is being made has its reservation.
func (p *pool) strangers() bool {
	names, err := os.ReadDir(filepath.Join(p.cfg.Path, dirTrash))
	return err != nil || len(names) > 0
}

// sharedDebt says what copies the pool may have to make for an object; p.books is
// held. It is measured for all objects at once, and believed for debtAge.
func (m *Manager) sharedDebt(ctx context.Context, p *pool, s backend.Sharer, id string) (int64, error) {
	if p.shared == nil || time.Since(p.sharedAt) >= debtAge {
		all, err := m.sharers(ctx, p, s)
		if err != nil {
			return 0, err
		}
		p.shared, p.sharedAt = sharedDebts(all, p.strangers()), time.Now()
	}
	return p.shared[id], nil
}

// costOfCut says how much more the pool may have to copy once a snapshot of src is
// there: nothing for blocks that another snapshot has already.
func (m *Manager) costOfCut(ctx context.Context, src *object, s backend.Sharer) (int64, error) {
	all, err := m.sharers(ctx, src.pool, s)
	if err != nil {
		return 0, err
	}
	var whole []backend.Range
	err = s.Blocks(ctx, m.object(src.pool, src.rec), func(r backend.Range, _ bool) bool {
		whole = append(whole, r)
		return true
	})
	if err != nil {
		return 0, err
	}
	others := src.pool.strangers()
	before := total(sharedDebts(all, others))
	i := slices.IndexFunc(all, func(h sharer) bool { return h.id == src.rec.ID })
	if i < 0 {
		i = len(all)
		all = append(all, sharer{id: src.rec.ID, made: src.rec.Created, owed: !src.rec.Params.Thin})
	}
	all[i].blocks = whole
	all = append(all, sharer{id: "the cut", made: time.Now(), blocks: whole})
	return max(total(sharedDebts(all, others))-before, 0), nil
}

func total(debts map[string]int64) int64 {
	var n int64
	for _, d := range debts {
		n += d
	}
	return n
}
