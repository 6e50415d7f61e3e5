// SPDX-License-Identifier: Apache-2.0

package file

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// Allocated yields the image's written ranges, merged.
func (b *Backend) Allocated(ctx context.Context, obj backend.Object, offset int64, yield func(backend.Range) bool) error {
	f, err := os.Open(image(obj))
	if err != nil {
		return fmt.Errorf("open image of %s: %w", obj.ID, backend.ErrMissing)
	}
	defer func() { _ = f.Close() }()
	m := merger{from: offset, to: obj.Bytes, yield: yield}
	err = mount.Extents(f, offset, func(e mount.Extent) bool {
		if e.Unwritten {
			return ctx.Err() == nil
		}
		return m.add(e.Logical, e.Logical+e.Length) && ctx.Err() == nil
	})
	if err == nil {
		err = ctx.Err()
	}
	if err == nil {
		m.flush()
	}
	return err
}

// Blocks yields the written extents; those without an address are at -1.
func (b *Backend) Blocks(ctx context.Context, obj backend.Object, yield func(r backend.Range, shared bool) bool) error {
	f, err := os.Open(image(obj))
	if err != nil {
		return fmt.Errorf("open image of %s: %w", obj.ID, backend.ErrMissing)
	}
	defer func() { _ = f.Close() }()
	err = mount.Extents(f, 0, func(e mount.Extent) bool {
		switch {
		case e.Unwritten:
			return ctx.Err() == nil
		case e.Inline:
			e.Physical = -1
		}
		return yield(backend.Range{Offset: e.Physical, Length: e.Length}, e.Shared) && ctx.Err() == nil
	})
	return errors.Join(err, ctx.Err())
}

// Delta yields where target differs from base. With reflinks, two ranges that
// lie on the same blocks are equal and nothing is read; without, blocks that
// both hold are compared byte by byte.
func (b *Backend) Delta(ctx context.Context, base, target backend.Object, offset int64, yield func(backend.Range) bool) error {
	bf, err := os.Open(image(base))
	if err != nil {
		return fmt.Errorf("open image of %s: %w", base.ID, backend.ErrMissing)
	}
	defer func() { _ = bf.Close() }()
	tf, err := os.Open(image(target))
	if err != nil {
		return fmt.Errorf("open image of %s: %w", target.ID, backend.ErrMissing)
	}
	defer func() { _ = tf.Close() }()
	be, err := written(ctx, bf)
	if err != nil {
		return err
	}
	te, err := written(ctx, tf)
	if err != nil {
		return err
	}
	m := merger{from: offset, to: target.Bytes, yield: yield}
	w := deltaWalk{base: be, target: te, differ: func(from, to int64) (bool, error) {
		if b.features.Instant {
			return m.add(from, to), nil
		}
		return addDifferent(&m, bf, tf, from, to)
	}}
	if err := w.run(ctx, &m); err != nil {
		return err
	}
	m.flush()
	return nil
}

// written lists the extents of f that hold data.
func written(ctx context.Context, f *os.File) ([]mount.Extent, error) {
	var out []mount.Extent
	err := mount.Extents(f, 0, func(e mount.Extent) bool {
		if !e.Unwritten {
			out = append(out, e)
		}
		return ctx.Err() == nil
	})
	if err == nil {
		err = ctx.Err()
	}
	return out, err
}

// deltaWalk sweeps two sorted extent lists over the common address line.
type deltaWalk struct {
	base, target []mount.Extent
	// differ looks at a range that both hold, on different blocks, and says
	// whether to go on.
	differ func(from, to int64) (bool, error)
}

// compareChunk bounds one comparison where bytes have to be read.
const compareChunk = 1 << 20

func (w *deltaWalk) run(ctx context.Context, m *merger) error {
	pos := m.from - m.from%BlockSize
	for ctx.Err() == nil {
		w.base, w.target = skip(w.base, pos), skip(w.target, pos)
		if len(w.base) == 0 && len(w.target) == 0 {
			return nil
		}
		inB, endB, pb := at(w.base, pos)
		inT, endT, pt := at(w.target, pos)
		end := min(endB, endT)
		switch {
		case inB != inT:
			if !m.add(pos, end) {
				return nil
			}
		case inB && inT:
			if pb >= 0 && pb == pt {
				break // the same blocks
			}
			end = min(end, pos+compareChunk)
			if more, err := w.differ(pos, end); err != nil || !more {
				return err
			}
		}
		pos = end
	}
	return ctx.Err()
}

func skip(list []mount.Extent, pos int64) []mount.Extent {
	for len(list) > 0 && list[0].Logical+list[0].Length <= pos {
		list = list[1:]
	}
	return list
}

// at says whether pos lies in the list's first extent, where that state ends,
// and the physical address of pos (-1 when it has none).
func at(list []mount.Extent, pos int64) (inside bool, end, phys int64) {
	const endless = int64(1) << 62
	if len(list) == 0 {
		return false, endless, -1
	}
	e := list[0]
	if pos < e.Logical {
		return false, e.Logical, -1
	}
	if e.Inline {
		return true, e.Logical + e.Length, -1
	}
	return true, e.Logical + e.Length, e.Physical + pos - e.Logical
}

// addDifferent compares a range block by block.
func addDifferent(m *merger, a, b *os.File, from, to int64) (bool, error) {
	x, y := make([]byte, to-from), make([]byte, to-from)
	if _, err := a.ReadAt(x, from); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	if _, err := b.ReadAt(y, from); err != nil && !errors.Is(err, io.EOF) {
		return false, err
	}
	for i := 0; i < len(x); i += BlockSize {
		end := min(i+BlockSize, len(x))
		if !bytes.Equal(x[i:end], y[i:end]) && !m.add(from+int64(i), from+int64(end)) {
			return false, nil
		}
	}
	return true, nil
}

// merger joins touching ranges and clips them to [from, to).
type merger struct {
	from, to     int64
	start, end   int64
	open, closed bool
	yield        func(backend.Range) bool
}

func (m *merger) add(from, to int64) bool {
	from, to = max(from, m.from), min(to, m.to)
	if m.closed || from >= to {
		return !m.closed
	}
	if m.open && from <= m.end {
		m.end = max(m.end, to)
		return true
	}
	m.flush()
	m.start, m.end, m.open = from, to, true
	return !m.closed
}

func (m *merger) flush() {
	if m.open && !m.closed {
		m.closed = !m.yield(backend.Range{Offset: m.start, Length: m.end - m.start})
	}
	m.open = false
}
