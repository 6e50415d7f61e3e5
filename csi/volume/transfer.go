// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// Progress hears how far a transfer is, in bytes; its error stops it.
type Progress func(done, total int64) error

// Export writes a volume's or snapshot's bytes to a new file at path, sparse. A
// volume in use is exported from a snapshot made for it, where the pool shares
// blocks, and refused elsewhere.
func (m *Manager) Export(ctx context.Context, id, path string, progress Progress) (retErr error) {
	o := m.peek(id)
	if o == nil {
		_, err := m.find(KindVolume, id)
		return err
	}
	if o.broken != nil {
		return o.broken
	}
	t, ok := o.pool.be.(backend.Porter)
	if !ok {
		return fmt.Errorf("%w: volumes of backend %s cannot be exported", ErrInvalid, o.pool.cfg.Backend)
	}
	if err := o.pool.check(); err != nil {
		return err
	}
	if o.rec.Kind == KindVolume && errors.Is(m.unused(id), ErrInUse) {
		return m.exportLive(ctx, o, path, progress)
	}
	release, err := m.locks.lock(ctx, id, "export")
	if err != nil {
		return err
	}
	defer release()
	dst, err := os.OpenFile(path, os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return fmt.Errorf("%w: export to %s: %w", ErrInvalid, path, err)
	}
	defer func() {
		if err := dst.Close(); err != nil && retErr == nil {
			retErr = err
		}
		if retErr != nil {
			_ = os.Remove(path)
		}
	}()
	return m.spaceError(t.Export(ctx, m.object(o.pool, o.rec), dst, steps64(progress, o.rec.Bytes)))
}

func steps64(p Progress, total int64) func(int64) error {
	if p == nil {
		return nil
	}
	return func(done int64) error { return p(done, total) }
}

func (m *Manager) exportLive(ctx context.Context, o *object, path string, progress Progress) error {
	f, err := o.pool.ready()
	if err != nil {
		return err
	}
	if !f.Instant {
		return fmt.Errorf("%w: volume %s is in use and its pool has no reflinks: export a snapshot of it", ErrInUse, o.rec.ID)
	}
	snap, err := m.Snapshot(ctx, SnapshotRequest{Name: "export-" + newHandle(), Volume: o.rec.ID})
	if err != nil {
		return err
	}
	err = m.Export(ctx, snap.ID, path, progress)
	return errors.Join(err, m.DeleteSnapshot(context.WithoutCancel(ctx), snap.ID))
}

// Import makes a volume from the raw image at path. What the image carries is
// looked at, never guessed: a file system we know is taken as one, anything else
// makes a raw block volume.
func (m *Manager) Import(ctx context.Context, req CreateRequest, path string, progress Progress) (Volume, error) {
	src, err := os.Open(path)
	if err != nil {
		return Volume{}, fmt.Errorf("%w: import: %w", ErrInvalid, err)
	}
	defer func() { _ = src.Close() }()
	st, err := src.Stat()
	if err != nil || !st.Mode().IsRegular() || st.Size() == 0 {
		return Volume{}, fmt.Errorf("%w: import: %s is not a file with content", ErrInvalid, path)
	}
	format, err := mount.Detect(path)
	if err != nil {
		return Volume{}, err
	}
	req.Required = max(req.Required, st.Size())
	if len(req.Capabilities) == 0 {
		req.Capabilities = []Capability{{Block: !knownFS(format), Mode: SingleWriter}}
	}
	pl, err := m.planImport(req, format)
	if err != nil {
		return Volume{}, err
	}
	t, ok := pl.pool.be.(backend.Porter)
	if !ok {
		return Volume{}, fmt.Errorf("%w: backend %s cannot import", ErrInvalid, pl.pool.cfg.Backend)
	}
	release, err := m.locks.lock(ctx, pl.rec.ID, "import volume")
	if err != nil {
		return Volume{}, err
	}
	defer release()
	if m.peek(pl.rec.ID) != nil {
		return Volume{}, fmt.Errorf("%w: volume %q", ErrExists, req.Name)
	}
	pl.rec.Resize = pl.rec.Format == FormatDone && pl.rec.Bytes > st.Size()
	pl.content = func(ctx context.Context, obj backend.Object) error {
		return t.Import(ctx, obj, src, steps64(progress, st.Size()))
	}
	if err := m.build(ctx, pl, "import volume"); err != nil {
		return Volume{}, err
	}
	m.log.InfoContext(ctx, "volume imported", "volume", pl.rec.ID, "from", filepath.Base(path))
	m.changed(pl.pool)
	return view(m.peek(pl.rec.ID)), nil
}

func (m *Manager) planImport(req CreateRequest, format string) (*plan, error) {
	pl, err := m.planCreate(req)
	if err != nil {
		return nil, err
	}
	if err := m.planSource(pl, req); err != nil {
		return nil, err
	}
	pl.rec.Format = FormatRaw
	if !pl.rec.Block {
		if !knownFS(format) {
			return nil, fmt.Errorf("%w: the image shows %q, no file system to mount", ErrInvalid, format)
		}
		pl.rec.Format, pl.rec.FSType = FormatDone, format
	}
	return pl, nil
}
