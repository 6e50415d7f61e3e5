// SPDX-License-Identifier: Apache-2.0

package stream_test

import (
	"context"
	"io"
	"log"
	"net"
	"net/url"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/stream"
)

// deaf is a Runtime in which nothing runs: what a session asks of it fails, or
// takes input to its end.
type deaf struct{}

var _ stream.Runtime = deaf{}

func (deaf) NetNS(context.Context, string) (string, error) { return "", errBroken }

func (deaf) Exec(context.Context, string, stream.Command) (stream.Process, error) {
	return nil, errBroken
}

func (deaf) Attach(_ context.Context, _ string, s stream.Streams) error {
	if s.Stdin != nil {
		_, _ = io.Copy(s.Stdout, s.Stdin)
	}
	return errBroken
}

// panics is a log that keeps the first panic of a handler.
type panics struct{ first atomic.Pointer[string] }

func (p *panics) Write(b []byte) (int, error) {
	if text := string(b); strings.Contains(text, "panic serving") {
		p.first.CompareAndSwap(nil, &text)
	}
	return len(b), nil
}

// fuzzURL is the path of a fresh URL of one of the three kinds.
func fuzzURL(t *testing.T, s *stream.Server, kind byte) string {
	t.Helper()
	var raw string
	switch kind % 3 {
	case 0:
		r, err := s.GetExec(&runtimeapi.ExecRequest{ContainerId: "c", Cmd: []string{"x"}, Stdin: true, Stdout: true, Tty: kind > 127})
		if err != nil {
			t.Fatal(err)
		}
		raw = r.GetUrl()
	case 1:
		r, err := s.GetAttach(&runtimeapi.AttachRequest{ContainerId: "c", Stdin: true, Stdout: true, Tty: kind > 127})
		if err != nil {
			t.Fatal(err)
		}
		raw = r.GetUrl()
	default:
		return portURL(t, s, int(kind)).Path
	}
	u, err := url.Parse(raw)
	if err != nil {
		t.Fatal(err)
	}
	return u.Path
}

// deafServer is new for each request, for it remembers those that were wasted.
func deafServer(t *testing.T) (*stream.Server, *panics) {
	t.Helper()
	cfg := stream.Default()
	cfg.CreationTimeout = 50 * time.Millisecond
	s, err := stream.New(cfg, deaf{})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	seen := &panics{}
	s.LogTo(log.New(seen, "", 0))
	return s, seen
}

// FuzzSession says anything to a URL: no request ends the server or a handler.
func FuzzSession(f *testing.F) {
	socket := func(protocol string) string {
		return "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Protocol: " + protocol
	}
	spdy := func(protocol string) string {
		return "Connection: Upgrade\r\nUpgrade: SPDY/3.1\r\nX-Stream-Protocol-Version: " + protocol
	}
	const frame = "\x80\x03\x00\x06\x00\x00\x00\x04\x00\x00\x00\x01" // a ping of SPDY
	masked := "\x82\x8c\x00\x00\x00\x00" + frame
	for _, head := range []string{
		socket("v5.channel.k8s.io"), socket("v4.channel.k8s.io, x"), socket("SPDY/3.1+portforward.k8s.io"), socket(""),
		spdy("portforward.k8s.io"), spdy("v4.channel.k8s.io"), spdy(""), "Upgrade: ,", "",
	} {
		for kind := range byte(3) {
			f.Add(kind, "GET", "", head, []byte(masked))
			f.Add(kind+128, "POST", "?port=1", head, []byte(frame))
		}
	}
	f.Add(byte(2), "GET", "/../%00", "", []byte{})
	f.Fuzz(func(t *testing.T, kind byte, method, more, head string, body []byte) {
		s, seen := deafServer(t)
		conn, err := (&net.Dialer{}).DialContext(t.Context(), "tcp", s.Addr().String())
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close() //nolint:errcheck // what was said counts
		if err := conn.SetDeadline(time.Now().Add(300 * time.Millisecond)); err != nil {
			t.Fatal(err)
		}
		said := method + " " + fuzzURL(t, s, kind) + more + " HTTP/1.1\r\nHost: x\r\n" + head + "\r\n\r\n" + string(body)
		_, _ = io.WriteString(conn, said)
		_ = conn.(*net.TCPConn).CloseWrite() //nolint:errcheck,forcetypeassert // a TCP connection
		_, _ = io.Copy(io.Discard, conn)
		if text := seen.first.Load(); text != nil {
			t.Fatalf("%q: %s", said, *text)
		}
	})
}
