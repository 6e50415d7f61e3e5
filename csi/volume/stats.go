// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// statTimeout bounds a statfs on a backing store that does not answer.
const statTimeout = 5 * time.Second

// Stats is what a published volume holds.
type Stats struct {
	Total, Used, Available int64
	// Inodes are 0 when the file system does not count them.
	Inodes, InodesUsed, InodesFree int64
	Block                          bool
}

// Stats measures the volume at a path where it is published or staged.
func (m *Manager) Stats(ctx context.Context, id, path string) (Stats, error) {
	o, err := m.find(KindVolume, id)
	if err != nil {
		return Stats{}, err
	}
	st, err := m.state.get(id)
	if err != nil {
		return Stats{}, err
	}
	at, err := m.located(ctx, o, st, path)
	if err != nil {
		return Stats{}, err
	}
	if at.Device {
		return Stats{Total: o.rec.Bytes, Block: true}, nil
	}
	if ms, ok := o.pool.be.(backend.Measurer); ok {
		used, limit, err := ms.Measure(ctx, m.object(o.pool, o.rec))
		if err != nil {
			return Stats{}, m.spaceError(err)
		}
		return Stats{Total: limit, Used: used, Available: max(limit-used, 0)}, nil
	}
	s, err := mount.StatTimeout(path, statTimeout)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return Stats{}, fmt.Errorf("%w: %w", ErrUnavailable, err)
	}
	if err != nil {
		return Stats{}, err
	}
	out := Stats{Total: s.Total, Used: s.Total - s.Free, Available: s.Available}
	if s.Inodes > 0 {
		out.Inodes, out.InodesFree, out.InodesUsed = s.Inodes, s.InodesFree, s.Inodes-s.InodesFree
	}
	return out, nil
}

// follow is mount.At, through a symbolic link.
func follow(path string) (string, mount.Point, error) {
	at, err := mount.At(path)
	if err != nil || !at.Link {
		return path, at, err
	}
	to, err := filepath.EvalSymlinks(path)
	if err != nil {
		return path, mount.Point{}, nil //nolint:nilerr // a link to nowhere is nothing
	}
	at, err = mount.At(to)
	return to, at, err
}

// located says what stands at path, if it is this volume. For a raw block volume
// the kubelet names a link or bind of its own to the device.
func (m *Manager) located(ctx context.Context, o *object, st *attachState, path string) (mount.Point, error) {
	notThere := fmt.Errorf("volume %s at %q: %w", o.rec.ID, path, ErrNotFound)
	if !filepath.IsAbs(path) {
		return mount.Point{}, notThere
	}
	path, at, err := follow(path)
	if err != nil {
		return at, err
	}
	if at.Device {
		ours, err := m.ours(ctx, o, path, mount.Point{Device: true, Rdev: at.Rdev})
		if err == nil && !ours {
			err = notThere
		}
		return at, err
	}
	if a, ok := st.Staged[path]; ok && a.Block && m.isStaged(ctx, o, path, a) {
		return mount.Point{Exists: true, Device: true}, nil
	}
	if !at.Exists || !at.Mounted {
		return at, notThere
	}
	ours, err := m.ours(ctx, o, path, at)
	if err == nil && !ours {
		err = notThere
	}
	return at, err
}
