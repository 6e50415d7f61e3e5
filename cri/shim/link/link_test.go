// SPDX-License-Identifier: Apache-2.0

package link_test

import (
	"bufio"
	"bytes"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"

	"github.com/nodeagent/nodeagent/cri/shim/link"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func TestOutput(t *testing.T) {
	for _, want := range []link.Output{
		{Log: "/var/log/pods/a_b_c/x/0.log", Dir: "/run/nodeagent/sandboxes/1"},
		{Log: "/odd name/50%?&#/ü.log", Dir: "/run/a b", MaxSize: 10},
		{Dir: "/run"},
	} {
		got, ok, err := link.ParseOutput(want.URI())
		if !ok || err != nil || got != want {
			t.Errorf("%s: got %+v, %v, %v", want.URI(), got, ok, err)
		}
	}
	for _, fifo := range []string{"", "/run/fifo", "file:///x", "nodeagent"} {
		if _, ok, err := link.ParseOutput(fifo); ok || err != nil {
			t.Errorf("%q: %v, %v", fifo, ok, err)
		}
	}
	for _, bad := range []string{"nodeagent:/x", "nodeagent:/x?dir=rel", "nodeagent:/x?dir=/d&max=y", "nodeagent:%zz"} {
		if _, ok, err := link.ParseOutput(bad); !ok || err == nil {
			t.Errorf("%q: %v, %v", bad, ok, err)
		}
	}
	for _, once := range []bool{true, false} {
		if got, ok := link.ParseInput(link.Input(once)); !ok || got != once {
			t.Errorf("input %v: %v, %v", once, got, ok)
		}
	}
	if _, ok := link.ParseInput("/run/fifo"); ok {
		t.Error("a FIFO is no input of ours")
	}
}

func TestFrames(t *testing.T) {
	var b bytes.Buffer
	long := bytes.Repeat([]byte("x"), 100<<10)
	for _, p := range [][]byte{[]byte("a"), nil, long} {
		if err := link.WriteFrame(&b, link.Stderr, p); err != nil {
			t.Fatal(err)
		}
	}
	var all []byte
	frames := 0
	for b.Len() > 0 {
		stream, p, err := link.ReadFrame(&b, nil)
		if err != nil || stream != link.Stderr {
			t.Fatal(stream, err)
		}
		all = append(all, p...)
		frames++
	}
	if frames != 4 || !bytes.Equal(all, append([]byte("a"), long...)) {
		t.Errorf("%d frames, %d bytes", frames, len(all))
	}
	if _, _, err := link.ReadFrame(strings.NewReader("\x01\xff\xff\xff\xff"), nil); !errors.Is(err, link.ErrTooLong) {
		t.Errorf("got %v", err)
	}
	var r link.Request
	if err := link.ReadLine(bufio.NewReader(strings.NewReader(strings.Repeat("x", 10000))), &r); !errors.Is(err, link.ErrTooLong) {
		t.Errorf("got %v", err)
	}
}

// TestSocket uses a directory whose name is longer than a socket's may be, twice over the same file.
func TestSocket(t *testing.T) {
	dir := filepath.Join(t.TempDir(), strings.Repeat("long", 50))
	if _, err := link.Dial(t.Context(), dir); err == nil {
		t.Error("dialled into nothing")
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		l, err := link.Listen(dir)
		if err != nil {
			t.Fatal(err)
		}
		conn, err := link.Dial(t.Context(), dir)
		if err != nil {
			t.Fatal(err)
		}
		peer, err := l.Accept()
		if err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(link.WriteLine(conn, link.Request{Op: link.OpReopen, Container: "c"}), conn.Close()); err != nil {
			t.Fatal(err)
		}
		var r link.Request
		if err := link.ReadLine(bufio.NewReader(peer), &r); err != nil || r.Container != "c" || r.Op != link.OpReopen {
			t.Errorf("got %+v, %v", r, err)
		}
		_ = peer.Close()
		_ = l.Close()
	}
	if info, err := os.Stat(filepath.Join(dir, link.SocketName)); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", info, err)
	}
}
