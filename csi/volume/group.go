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
	"strings"
	"time"
)

// Group is a set of snapshots of one moment.
type Group struct {
	Version int       `json:"version"`
	ID      string    `json:"id"`
	Name    string    `json:"name"`
	Created time.Time `json:"created"`
	// Ready is false while the group is being made or unmade: recovery removes
	// the members of such a group.
	Ready bool `json:"ready"`
	// Members maps snapshot ids to the volumes they are of.
	Members map[string]string `json:"members"`
}

// GroupRequest asks for snapshots of several volumes at one moment.
type GroupRequest struct {
	Name       string
	Volumes    []string
	Parameters map[string]string
}

func (m *Manager) groupPath(id string) string {
	return filepath.Join(m.cfg.StateDir, "groups", id+".json")
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
	g := Group{Version: recordVersion, ID: m.cfg.groupID(req.Name), Name: req.Name, Created: time.Now().UTC(), Members: map[string]string{}}
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
	old, err := m.readGroup(g.ID)
	switch {
	case err == nil && old.Ready:
		if !maps.Equal(old.Members, g.Members) {
			return Group{}, nil, fmt.Errorf("%w: group %q (%s) is of other volumes", ErrExists, req.Name, g.ID)
		}
		return m.groupView(old)
	case err == nil:
		if err := m.dissolve(ctx, old); err != nil {
			return Group{}, nil, err
		}
	case !errors.Is(err, ErrNotFound):
		return Group{}, nil, err
	}
	if err := m.makeGroup(ctx, &g, req.Parameters); err != nil {
		return Group{}, nil, err
	}
	m.log.InfoContext(ctx, "group snapshot created", "group", g.ID, "members", len(g.Members))
	return m.groupView(g)
}

func (m *Manager) makeGroup(ctx context.Context, g *Group, params map[string]string) error {
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
		c.rec.Group, c.rec.Created, c.rec.Labels = g.ID, g.Created, labels(params)
		cuts = append(cuts, c)
	}
	return m.run(ctx, g.ID, "create group snapshot", []step{
		{
			name: "record intent", do: func(context.Context) error { return m.writeGroup(*g) },
			undo: func(context.Context) error { return m.removeGroup(g.ID) },
		},
		{
			name: "cut members", do: func(ctx context.Context) error { return m.cutAll(ctx, cuts, g.ID, true) },
			undo: func(ctx context.Context) error { return m.dropMembers(ctx, *g) },
		},
		{name: "commit group", do: func(context.Context) error {
			g.Ready = true
			return m.writeGroup(*g)
		}},
	})
}

// DeleteGroup removes a group with its snapshots; what does not exist is
// deleted. members, if not empty, must be those of the group.
func (m *Manager) DeleteGroup(ctx context.Context, id string, members []string) error {
	release, err := m.locks.lock(ctx, id, "delete group snapshot")
	if err != nil {
		return err
	}
	defer release()
	g, err := m.readGroup(id)
	if errors.Is(err, ErrNotFound) {
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
	g.Ready = false
	if err := m.writeGroup(g); err != nil {
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
	g, err := m.readGroup(id)
	if err != nil {
		return Group{}, nil, err
	}
	if !g.Ready {
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
			return Group{}, nil, fmt.Errorf("group %s: %w", g.ID, err)
		}
		out = append(out, s)
	}
	return g, out, nil
}

func (m *Manager) readGroup(id string) (Group, error) {
	var g Group
	if !validID(id) {
		return g, fmt.Errorf("group snapshot %q: %w", id, ErrNotFound)
	}
	b, err := os.ReadFile(m.groupPath(id))
	if errors.Is(err, os.ErrNotExist) {
		return g, fmt.Errorf("group snapshot %q: %w", id, ErrNotFound)
	}
	if err != nil {
		return g, fmt.Errorf("read group: %w", err)
	}
	if err := json.Unmarshal(b, &g); err != nil || g.ID != id || g.Version > recordVersion {
		return g, fmt.Errorf("%w: %s is not a group record that this build understands (%w)", ErrDamaged, m.groupPath(id), err)
	}
	return g, nil
}

func (m *Manager) writeGroup(g Group) error {
	if err := os.MkdirAll(filepath.Dir(m.groupPath(g.ID)), 0o700); err != nil {
		return err
	}
	return writeJSON(m.groupPath(g.ID), g)
}

func (m *Manager) removeGroup(id string) error {
	if err := os.Remove(m.groupPath(id)); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	return nil
}

// dissolve removes the members, then the group's record.
func (m *Manager) dissolve(ctx context.Context, g Group) error {
	if err := m.dropMembers(ctx, g); err != nil {
		return err
	}
	return m.removeGroup(g.ID)
}

func (m *Manager) dropMembers(ctx context.Context, g Group) error {
	var errs []error
	for _, id := range slices.Sorted(maps.Keys(g.Members)) {
		if o := m.peek(id); o != nil && o.rec.Group == g.ID {
			errs = append(errs, m.discard(ctx, o, "delete group snapshot"))
			continue
		}
		m.sweepTrash(ctx, id)
	}
	return errors.Join(errs...)
}

// recoverGroups dissolves the groups that were being made or unmade. It runs
// when every pool is open, so that no member is overlooked.
func (m *Manager) recoverGroups(ctx context.Context) {
	files, err := filepath.Glob(filepath.Join(m.cfg.StateDir, "groups", "*.json"))
	if err != nil {
		return
	}
	for _, f := range files {
		g, err := m.readGroup(strings.TrimSuffix(filepath.Base(f), ".json"))
		if err == nil && !g.Ready {
			err = m.dissolve(ctx, g)
		}
		if err != nil {
			m.log.ErrorContext(ctx, "group snapshot not recovered", "path", f, "err", err)
		}
	}
}
