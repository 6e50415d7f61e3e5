// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// Detail is all that a person asks of one volume.
type Detail struct {
	Volume
	// Allocated is what it occupies of the pool, Debt what it may still ask for.
	Allocated, Debt int64
	Snapshots       int
	Staged          []string
	Targets         []Target
	Conditions      []Condition
	// Operation is the verb at work on it, if one is.
	Operation *Operation
}

// Target is one place where a pod has a volume.
type Target struct {
	Path, PodUID string
	// Pod is its namespace and name, when known.
	Pod      string
	ReadOnly bool
}

// Describe tells everything about every volume, by id.
func (m *Manager) Describe(ctx context.Context) []Detail {
	snapshots := map[string]int{}
	for _, s := range m.Snapshots() {
		snapshots[s.Volume]++
	}
	working := map[string]Operation{}
	for _, op := range m.Operations() {
		working[op.ID] = op
	}
	var out []Detail
	for _, v := range m.List() {
		d := Detail{Volume: v, Snapshots: snapshots[v.ID]}
		d.Conditions, _ = m.Health(ctx, v.ID)
		if op, ok := working[v.ID]; ok {
			d.Operation = &op
		}
		if st, err := m.state.get(v.ID); err == nil {
			d.Staged = st.stagePaths()
			for _, p := range st.targetPaths() {
				d.Targets = append(d.Targets, Target{Path: p, PodUID: st.Targets[p].PodUID, Pod: st.Targets[p].Pod, ReadOnly: st.Targets[p].ReadOnly})
			}
		}
		if o := m.peek(v.ID); o != nil && o.broken == nil && o.pool.check() == nil {
			d.Allocated, d.Debt = m.measure(ctx, o)
		}
		out = append(out, d)
	}
	return out
}

// Cost says what a snapshot occupies, and what of it nobody else has: the pool
// gets that much back when it goes.
func (m *Manager) Cost(ctx context.Context, id string) (allocated, alone int64) {
	o := m.peek(id)
	if o == nil || o.broken != nil || o.pool.check() != nil {
		return 0, 0
	}
	u, err := o.pool.be.Usage(ctx, m.object(o.pool, o.rec), true)
	if err != nil {
		return 0, 0
	}
	return u.Allocated, max(u.Allocated-u.Shared, 0)
}

// measure says what an object occupies and what it may still ask of its pool;
// nothing when that cannot be said.
func (m *Manager) measure(ctx context.Context, o *object) (allocated, owed int64) {
	o.pool.mu.Lock()
	defer o.pool.mu.Unlock()
	u, err := m.usage(ctx, o.pool, o.rec)
	if err != nil {
		return 0, 0
	}
	owed, _ = m.charge(o.rec, u)
	return u.Allocated, owed
}

// Finding is something that Fsck does not like.
type Finding struct {
	Pool, Object, Problem string
	// Fixed says that it is gone now.
	Fixed bool
}

// Fsck compares records, payloads and kernel. With repair it removes what is
// certainly garbage: trash, half-made objects, devices that nobody staged. It
// never touches a committed object's data.
func (m *Manager) Fsck(ctx context.Context, repair bool) []Finding {
	var out []Finding
	for _, info := range m.Pools(ctx) {
		p := m.pools[info.Name]
		if info.Err != nil {
			out = append(out, Finding{Pool: info.Name, Problem: info.Err.Error()})
			continue
		}
		out = append(out, m.fsckGarbage(ctx, p, repair)...)
		out = append(out, m.fsckStray(p)...)
	}
	for _, v := range append(m.List(), m.Snapshots()...) {
		out = append(out, m.fsckObject(ctx, v, repair)...)
	}
	return append(out, m.fsckGroups()...)
}

// fsckGarbage looks at what verbs left half done; one at work now is no garbage.
func (m *Manager) fsckGarbage(ctx context.Context, p *pool, repair bool) []Finding {
	var out []Finding
	for _, d := range []string{dirNew, dirTrash} {
		names, err := os.ReadDir(filepath.Join(p.cfg.Path, d))
		if err != nil {
			out = append(out, Finding{Pool: p.cfg.Name, Problem: err.Error()})
			continue
		}
		for _, n := range names {
			f := Finding{Pool: p.cfg.Name, Object: d + "/" + n.Name(), Problem: "left by an interrupted operation"}
			id, _, _ := strings.Cut(n.Name(), ".")
			release, err := m.locks.lock(ctx, id, "fsck")
			if err != nil {
				continue // being worked on
			}
			if _, err := os.Lstat(filepath.Join(p.cfg.Path, d, n.Name())); errors.Is(err, fs.ErrNotExist) {
				release()
				continue // was being worked on
			}
			if repair {
				if err := m.sweepOne(ctx, p, filepath.Join(p.cfg.Path, d, n.Name())); err != nil {
					f.Problem += ": " + err.Error()
				} else {
					f.Fixed = true
				}
			}
			release()
			out = append(out, f)
		}
	}
	return out
}

// fsckStray lists directories that are not in the index.
func (m *Manager) fsckStray(p *pool) []Finding {
	var out []Finding
	for _, d := range []string{dirVolumes, dirSnapshots} {
		names, err := os.ReadDir(filepath.Join(p.cfg.Path, d))
		if err != nil {
			return append(out, Finding{Pool: p.cfg.Name, Problem: err.Error()})
		}
		for _, n := range names {
			if m.peek(n.Name()) == nil {
				out = append(out, Finding{Pool: p.cfg.Name, Object: d + "/" + n.Name(), Problem: "appeared while the daemon ran; it is read at the next start"})
			}
		}
	}
	return out
}

// fsckObject compares one object's record, payload and devices.
func (m *Manager) fsckObject(ctx context.Context, v Volume, repair bool) []Finding {
	o := m.peek(v.ID)
	if o == nil {
		return nil
	}
	found := func(problem string) []Finding {
		return []Finding{{Pool: v.Pool, Object: v.ID, Problem: problem}}
	}
	if o.broken != nil {
		return found(o.broken.Error())
	}
	if o.pool.check() != nil {
		return nil // said of the pool
	}
	obj := m.object(o.pool, o.rec)
	if err := o.pool.be.Check(ctx, obj); err != nil {
		return found(err.Error())
	}
	disk, err := readRecord(o.pool.dir(o.rec.Kind, o.rec.ID))
	if err != nil {
		return found("the record on disk: " + err.Error())
	}
	if disk.Bytes != o.rec.Bytes || disk.Handle != o.rec.Handle || disk.Format != o.rec.Format {
		return found("the record on disk was changed behind the daemon's back")
	}
	return m.fsckDevices(ctx, o, repair)
}

// fsckDevices looks for loop devices of an object that nobody staged.
func (m *Manager) fsckDevices(ctx context.Context, o *object, repair bool) []Finding {
	release, err := m.locks.lock(ctx, o.rec.ID, "fsck")
	if err != nil {
		return nil
	}
	defer release()
	st, err := m.state.get(o.rec.ID)
	if err != nil || len(st.Staged) > 0 || o.pool.cfg.Backend != BackendFile {
		return nil
	}
	atts, err := o.pool.be.Attached(ctx, m.object(o.pool, o.rec))
	if err != nil || len(atts) == 0 {
		return nil
	}
	f := Finding{Pool: o.pool.cfg.Name, Object: o.rec.ID, Problem: fmt.Sprintf("attached to %s, but not staged", atts[0].Path)}
	if repair && !anyMounted(atts) {
		f.Fixed = o.pool.be.Detach(ctx, m.object(o.pool, o.rec)) == nil
	}
	return []Finding{f}
}

func anyMounted(atts []*backend.Attachment) bool {
	return slices.ContainsFunc(atts, func(a *backend.Attachment) bool {
		mounts, err := mount.MountsOf(a.Rdev)
		return err != nil || len(mounts) > 0
	})
}

// fsckGroups looks for groups that lack members.
func (m *Manager) fsckGroups() []Finding {
	var out []Finding
	for id, g := range m.groups() {
		for member, vol := range g.Members {
			if _, ok := g.states[member]; !ok {
				out = append(out, Finding{Object: id, Problem: fmt.Sprintf("the snapshot %s of volume %s is missing from the group", member, vol)})
			}
		}
	}
	return out
}
