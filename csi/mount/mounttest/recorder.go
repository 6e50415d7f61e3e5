// SPDX-License-Identifier: Apache-2.0

package mounttest

import (
	"context"
	"errors"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"syscall"
	"testing"

	"github.com/hanwen/go-fuse/v2/fs"
	"github.com/hanwen/go-fuse/v2/fuse"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/mount"
)

// sector is what a disk writes whole or not at all.
const sector = 4096

// Event is one thing that a recorded disk was asked, in the order in which it
// answered.
type Event struct {
	// Offset and Data of a write; Zeroes instead of Data for a discard.
	Offset int64
	Data   []byte
	Zeroes int64
	// Flushed is set for a flush: how many of the events before it had been
	// answered when it was asked, and are on the disk for good.
	Flushed int
}

// Recorder is a disk that remembers every write and every flush, so that what a
// power cut could have left of it can be made again for any moment. It is a file
// in a FUSE mount: put a loop device with direct I/O on Path.
type Recorder struct {
	Path string

	tb   testing.TB
	base string // the disk as it was at first
	live *os.File
	size int64

	mu     sync.Mutex // guards events
	events []Event
}

// Record serves the image, which must be on a file system with reflinks, as a disk.
func Record(tb testing.TB, image string) *Recorder {
	tb.Helper()
	r := &Recorder{tb: tb, base: image + ".base", Path: filepath.Join(tb.TempDir(), "disk")}
	clone(tb, r.base, image)
	live, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		tb.Fatal(err)
	}
	st, err := live.Stat()
	if err != nil {
		tb.Fatal(err)
	}
	r.live, r.size = live, st.Size()
	root := &fs.Inode{}
	server, err := fs.Mount(filepath.Dir(r.Path), root, &fs.Options{
		OnAdd: func(ctx context.Context) {
			root.AddChild("disk", root.NewPersistentInode(ctx, &recorded{r: r}, fs.StableAttr{Mode: syscall.S_IFREG}), false)
		},
		MountOptions: fuse.MountOptions{DirectMount: true, DirectMountStrict: true, FsName: "recorder", MaxWrite: 1 << 20, DisableXAttrs: true},
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		if err := server.Unmount(); err != nil {
			tb.Errorf("the test left its disk busy: %v", err)
			_ = unix.Unmount(filepath.Dir(r.Path), unix.MNT_DETACH)
		}
		server.Wait()
		_ = live.Close()
	})
	return r
}

// Now is how many events there have been.
func (r *Recorder) Now() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return len(r.events)
}

// Flushes lists the events that are flushes.
func (r *Recorder) Flushes() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []int
	for i, e := range r.events {
		if e.Flushed > 0 {
			out = append(out, i)
		}
	}
	return out
}

// Cut makes image what the disk may hold when the power goes after the first n events:
// all that was flushed by then, and of the rest each sector with the chance given.
func (r *Recorder) Cut(image string, n int, chance float64, dice *rand.Rand) {
	r.tb.Helper()
	r.mu.Lock()
	events := slices.Clone(r.events[:n])
	r.mu.Unlock()
	clone(r.tb, image, r.base)
	f, err := os.OpenFile(image, os.O_RDWR, 0)
	if err != nil {
		r.tb.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	safe := 0
	for _, e := range events {
		safe = max(safe, e.Flushed)
	}
	for i, e := range events {
		length := e.Zeroes + int64(len(e.Data))
		for at := int64(0); at < length; at += sector {
			if i >= safe && dice.Float64() >= chance {
				continue
			}
			if err := e.apply(f, at, min(sector, length-at)); err != nil {
				r.tb.Fatal(err)
			}
		}
	}
}

func (e Event) apply(f *os.File, from, n int64) error {
	data := make([]byte, n)
	if e.Zeroes == 0 {
		data = e.Data[from : from+n]
	}
	_, err := f.WriteAt(data, e.Offset+from)
	return err
}

func clone(tb testing.TB, to, from string) {
	tb.Helper()
	src, err := os.Open(from)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	dst, err := os.Create(to)
	if err != nil {
		tb.Fatal(err)
	}
	defer func() { _ = dst.Close() }()
	if err := mount.Clone(dst, src); err != nil {
		tb.Fatal(err)
	}
}

// recorded is the disk's file.
type recorded struct {
	fs.Inode
	r *Recorder
}

var (
	_ fs.NodeGetattrer = (*recorded)(nil)
	_ fs.NodeOpener    = (*recorded)(nil)
	_ fs.NodeReader    = (*recorded)(nil)
	_ fs.NodeWriter    = (*recorded)(nil)
	_ fs.NodeFsyncer   = (*recorded)(nil)
	_ fs.NodeAllocater = (*recorded)(nil)
)

func (n *recorded) Getattr(_ context.Context, _ fs.FileHandle, out *fuse.AttrOut) syscall.Errno {
	out.Mode, out.Size, out.Blksize = 0o600, uint64(n.r.size), sector
	return 0
}

func (n *recorded) Open(context.Context, uint32) (fs.FileHandle, uint32, syscall.Errno) {
	return nil, fuse.FOPEN_DIRECT_IO, 0 // each write of the device's is one or more of ours, at once
}

func (n *recorded) Read(_ context.Context, _ fs.FileHandle, dest []byte, off int64) (fuse.ReadResult, syscall.Errno) {
	got, err := n.r.live.ReadAt(dest, off)
	if err != nil && !errors.Is(err, io.EOF) {
		return nil, syscall.EIO
	}
	return fuse.ReadResultData(dest[:got]), 0
}

func (n *recorded) Write(_ context.Context, _ fs.FileHandle, data []byte, off int64) (uint32, syscall.Errno) {
	if _, err := n.r.live.WriteAt(data, off); err != nil {
		return 0, syscall.EIO
	}
	n.r.add(Event{Offset: off, Data: slices.Clone(data)})
	return uint32(len(data)), 0
}

// Allocate is a discard, or a write of zeroes.
func (n *recorded) Allocate(_ context.Context, _ fs.FileHandle, off, size uint64, mode uint32) syscall.Errno {
	if mode&(unix.FALLOC_FL_PUNCH_HOLE|unix.FALLOC_FL_ZERO_RANGE) == 0 {
		return syscall.EOPNOTSUPP
	}
	if err := unix.Fallocate(int(n.r.live.Fd()), mode, int64(off), int64(size)); err != nil {
		return fs.ToErrno(err)
	}
	n.r.add(Event{Offset: int64(off), Zeroes: int64(size)})
	return 0
}

// Fsync is a flush: what was answered before it was asked is safe. Nothing else is
// to be done, for nobody turns this machine off.
func (n *recorded) Fsync(context.Context, fs.FileHandle, uint32) syscall.Errno {
	n.r.add(Event{Flushed: n.r.Now()})
	return 0
}

func (r *Recorder) add(e Event) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.events = append(r.events, e)
}
