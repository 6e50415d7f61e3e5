// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"maps"
	"slices"
	"time"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// ConditionType is how bad it is.
type ConditionType string

// The condition types, as CSI 1.13 names them.
const (
	Degraded     ConditionType = "DEGRADED"
	Inaccessible ConditionType = "INACCESSIBLE"
	DataLoss     ConditionType = "DATA_LOSS"
)

// Condition is something wrong with a volume or a pool. It stays until its cause
// is gone.
type Condition struct {
	Type    ConditionType
	Reason  string // CamelCase, for machines
	Message string
	Since   time.Time
}

func (m *Manager) setFault(id string, c Condition) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.faults[id] == nil {
		m.faults[id] = map[string]Condition{}
	}
	c.Since = time.Now()
	if old, ok := m.faults[id][c.Reason]; ok {
		c.Since = old.Since
	}
	m.faults[id][c.Reason] = c
}

func (m *Manager) clearFault(id, reason string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.faults[id], reason)
	if len(m.faults[id]) == 0 {
		delete(m.faults, id)
	}
}

// note remembers a failed stage or publish, so that the health of a volume says
// why its pod does not start; the next success forgets it.
func (m *Manager) note(id, verb string, err error) {
	reason := verb + "Failed"
	switch {
	case err == nil:
		m.clearFault(id, reason)
	case m.peek(id) == nil, errors.Is(err, ErrInvalid), errors.Is(err, ErrBusy), errors.Is(err, ErrExists), errors.Is(err, ErrPrecondition):
		// The request's fault, or nobody's: not the volume's.
	case errors.Is(err, ErrDamaged):
		m.setFault(id, Condition{Type: DataLoss, Reason: reason, Message: err.Error()})
	default:
		m.setFault(id, Condition{Type: Inaccessible, Reason: reason, Message: err.Error()})
	}
}

// Health lists what is wrong with a volume; nothing means healthy.
func (m *Manager) Health(ctx context.Context, id string) ([]Condition, error) {
	o := m.peek(id)
	if o == nil || o.rec.Kind != KindVolume {
		_, err := m.find(KindVolume, id)
		return nil, err
	}
	if o.broken != nil {
		//nolint:nilerr // what is wrong is the answer
		return []Condition{{Type: Inaccessible, Reason: "RecordUnreadable", Message: o.broken.Error()}}, nil
	}
	m.mu.Lock()
	out := slices.SortedFunc(maps.Values(m.faults[id]), func(a, b Condition) int { return a.Since.Compare(b.Since) })
	m.mu.Unlock()
	if err := o.pool.check(); err != nil {
		//nolint:nilerr // what is wrong is the answer
		return append(out, Condition{Type: Inaccessible, Reason: "PoolUnavailable", Message: err.Error()}), nil
	}
	switch err := o.pool.be.Check(ctx, m.object(o.pool, o.rec)); {
	case errors.Is(err, backend.ErrMissing):
		return append(out, Condition{Type: DataLoss, Reason: "DataMissing", Message: err.Error()}), nil
	case errors.Is(err, backend.ErrDamaged):
		out = append(out, Condition{Type: DataLoss, Reason: "DataDamaged", Message: err.Error()})
	case err != nil:
		out = append(out, Condition{Type: Inaccessible, Reason: "DataUnreadable", Message: err.Error()})
	}
	return append(out, m.stagingHealth(ctx, o)...), nil
}

// stagingHealth compares what should be attached with what is.
func (m *Manager) stagingHealth(ctx context.Context, o *object) []Condition {
	st, err := m.state.get(o.rec.ID)
	if err != nil {
		return []Condition{{Type: Degraded, Reason: "StateUnreadable", Message: err.Error()}}
	}
	if len(st.Staged) == 0 {
		return nil
	}
	atts, err := o.pool.be.Attached(ctx, m.object(o.pool, o.rec))
	if err == nil && len(atts) == 0 {
		return []Condition{{Type: Inaccessible, Reason: "DeviceLost", Message: "the volume is staged, but its device is gone"}}
	}
	for path, a := range st.Staged {
		if a.Block {
			continue
		}
		at, err := mount.At(path)
		if err != nil || at.Corrupt {
			return []Condition{{Type: Inaccessible, Reason: "FilesystemDead", Message: "the file system at " + path + " does not answer"}}
		}
		f, _ := o.pool.ready()
		if at.Mounted && at.ReadOnly && !a.Reader && !f.ReadOnly && !slices.Contains(a.Flags, "ro") {
			return []Condition{{Type: Degraded, Reason: "FilesystemReadOnly", Message: "the file system at " + path + " went read-only"}}
		}
	}
	return nil
}

// PoolCondition is something wrong with a pool.
type PoolCondition struct {
	Pool string
	Condition
}

// nearlyFull is the free share of a pool below which its health says so, when
// thin volumes may still ask for space.
const nearlyFull = 0.05

// PoolHealth lists what is wrong with the pools.
func (m *Manager) PoolHealth(ctx context.Context) []PoolCondition {
	var out []PoolCondition
	add := func(p *pool, t ConditionType, reason, message string) {
		out = append(out, PoolCondition{p.cfg.Name, Condition{Type: t, Reason: reason, Message: message, Since: time.Now()}})
	}
	for _, name := range slices.Sorted(maps.Keys(m.pools)) {
		p := m.pools[name]
		if err := p.check(); err != nil {
			add(p, Inaccessible, "PoolUnavailable", err.Error())
			continue
		}
		space, err := p.be.Space(ctx)
		switch {
		case err != nil:
			add(p, Inaccessible, "PoolUnreadable", err.Error())
		case space.ReadOnly:
			add(p, Degraded, "PoolReadOnly", "the pool's file system is read-only")
		case p.cfg.Overcommit > 0 && space.Total > 0 && float64(space.Free) < nearlyFull*float64(space.Total):
			add(p, Degraded, "PoolNearlyFull", "less than 5% of the pool is free and thin volumes may still ask for space")
		}
	}
	return out
}
