// SPDX-License-Identifier: Apache-2.0

package api_test

import (
	"errors"
	"log/slog"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/api"
)

func start(t *testing.T, socket string) *api.Server {
	t.Helper()
	s, err := api.New(socket, api.Deps{
		Log: slog.New(slog.DiscardHandler),
		Routes: map[string]http.Handler{
			"GET /v1/ok":   api.JSON(func(*http.Request) (map[string]int, error) { return map[string]int{"n": 7}, nil }),
			"GET /v1/fail": api.JSON(func(*http.Request) (any, error) { return nil, errors.New("broken pool") }),
		},
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	return s
}

func TestClientAndServer(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "api.sock")
	c := api.NewClient(socket)
	if err := c.Get(t.Context(), "/v1/ok", nil); !errors.Is(err, api.ErrNoDaemon) {
		t.Fatalf("without a daemon: %v", err)
	}
	s := start(t, socket)
	fi, err := os.Stat(socket)
	if err != nil || fi.Mode().Perm() != 0o600 {
		t.Fatalf("socket mode %v, err %v", fi.Mode(), err)
	}
	var out map[string]int
	if err := c.Get(t.Context(), "/v1/ok", &out); err != nil || out["n"] != 7 {
		t.Fatalf("got %v, %v", out, err)
	}
	if err := c.Get(t.Context(), "/v1/fail", &out); err == nil || err.Error() != "broken pool" {
		t.Errorf("error came as %v", err)
	}
	if err := c.Get(t.Context(), "/v1/none", &out); err == nil || !strings.Contains(err.Error(), "no such call") {
		t.Errorf("unknown call came as %v", err)
	}
	if _, err := api.Listen(t.Context(), socket); err == nil || !strings.Contains(err.Error(), "another process serves it") {
		t.Errorf("second listener: %v", err)
	}
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
	s = start(t, socket) // the dead socket of the first one is replaced
	if err := s.Stop(t.Context()); err != nil {
		t.Fatal(err)
	}
}

func TestGarbageOnTheSocketGets400(t *testing.T) {
	socket := filepath.Join(t.TempDir(), "api.sock")
	s := start(t, socket)
	defer func() { _ = s.Stop(t.Context()) }()
	var d net.Dialer
	conn, err := d.DialContext(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = conn.Close() }()
	if _, err := conn.Write([]byte("\x00\xff garbage\r\n\r\n")); err != nil {
		t.Fatal(err)
	}
	buf := make([]byte, 64)
	n, err := conn.Read(buf)
	if err != nil || !strings.HasPrefix(string(buf[:n]), "HTTP/1.1 400 Bad Request") {
		t.Errorf("answer %q, %v", buf[:n], err)
	}
}
