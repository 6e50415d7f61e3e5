// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Group is a set of snapshots of one moment. It has no record of its own: each
// member's says all of it.
type Group struct {
	ID, Name string
	Created  time.Time
	// Members maps snapshot ids to the volumes they are of.
	Members map[string]string
	// states of the members that exist.
	states map[string]GroupState
}

// GroupRequest asks for snapshots of several volumes at one moment.
type GroupRequest struct {
	Name       string
	Volumes    []string
	Parameters map[string]string
}

// ready says whether every member is there and committed.
func (g Group) ready() bool {
	return len(g.states) == len(g.Members) && !g.any(GroupMaking, GroupUnmaking)
}

// any says whether some member is in one of these states.
func (g Group) any(states ...GroupState) bool {
	for _, s := range g.states {
		if slices.Contains(states, s) {
			return true
		}
	}
	return false
}

// SnapshotGroup makes the group that the name stands for, or returns it: all of
// its snapshots, or none.
func (m *Manager) SnapshotGroup(ctx context.Context, req GroupRequest) (Group, []Volume, error) {
	if req.Name == "" || len(req.Volumes) == 0 {
		return Group{}, nil, fmt.Errorf("%w: group name or source volumes are missing", ErrInvalid)
	}
	if _, err := snapshotParameters(req.Parameters); err != nil {
		return Group{}, nil, err
	}
	volumes := slices.Compact(slices.Sorted(slices.Values(req.Volumes)))
	g := Group{ID: m.cfg.groupID(req.Name), Name: req.Name, Created: time.Now().UTC(), Members: map[string]string{}}
	ids := append([]string{g.ID}, volumes...)
	for _, v := range volumes {
		id := m.cfg.snapshotID(g.ID + "/" + v)
		g.Members[id] = v
		ids = append(ids, id)
	}
	release, err := m.locks.lockAll(ctx, ids, "create group snapshot")
	if err != nil {
		return Group{}, nil, err
	}
	defer release()
	if err := m.allOpen(); err != nil {
		return Group{}, nil, err // a member might be in the pool that is away
	}
	if old, ok := m.groups()[g.ID]; ok {
		done, err := m.existingGroup(ctx, old, g)
		if err != nil {
			return Group{}, nil, err
		}
		if done {
			return m.groupView(old)
		}
	}
	if err := m.makeGroup(ctx, g, req.Parameters); err != nil {
		return Group{}, nil, err
	}
	m.log.InfoContext(ctx, "group snapshot created", "group", g.ID, "members", len(g.Members))
	return m.groupView(m.groups()[g.ID])
}

// existingGroup says whether old is the group asked for; what an earlier attempt
// left half done is taken away first.
func (m *Manager) existingGroup(ctx context.Context, old, g Group) (bool, error) {
	switch {
	case old.any(GroupMaking, GroupUnmaking):
		return false, m.dissolve(ctx, old)
	case !maps.Equal(old.Members, g.Members):
		return false, fmt.Errorf("%w: group %q (%s) is of other volumes", ErrExists, g.Name, g.ID)
	case !old.ready():
		return false, fmt.Errorf("%w: group %q (%s) lacks some of its snapshots", ErrDamaged, g.Name, g.ID)
	}
	return true, nil
}

func (m *Manager) makeGroup(ctx context.Context, g Group, params map[string]string) error {
	var cuts []*cutting
	for _, id := range slices.Sorted(maps.Keys(g.Members)) {
		src, err := m.source(SourceRef{Kind: KindVolume, ID: g.Members[id]})
		if err != nil {
			return err
		}
		c, err := m.planCut(src, id, g.ID+"/"+g.Members[id])
		if err != nil {
			return err
		}
		if !c.features.OwnSuperblock {
			return fmt.Errorf("%w: volume %s (backend %s) cannot be frozen with a group", ErrPrecondition, src.rec.ID, src.pool.cfg.Backend)
		}
		c.rec.Group = &GroupRef{ID: g.ID, Name: g.Name, State: GroupMaking, Members: g.Members}
		c.rec.Created, c.rec.Labels = g.Created, labels(params)
		cuts = append(cuts, c)
	}
	return m.run(ctx, g.ID, "create group snapshot", []step{
		{
			name: "cut members", do: func(ctx context.Context) error { return m.cutAll(ctx, cuts, g.ID, true) },
			undo: func(ctx context.Context) error { return m.dissolve(ctx, g) },
		},
		{name: "commit group", do: func(context.Context) error { return m.mark(g, GroupReady) }},
	})
}

// mark writes a state into every member's record.
func (m *Manager) mark(g Group, state GroupState) error {
	for _, id := range slices.Sorted(maps.Keys(g.Members)) {
		o := m.peek(id)
		if o == nil || o.broken != nil || o.rec.Group == nil || o.rec.Group.State == state {
			continue
		}
		rec := o.rec
		ref := *rec.Group
		ref.State = state
		rec.Group = &ref
		if err := m.save(o.pool, rec); err != nil {
			return err
		}
	}
	return nil
}

// DeleteGroup removes a group with its snapshots; what does not exist is
// deleted. members, if not empty, must be those of the group.
func (m *Manager) DeleteGroup(ctx context.Context, id string, members []string) error {
	release, err := m.locks.lock(ctx, id, "delete group snapshot")
	if err != nil {
		return err
	}
	defer release()
	g, err := m.findGroup(id)
	if errors.Is(err, ErrNotFound) {
		for _, s := range members {
			m.sweepTrash(ctx, s)
		}
		return nil
	}
	if err != nil {
		return err
	}
	if err := g.matches(members); err != nil {
		return err
	}
	if err := m.allOpen(); err != nil {
		return err
	}
	if err := m.mark(g, GroupUnmaking); err != nil {
		return err
	}
	return m.dissolve(ctx, g)
}

func (g Group) matches(members []string) error {
	if len(members) == 0 {
		return nil
	}
	if want := slices.Sorted(maps.Keys(g.Members)); !slices.Equal(slices.Sorted(slices.Values(members)), want) {
		return fmt.Errorf("%w: group %s has the snapshots %s", ErrInvalid, g.ID, strings.Join(want, ", "))
	}
	return nil
}

// GetGroup returns a group and its snapshots; members as in DeleteGroup.
func (m *Manager) GetGroup(id string, members []string) (Group, []Volume, error) {
	g, err := m.findGroup(id)
	if err != nil {
		return Group{}, nil, err
	}
	if g.any(GroupMaking, GroupUnmaking) {
		return Group{}, nil, fmt.Errorf("group snapshot %q: %w", id, ErrNotFound)
	}
	if err := g.matches(members); err != nil {
		return Group{}, nil, err
	}
	return m.groupView(g)
}

func (m *Manager) groupView(g Group) (Group, []Volume, error) {
	var out []Volume
	for _, id := range slices.Sorted(maps.Keys(g.Members)) {
		s, err := m.GetSnapshot(id)
		if err != nil {
			return Group{}, nil, fmt.Errorf("%w: group %s: %s: %w", ErrDamaged, g.ID, id, err)
		}
		out = append(out, s)
	}
	return g, out, nil
}

// groups collects the groups from their members' records.
func (m *Manager) groups() map[string]Group {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := map[string]Group{}
	for id, o := range m.objects {
		ref := o.rec.Group
		if ref == nil {
			continue
		}
		g, ok := out[ref.ID]
		if !ok {
			g = Group{ID: ref.ID, Name: ref.Name, Created: o.rec.Created, Members: ref.Members, states: map[string]GroupState{}}
		}
		g.states[id] = ref.State
		out[ref.ID] = g
	}
	return out
}

func (m *Manager) findGroup(id string) (Group, error) {
	if g, ok := m.groups()[id]; ok {
		return g, nil
	}
	if err := m.allOpen(); err != nil && validID(id) {
		return Group{}, fmt.Errorf("group snapshot %q is in no open pool: %w", id, err)
	}
	return Group{}, fmt.Errorf("group snapshot %q: %w", id, ErrNotFound)
}

// dissolve removes the members that are there.
func (m *Manager) dissolve(ctx context.Context, g Group) error {
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(g.Members)) {
		if o := m.peek(id); o != nil && o.broken == nil && o.rec.Group != nil && o.rec.Group.ID == g.ID {
			errs = append(errs, m.discard(ctx, o, "delete group snapshot"))
			continue
		}
		m.sweepTrash(ctx, id)
	}
	return errors.Join(errs...)
}

// recoverGroups finishes the groups that were being made or unmade. It runs when
// every pool is open, so that no member is overlooked. A group of which a member
// is merely missing is left alone: only fsck speaks of it.
func (m *Manager) recoverGroups(ctx context.Context) {
	for _, g := range m.groups() {
		var err error
		switch {
		case g.any(GroupUnmaking), g.any(GroupMaking) && !g.any(GroupReady):
			err = m.dissolve(ctx, g)
		case g.any(GroupMaking):
			err = m.mark(g, GroupReady) // some were committed: so all were cut
		}
		if err != nil {
			m.log.ErrorContext(ctx, "group snapshot not recovered", "group", g.ID, "err", err)
		}
	}
}
