// SPDX-License-Identifier: Apache-2.0

// Package api is the daemon's local API: HTTP with JSON over a unix socket
// that only root can open. The CNI program and the operator's CLI ask it.
package api

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"path/filepath"
	"time"
)

// DefaultSocket is where the daemon listens unless configured otherwise.
const DefaultSocket = "/run/nodeagent/api.sock"

// Deps is what the server needs from the daemon.
type Deps struct {
	Log *slog.Logger
	// Routes maps patterns of http.ServeMux ("GET /v1/status") to handlers.
	Routes map[string]http.Handler
}

// Server answers on the local socket.
type Server struct {
	socket string
	log    *slog.Logger
	http   http.Server
	lis    net.Listener
	done   chan struct{}
}

// New makes a server for the socket at path; Start opens it.
func New(socket string, deps Deps) (*Server, error) {
	if !filepath.IsAbs(socket) {
		return nil, fmt.Errorf("api socket: %q is not an absolute path", socket)
	}
	mux := http.NewServeMux()
	for pattern, h := range deps.Routes {
		mux.Handle(pattern, h)
	}
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		WriteError(w, http.StatusNotFound, fmt.Errorf("no such call: %s %s", r.Method, r.URL.Path))
	})
	s := &Server{socket: socket, log: deps.Log, done: make(chan struct{})}
	s.http = http.Server{
		Handler:           mux,
		ReadHeaderTimeout: 5 * time.Second,
		ErrorLog:          slog.NewLogLogger(deps.Log.Handler(), slog.LevelDebug),
	}
	return s, nil
}

// Start opens the socket, mode 0600, and serves until Stop.
func (s *Server) Start(ctx context.Context) error {
	lis, err := Listen(ctx, s.socket)
	if err != nil {
		return err
	}
	s.lis = lis
	go func() {
		defer close(s.done)
		if err := s.http.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
			s.log.ErrorContext(ctx, "local api stopped", "err", err)
		}
	}()
	return nil
}

// Stop waits for calls in flight until ctx ends, then cuts them.
func (s *Server) Stop(ctx context.Context) error {
	if s.lis == nil {
		return nil
	}
	err := s.http.Shutdown(ctx)
	if err != nil {
		err = errors.Join(err, s.http.Close())
	}
	<-s.done
	return err
}

// Error is the body of every answer that is not a success.
type Error struct {
	Message string `json:"error"`
}

// WriteJSON answers 200 with v.
func WriteJSON(w http.ResponseWriter, v any) {
	body, err := json.Marshal(v)
	if err != nil {
		WriteError(w, http.StatusInternalServerError, fmt.Errorf("encode answer: %w", err))
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_, _ = w.Write(append(body, '\n'))
}

// WriteError answers with status and err's text.
func WriteError(w http.ResponseWriter, status int, err error) {
	body, _ := json.Marshal(Error{Message: err.Error()})
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(status)
	_, _ = w.Write(append(body, '\n'))
}

// JSON makes a handler of a function whose result is the answer; an error is
// answered as 500 with its text.
func JSON[T any](f func(*http.Request) (T, error)) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		v, err := f(r)
		if err != nil {
			WriteError(w, http.StatusInternalServerError, err)
			return
		}
		WriteJSON(w, v)
	})
}
