// SPDX-License-Identifier: Apache-2.0

// Package logs writes the CRI log file of one container: a line of output
// becomes "<RFC 3339 time with nanoseconds> <stdout|stderr> <F|P> <text>".
//
// It promises that a line is in exactly one file whatever Reopen does
// meanwhile, that what was read is written without waiting for more when the
// source falls silent, and that a write that fails (a full disk) loses text
// but never blocks the container. It uses the standard library only, because
// the pod's shim links it.
package logs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// ErrClosed is the fate of writes and of Reopen after Close.
var ErrClosed = errors.New("log is closed")

// ErrNotRegular says that the log path names something other than a file: a
// link, a device or a FIFO that somebody put there.
var ErrNotRegular = errors.New("not a regular file")

// DefaultMaxLine is the longest text of one record, in bytes; longer lines are
// cut into partial records. It is containerd's value, which log collectors know.
const DefaultMaxLine = 16 << 10

// DefaultIdle is how long an unfinished line waits for its end.
const DefaultIdle = 200 * time.Millisecond

// Options of a Log; the zero value is what the kubelet expects.
type Options struct {
	// MaxSize limits the file in bytes between two rotations by the kubelet,
	// which looks only every ten seconds. A full file is set aside once as
	// "<path>.<time>", the name that the kubelet's own rotation uses and
	// collects; setting aside again removes the one before, so a container
	// occupies at most twice MaxSize. Zero means no limit.
	MaxSize int64
	// MaxLine is the longest text of a record in bytes; zero means DefaultMaxLine.
	MaxLine int
	// Idle is how long an unfinished line is held back, when the reader has
	// SetReadDeadline (pipes and FIFOs as *os.File). Zero means DefaultIdle,
	// negative for ever.
	Idle time.Duration
	// Now is the clock; nil means time.Now.
	Now func() time.Time
}

// Stats are counters of a Log since Open.
type Stats struct {
	// Bytes written to the file, with the records' heads.
	Bytes uint64
	// Dropped bytes could not be written.
	Dropped uint64
	// Rotations made because of MaxSize.
	Rotations uint64
}

// Log is an open log file. Its methods may be called concurrently.
type Log struct {
	path string
	opts Options

	pumps sync.WaitGroup

	bytes, dropped, rotations atomic.Uint64

	// mu guards what follows; it is held during write(2), so that Reopen
	// returns only when no record can reach the old file any more.
	mu     sync.Mutex
	f      *os.File // nil: output is discarded (no path) or closed
	size   int64
	aside  string // the file set aside last because of MaxSize
	closed bool
}

// Open opens or creates the file at path for appending. An empty path discards
// all output, which is what a CRI container without log_path asks for.
func Open(path string, opts Options) (*Log, error) {
	if opts.MaxLine <= 0 {
		opts.MaxLine = DefaultMaxLine
	}
	if opts.Idle == 0 {
		opts.Idle = DefaultIdle
	}
	if opts.Now == nil {
		opts.Now = time.Now
	}
	l := &Log{path: path, opts: opts}
	if path == "" {
		return l, nil
	}
	f, size, err := openFile(path)
	if err != nil {
		return nil, err
	}
	l.f, l.size = f, size
	return l, nil
}

// openFile never follows a link in the last component: a container that sees
// the log directory must not choose which file of the host grows.
// O_NONBLOCK keeps open from waiting on a FIFO; it means nothing for a file.
func openFile(path string) (*os.File, int64, error) {
	const flags = os.O_WRONLY | os.O_APPEND | os.O_CREATE | syscall.O_NOFOLLOW | syscall.O_NONBLOCK
	f, err := os.OpenFile(path, flags, 0o640)
	if errors.Is(err, syscall.ELOOP) || errors.Is(err, syscall.ENXIO) {
		return nil, 0, fmt.Errorf("open log %s: %w", path, ErrNotRegular)
	}
	if err != nil {
		return nil, 0, fmt.Errorf("open log: %w", err)
	}
	st, err := f.Stat()
	if err == nil && !st.Mode().IsRegular() {
		err = ErrNotRegular
	}
	if err != nil {
		return nil, 0, errors.Join(fmt.Errorf("open log %s: %w", path, err), f.Close())
	}
	return f, st.Size(), nil
}

// Path returns the file's path, empty when output is discarded.
func (l *Log) Path() string { return l.path }

// Stats returns the counters.
func (l *Log) Stats() Stats {
	return Stats{Bytes: l.bytes.Load(), Dropped: l.dropped.Load(), Rotations: l.rotations.Load()}
}

// Reopen opens the path anew after somebody renamed the file. Records written
// before it returns may be in either file, later ones only in the new one. On
// an error the old file stays in use.
func (l *Log) Reopen() error {
	if l.path == "" {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return fmt.Errorf("reopen log %s: %w", l.path, ErrClosed)
	}
	l.aside = ""
	return l.swap()
}

// swap replaces the open file by the one that path names now; mu is held.
func (l *Log) swap() error {
	f, size, err := openFile(l.path)
	if err != nil {
		return err
	}
	old := l.f
	l.f, l.size = f, size
	if err := old.Close(); err != nil {
		return fmt.Errorf("close rotated log: %w", err)
	}
	return nil
}

// Drain waits until every Pump has seen the end of its source, or ctx ends.
func (l *Log) Drain(ctx context.Context) error {
	done := make(chan struct{})
	go func() {
		l.pumps.Wait()
		close(done)
	}()
	select {
	case <-done:
		return nil
	case <-ctx.Done():
		return fmt.Errorf("drain log %s: %w", l.path, ctx.Err())
	}
}

// Close closes the file at once; what pumps read afterwards is discarded, so
// that their sources still empty. Call Drain first to lose nothing. Closing
// twice is fine.
func (l *Log) Close() error {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.closed {
		return nil
	}
	l.closed = true
	if l.f == nil {
		return nil
	}
	err := l.f.Close()
	l.f = nil
	if err != nil {
		return fmt.Errorf("close log: %w", err)
	}
	return nil
}

// write appends whole records with one write(2) and takes back the beginning
// of a record that did not fit on the disk.
func (l *Log) write(records []byte) error {
	if len(records) == 0 {
		return nil
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.f == nil {
		if l.closed {
			return ErrClosed
		}
		return nil
	}
	if l.opts.MaxSize > 0 && l.size > 0 && l.size+int64(len(records)) > l.opts.MaxSize {
		l.setAside()
	}
	n, err := l.f.Write(records)
	if err != nil {
		whole := bytes.LastIndexByte(records[:n], '\n') + 1
		if whole != n {
			err = errors.Join(err, l.f.Truncate(l.size+int64(whole)))
		}
		n = whole
		l.dropped.Add(uint64(len(records) - n))
	}
	l.size += int64(n)
	l.bytes.Add(uint64(n))
	return err
}

// setAside makes room when the file reached MaxSize; mu is held. When the
// directory does not allow it, the file is cut instead: the limit holds.
func (l *Log) setAside() {
	l.rotations.Add(1)
	name := l.path + "." + l.opts.Now().Format("20060102-150405")
	if l.aside != "" && l.aside != name {
		_ = os.Remove(l.aside) // absent when the kubelet collected it
	}
	if os.Rename(l.path, name) == nil {
		l.aside = name
		if l.swap() == nil {
			return
		}
	}
	if l.f.Truncate(0) == nil {
		l.size = 0
	}
}
