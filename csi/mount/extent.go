// SPDX-License-Identifier: Apache-2.0

package mount

import (
	"errors"
	"fmt"
	"io"
	"os"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Extent is one mapped piece of a file. Physical is meaningless when Inline.
type Extent struct {
	Logical, Physical, Length int64
	Unwritten                 bool // allocated, reads as zeroes
	Shared                    bool // also referenced by another file: a write copies it
	Inline                    bool // no block address of its own (inline, delayed, encoded)
}

const (
	fiemapSync      = 0x1
	fiemapLast      = 0x1
	fiemapUnknown   = 0x2
	fiemapDelalloc  = 0x4
	fiemapEncoded   = 0x8
	fiemapNotAlign  = 0x100
	fiemapInline    = 0x200
	fiemapUnwritten = 0x800
	fiemapShared    = 0x2000
	fiemapBatch     = 512
)

type fiemapHead struct {
	start, length                uint64
	flags, mapped, count, unused uint32
}

type fiemapExtent struct {
	logical, physical, length uint64
	_                         [2]uint64
	flags                     uint32
	_                         [3]uint32
}

type fiemapRequest struct {
	head    fiemapHead
	extents [fiemapBatch]fiemapExtent
}

// Extents calls yield for each mapped extent of f from offset on, in ascending
// order, until yield says false. It writes out delayed blocks first.
func Extents(f *os.File, offset int64, yield func(Extent) bool) error {
	var req fiemapRequest
	start := uint64(offset)
	for {
		req.head = fiemapHead{start: start, length: ^uint64(0) - start, flags: fiemapSync, count: fiemapBatch}
		if err := ioctlPtr(f.Fd(), fsIocFiemap, unsafe.Pointer(&req)); err != nil {
			return fmt.Errorf("extents of %s: %w", f.Name(), err)
		}
		if req.head.mapped == 0 {
			return nil
		}
		for i := range req.head.mapped {
			e := &req.extents[i]
			x := Extent{
				Logical: int64(e.logical), Physical: int64(e.physical), Length: int64(e.length),
				Unwritten: e.flags&fiemapUnwritten != 0,
				Shared:    e.flags&fiemapShared != 0,
				Inline:    e.flags&(fiemapInline|fiemapDelalloc|fiemapUnknown|fiemapEncoded|fiemapNotAlign) != 0,
			}
			if !yield(x) || e.flags&fiemapLast != 0 {
				return nil
			}
			start = e.logical + e.length
		}
	}
}

// Usage says how much of a file is really its own.
type Usage struct {
	Allocated int64 // bytes of mapped extents
	Shared    int64 // of these, bytes that a write would have to copy
}

// FileUsage adds up the extents of the file at path.
func FileUsage(path string) (Usage, error) {
	f, err := os.Open(path)
	if err != nil {
		return Usage{}, err
	}
	defer func() { _ = f.Close() }()
	var u Usage
	err = Extents(f, 0, func(e Extent) bool {
		u.Allocated += e.Length
		if e.Shared {
			u.Shared += e.Length
		}
		return true
	})
	return u, err
}

// Clone makes dst share all blocks of src (FICLONE): atomic, and immediate on
// XFS and btrfs; ErrNotSupported elsewhere.
func Clone(dst, src *os.File) error {
	err := unix.IoctlFileClone(int(dst.Fd()), int(src.Fd()))
	switch {
	case err == nil:
		return nil
	case errors.Is(err, unix.EOPNOTSUPP), errors.Is(err, unix.EINVAL), errors.Is(err, unix.ENOTTY), errors.Is(err, unix.EXDEV):
		return fmt.Errorf("clone %s: %w (%w)", src.Name(), ErrNotSupported, err)
	default:
		return fmt.Errorf("clone %s: %w", src.Name(), err)
	}
}

// CopySparse copies the data of src to dst and leaves holes and unwritten blocks
// as holes. progress (may be nil) is called with the bytes that are done; its
// error stops the copy.
func CopySparse(dst, src *os.File, progress func(done int64) error) error {
	st, err := src.Stat()
	if err != nil {
		return err
	}
	if err := dst.Truncate(st.Size()); err != nil {
		return fmt.Errorf("size %s: %w", dst.Name(), err)
	}
	return CopyData(dst, src, progress)
}

// CopyData is CopySparse into a file that keeps its own size.
func CopyData(dst, src *os.File, progress func(done int64) error) error {
	st, err := src.Stat()
	if err != nil {
		return err
	}
	data, err := dataSpans(src, st.Size())
	if err != nil {
		return err
	}
	for _, s := range data {
		if err := copyRange(dst, src, s, progress); err != nil {
			return fmt.Errorf("copy %s: %w", src.Name(), err)
		}
	}
	return nil
}

// dataSpans lists where f holds data, all of it before the first byte is read:
// read-ahead puts pages over unwritten blocks, and SEEK_DATA takes those for data.
func dataSpans(f *os.File, size int64) ([]span, error) {
	var out []span
	err := Extents(f, 0, func(e Extent) bool {
		end := min(e.Logical+e.Length, size)
		switch n := len(out); {
		case e.Unwritten || e.Logical >= end:
		case n > 0 && out[n-1].to == e.Logical:
			out[n-1].to = end
		default:
			out = append(out, span{e.Logical, end})
		}
		return true
	})
	if !errors.Is(err, unix.EOPNOTSUPP) && !errors.Is(err, unix.ENOTTY) {
		return out, err
	}
	return seekSpans(f, size)
}

// seekSpans is dataSpans for file systems without extents to show.
func seekSpans(f *os.File, size int64) ([]span, error) {
	var out []span
	for off := int64(0); off < size; {
		start, err := unix.Seek(int(f.Fd()), off, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("find data in %s: %w", f.Name(), err)
		}
		end, err := unix.Seek(int(f.Fd()), start, unix.SEEK_HOLE)
		if err != nil {
			return nil, fmt.Errorf("find hole in %s: %w", f.Name(), err)
		}
		out = append(out, span{start, end})
		off = end
	}
	return out, nil
}

type span struct{ from, to int64 }

func copyRange(dst, src *os.File, s span, progress func(int64) error) error {
	const chunk = 8 << 20
	for s.from < s.to {
		in, out := s.from, s.from
		n, err := unix.CopyFileRange(int(src.Fd()), &in, int(dst.Fd()), &out, int(min(chunk, s.to-s.from)), 0)
		if errors.Is(err, unix.EXDEV) || errors.Is(err, unix.EOPNOTSUPP) || errors.Is(err, unix.ENOSYS) {
			var m int64
			m, err = io.Copy(io.NewOffsetWriter(dst, s.from), io.NewSectionReader(src, s.from, min(chunk, s.to-s.from)))
			n = int(m)
		}
		if err != nil {
			return err
		}
		if n == 0 {
			return io.ErrUnexpectedEOF
		}
		s.from += int64(n)
		if progress != nil {
			if err := progress(s.from); err != nil {
				return err
			}
		}
	}
	return nil
}

// Reserve allocates every block of the first size bytes of f and makes it that
// long, so that writes inside it never find the pool full.
func Reserve(f *os.File, size int64) error {
	for {
		err := unix.Fallocate(int(f.Fd()), 0, 0, size)
		if err == nil {
			return nil
		}
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if errors.Is(err, unix.EOPNOTSUPP) {
			return fmt.Errorf("reserve %d bytes in %s: %w", size, f.Name(), ErrNotSupported)
		}
		return fmt.Errorf("reserve %d bytes in %s: %w", size, f.Name(), err)
	}
}

// SyncDir makes the names in a directory durable.
func SyncDir(path string) error {
	d, err := os.Open(path)
	if err != nil {
		return err
	}
	defer func() { _ = d.Close() }()
	if err := d.Sync(); err != nil {
		return fmt.Errorf("sync %s: %w", path, err)
	}
	return nil
}
