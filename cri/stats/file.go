// SPDX-License-Identifier: Apache-2.0

package stats

import (
	"bytes"
	"errors"
	"math"

	"golang.org/x/sys/unix"
)

// noLimit is what a limit file without a limit reads as.
const noLimit = math.MaxUint64

// file is a kernel file that is read again and again from its beginning. Its
// descriptor stays open; an open descriptor does not keep a cgroup from being
// removed, it only reads as ENODEV afterwards.
type file struct {
	path string
	fd   int // 0: closed; the process's stdin is never one of ours
}

// read fills buf; nil when the file is not there (any more). A file that grew
// beyond buf is cut, which no reader here minds: its lines of interest are first.
func (f *file) read(buf []byte) []byte {
	for range 2 {
		if f.fd == 0 {
			fd, err := open(f.path)
			if err != nil {
				return nil
			}
			f.fd = fd
		}
		n, err := pread(f.fd, buf)
		if err == nil {
			return buf[:n]
		}
		f.close() // ENODEV: the cgroup is another one by now, or gone
	}
	return nil
}

// close gives the descriptor back.
func (f *file) close() {
	if f.fd != 0 {
		_ = unix.Close(f.fd)
		f.fd = 0
	}
}

// once reads a file that is not kept open.
func once(path string, buf []byte) []byte {
	fd, err := open(path)
	if err != nil {
		return nil
	}
	defer unix.Close(fd) //nolint:errcheck // read-only
	n, err := pread(fd, buf)
	if err != nil {
		return nil
	}
	return buf[:n]
}

func open(path string) (int, error) {
	for {
		fd, err := unix.Open(path, unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if !errors.Is(err, unix.EINTR) {
			return fd, err
		}
	}
}

func pread(fd int, buf []byte) (int, error) {
	for {
		n, err := unix.Pread(fd, buf, 0)
		if !errors.Is(err, unix.EINTR) {
			return n, err
		}
	}
}

// number parses the leading decimal number of b; "max" is noLimit, anything
// else is 0.
func number(b []byte) uint64 {
	if bytes.HasPrefix(b, []byte("max")) {
		return noLimit
	}
	var n uint64
	for _, c := range b {
		if c < '0' || c > '9' {
			break
		}
		n = n*10 + uint64(c-'0')
	}
	return n
}

// lines calls fn for each line of b, without its end.
func lines(b []byte, fn func(line []byte)) {
	for len(b) > 0 {
		line, rest, _ := bytes.Cut(b, []byte{'\n'})
		fn(line)
		b = rest
	}
}

// pairs calls fn for each "key value" line.
func pairs(b []byte, fn func(key []byte, value uint64)) {
	lines(b, func(line []byte) {
		if key, value, ok := bytes.Cut(line, []byte{' '}); ok {
			fn(key, number(value))
		}
	})
}

// field returns the next space-separated word of line and the rest.
func field(line []byte) (word, rest []byte) {
	line = bytes.TrimLeft(line, " \t")
	if i := bytes.IndexAny(line, " \t"); i >= 0 {
		return line[:i], line[i+1:]
	}
	return line, nil
}
