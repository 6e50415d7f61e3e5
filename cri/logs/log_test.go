// SPDX-License-Identifier: Apache-2.0

package logs_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"go.uber.org/goleak"

	"github.com/nodeagent/nodeagent/cri/logs"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// clock is a fixed time in a zone with an offset.
func clock() time.Time {
	return time.Date(2026, 11, 23, 19, 0, 0, 42, time.FixedZone("x", 3600))
}

const stamp = "2026-11-23T19:00:00.000000042+01:00"

func open(t *testing.T, o logs.Options) (*logs.Log, string) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "0.log")
	l, err := logs.Open(path, o)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = l.Close() })
	return l, path
}

func read(t *testing.T, path string) string {
	t.Helper()
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return string(b)
}

// chunks gives its parts one Read each.
type chunks []string

func (c *chunks) Read(p []byte) (int, error) {
	if len(*c) == 0 {
		return 0, io.EOF
	}
	n := copy(p, (*c)[0])
	if (*c)[0] = (*c)[0][n:]; (*c)[0] == "" {
		*c = (*c)[1:]
	}
	return n, nil
}

func TestRecords(t *testing.T) {
	long := strings.Repeat("x", 16)
	for name, c := range map[string]struct {
		in   chunks
		want []string
	}{
		"nothing":              {nil, nil},
		"one line":             {chunks{"hello\n"}, []string{"F hello"}},
		"two lines in one":     {chunks{"a\nb\n"}, []string{"F a", "F b"}},
		"one line in parts":    {chunks{"he", "ll", "o\n"}, []string{"F hello"}},
		"empty lines":          {chunks{"\n\n"}, []string{"F ", "F "}},
		"no end":               {chunks{"a\nprompt"}, []string{"F a", "P prompt"}},
		"terminal":             {chunks{"a\r\n", "\r\n"}, []string{"F a", "F "}},
		"return inside":        {chunks{"a\rb\n"}, []string{"F a\rb"}},
		"exactly the limit":    {chunks{long + "\n"}, []string{"P " + long, "F "}},
		"beyond the limit":     {chunks{long + "yz\n"}, []string{"P " + long, "F yz"}},
		"return at the limit":  {chunks{long[1:] + "\r\n"}, []string{"P " + long[1:], "F "}},
		"far beyond, no end":   {chunks{long + long + "z"}, []string{"P " + long, "P " + long, "P z"}},
		"zero bytes are bytes": {chunks{"a\x00b\n"}, []string{"F a\x00b"}},
	} {
		t.Run(name, func(t *testing.T) {
			l, path := open(t, logs.Options{MaxLine: 16, Now: clock})
			if err := l.Pump(logs.Stderr, &c.in, nil); err != nil {
				t.Fatal(err)
			}
			var want string
			for _, w := range c.want {
				want += stamp + " stderr " + w + "\n"
			}
			if got := read(t, path); got != want {
				t.Errorf("got  %q\nwant %q", got, want)
			}
		})
	}
}

func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	target := filepath.Join(dir, "target")
	link, fifo := filepath.Join(dir, "link"), filepath.Join(dir, "fifo")
	if err := errors.Join(os.WriteFile(target, nil, 0o600), os.Symlink(target, link), syscall.Mkfifo(fifo, 0o600)); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{link, fifo, dir, "/dev/null", filepath.Join(dir, "none", "0.log")} {
		if l, err := logs.Open(path, logs.Options{}); err == nil {
			t.Errorf("%s: opened", path)
			_ = l.Close()
		}
	}
	if _, err := logs.Open(link, logs.Options{}); !errors.Is(err, logs.ErrNotRegular) {
		t.Errorf("link: %v", err)
	}
	st, err := os.Stat(target)
	if err != nil || st.Size() != 0 {
		t.Error("the link's target was touched")
	}
}

func TestModeAndAppend(t *testing.T) {
	l, path := open(t, logs.Options{Now: clock})
	st, err := os.Stat(path)
	if err != nil || st.Mode().Perm()&^0o640 != 0 {
		t.Fatalf("%v, %v", st.Mode(), err)
	}
	if err := l.Pump(logs.Stdout, strings.NewReader("a\n"), nil); err != nil {
		t.Fatal(err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	again, err := logs.Open(path, logs.Options{Now: clock})
	if err != nil {
		t.Fatal(err)
	}
	if err := again.Pump(logs.Stdout, strings.NewReader("b\n"), nil); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(again.Close(), again.Close()); err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(read(t, path), "\n"); got != 2 {
		t.Errorf("%d lines", got)
	}
	if err := again.Reopen(); !errors.Is(err, logs.ErrClosed) {
		t.Errorf("reopen after close: %v", err)
	}
	if err := again.Pump(logs.Stdout, strings.NewReader("lost\n"), nil); err != nil {
		t.Errorf("pump after close must only drain: %v", err)
	}
}

func TestDiscard(t *testing.T) {
	l, err := logs.Open("", logs.Options{})
	if err != nil {
		t.Fatal(err)
	}
	var tee bytes.Buffer
	if err := errors.Join(l.Pump(logs.Stdout, strings.NewReader("x\n"), &tee), l.Reopen(), l.Close()); err != nil {
		t.Fatal(err)
	}
	if tee.String() != "x\n" {
		t.Errorf("tee %q", tee.String())
	}
}

// TestReopenRace rotates as the kubelet does while two streams write: every
// line is whole, in one file, in order, and none is missing.
func TestReopenRace(t *testing.T) {
	const n, rotations = 20000, 50
	l, path := open(t, logs.Options{})
	var wg sync.WaitGroup
	for _, s := range []logs.Stream{logs.Stdout, logs.Stderr} {
		r, w := io.Pipe()
		wg.Go(func() {
			if err := l.Pump(s, r, nil); err != nil {
				t.Error(err)
			}
		})
		wg.Go(func() {
			for i := range n {
				fmt.Fprintf(w, "%s-%d\n", s, i) //nolint:errcheck // the pump reads until the end
			}
			_ = w.Close()
		})
	}
	for i := range rotations {
		if err := os.Rename(path, fmt.Sprintf("%s.%03d", path, i)); err != nil {
			t.Fatal(err)
		}
		if err := l.Reopen(); err != nil {
			t.Fatal(err)
		}
	}
	if err := l.Drain(t.Context()); err != nil {
		t.Fatal(err)
	}
	wg.Wait()
	next := count(t, path)
	if next["stdout"] != n || next["stderr"] != n {
		t.Errorf("lines %v", next)
	}
}

// count checks the lines of all files of a rotated log, oldest first, and
// returns how many each stream has.
func count(t *testing.T, path string) map[string]int {
	t.Helper()
	files, err := filepath.Glob(path + ".*")
	if err != nil {
		t.Fatal(err)
	}
	slices.Sort(files)
	line := regexp.MustCompile(`^\S+ (stdout|stderr) F (stdout|stderr)-(\d+)$`)
	next := map[string]int{}
	for _, f := range append(files, path) {
		for text := range strings.Lines(read(t, f)) {
			m := line.FindStringSubmatch(strings.TrimSuffix(text, "\n"))
			if m == nil || m[1] != m[2] || m[3] != fmt.Sprint(next[m[1]]) {
				t.Fatalf("%s: %q, want number %d", f, text, next[m[1]])
			}
			next[m[1]]++
		}
	}
	return next
}

func TestReopenKeepsOldFileOnError(t *testing.T) {
	l, path := open(t, logs.Options{Now: clock})
	if err := errors.Join(os.Rename(path, path+".1"), os.Symlink("/dev/null", path)); err != nil {
		t.Fatal(err)
	}
	if err := l.Reopen(); !errors.Is(err, logs.ErrNotRegular) {
		t.Fatal(err)
	}
	if err := l.Pump(logs.Stdout, strings.NewReader("kept\n"), nil); err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(read(t, path+".1"), "F kept\n") {
		t.Error("line lost")
	}
}

func TestMaxSize(t *testing.T) {
	now := clock()
	l, path := open(t, logs.Options{MaxSize: 1000, Now: func() time.Time { now = now.Add(time.Second); return now }})
	line := strings.Repeat("y", 100) + "\n"
	for range 100 {
		if err := l.Pump(logs.Stdout, strings.NewReader(line), nil); err != nil {
			t.Fatal(err)
		}
	}
	files, err := filepath.Glob(path + "*")
	if err != nil || len(files) != 2 {
		t.Fatalf("%v, %v; want the file and one set aside", files, err)
	}
	for _, f := range files {
		if st, err := os.Stat(f); err != nil || st.Size() > 1000 || st.Size() == 0 {
			t.Errorf("%s: %d bytes, %v", f, st.Size(), err)
		}
	}
	if !regexp.MustCompile(`/0\.log\.\d{8}-\d{6}$`).MatchString(files[1]) {
		t.Errorf("name %s is not the kubelet's", files[1])
	}
	if s := l.Stats(); s.Rotations < 10 {
		t.Errorf("%+v", s)
	}
}

// TestIdlePartial: a prompt without a line end is in the log while the source
// stays open, and the rest of its line follows.
func TestIdlePartial(t *testing.T) {
	l, path := open(t, logs.Options{Idle: time.Millisecond, Now: clock})
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan error, 1)
	go func() { done <- l.Pump(logs.Stdout, r, nil) }()
	if _, err := w.WriteString("password: "); err != nil {
		t.Fatal(err)
	}
	tick := time.NewTicker(time.Millisecond)
	defer tick.Stop()
	for !strings.Contains(read(t, path), "P password: \n") {
		select {
		case <-tick.C:
		case <-t.Context().Done():
			t.Fatal("the prompt did not appear")
		}
	}
	if _, err := w.WriteString("ok\n"); err != nil {
		t.Fatal(err)
	}
	if err := errors.Join(w.Close(), <-done, r.Close()); err != nil {
		t.Fatal(err)
	}
	if want := stamp + " stdout P password: \n" + stamp + " stdout F ok\n"; read(t, path) != want {
		t.Errorf("%q", read(t, path))
	}
}

// busySource gives parts of its text at a pace; deadlines work as a pipe's.
type busySource struct {
	parts    []string
	pace     time.Duration
	deadline time.Time
}

func (s *busySource) SetReadDeadline(t time.Time) error {
	s.deadline = t
	return nil
}

func (s *busySource) Read(b []byte) (int, error) {
	if !s.deadline.IsZero() && time.Until(s.deadline) < s.pace {
		<-time.After(time.Until(s.deadline))
		return 0, os.ErrDeadlineExceeded
	}
	if len(s.parts) == 0 {
		return 0, io.EOF
	}
	<-time.After(s.pace)
	n := copy(b, s.parts[0])
	s.parts = s.parts[1:]
	return n, nil
}

// TestBusyIsWhole: a source whose every read ends within a line is not idle,
// however long that goes on.
func TestBusyIsWhole(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l, path := open(t, logs.Options{Idle: 200 * time.Millisecond, Now: clock})
		src := &busySource{pace: 60 * time.Millisecond}
		for i := range 20 {
			src.parts = append(src.parts, fmt.Sprintf("end\nline %d, ", i))
		}
		src.parts = append(src.parts, "end\n")
		if err := l.Pump(logs.Stdout, src, nil); err != nil {
			t.Fatal(err)
		}
		if got := read(t, path); strings.Contains(got, " P ") || strings.Count(got, " F ") != 21 {
			t.Errorf("%s", got)
		}
	})
}

// TestFullDisk: a limit on file size stands for a full disk. Lines are cut
// off whole, and the source is read to its end.
func TestFullDisk(t *testing.T) {
	l, path := open(t, logs.Options{Now: clock})
	var old syscall.Rlimit
	if err := syscall.Getrlimit(syscall.RLIMIT_FSIZE, &old); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &syscall.Rlimit{Cur: 500, Max: old.Max}); err != nil {
		t.Fatal(err)
	}
	err := l.Pump(logs.Stdout, strings.NewReader(strings.Repeat("0123456789\n", 100)), nil)
	if rerr := syscall.Setrlimit(syscall.RLIMIT_FSIZE, &old); rerr != nil {
		t.Fatal(rerr)
	}
	if !errors.Is(err, syscall.EFBIG) {
		t.Errorf("%v", err)
	}
	got := read(t, path)
	if got == "" || !strings.HasSuffix(got, "F 0123456789\n") || l.Stats().Dropped == 0 {
		t.Errorf("%q, %+v", got, l.Stats())
	}
}

func TestDrainEndsWithContext(t *testing.T) {
	l, _ := open(t, logs.Options{})
	r, w := io.Pipe()
	done := make(chan error, 1)
	started := make(chan struct{})
	go func() { done <- l.Pump(logs.Stdout, firstRead{r, started}, nil) }()
	<-started
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Drain(ctx); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	if err := errors.Join(w.Close(), <-done, l.Drain(t.Context())); err != nil {
		t.Error(err)
	}
}

// firstRead tells of its first Read.
type firstRead struct {
	io.Reader
	ch chan struct{}
}

func (s firstRead) Read(p []byte) (int, error) {
	select {
	case <-s.ch:
	default:
		close(s.ch)
	}
	return s.Reader.Read(p)
}

// endless gives lines until n bytes were read.
type endless struct {
	line []byte
	left int
}

func (e *endless) Read(p []byte) (int, error) {
	if e.left <= 0 {
		return 0, io.EOF
	}
	n := 0
	for n+len(e.line) <= len(p) && e.left > 0 {
		n += copy(p[n:], e.line)
		e.left -= len(e.line)
	}
	return n, nil
}

func BenchmarkPump(b *testing.B) {
	for _, size := range []int{20, 100, 1000} {
		b.Run(fmt.Sprintf("line=%d", size), func(b *testing.B) {
			path := filepath.Join(b.TempDir(), "0.log")
			l, err := logs.Open(path, logs.Options{MaxSize: 64 << 20})
			if err != nil {
				b.Fatal(err)
			}
			line := append(bytes.Repeat([]byte{'x'}, size-1), '\n')
			b.SetBytes(int64(size))
			b.ReportAllocs()
			if err := l.Pump(logs.Stdout, &endless{line: line, left: size * b.N}, nil); err != nil {
				b.Fatal(err)
			}
			_ = l.Close()
		})
	}
}
