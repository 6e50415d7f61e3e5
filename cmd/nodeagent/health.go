// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"
)

// health answers /metrics, /healthz (is the process alive) and /readyz (do all
// parts serve) on a local listener.
type health struct {
	addr     string
	log      *slog.Logger
	registry *prometheus.Registry
	server   http.Server
	done     chan struct{}

	// mu guards checks.
	mu sync.Mutex
	// checks are the parts' own views; nil error means that the part serves.
	checks map[string]func(context.Context) error
}

func newHealth(addr string, log *slog.Logger) *health {
	h := &health{
		addr: addr, log: log, registry: prometheus.NewRegistry(),
		checks: map[string]func(context.Context) error{}, done: make(chan struct{}),
	}
	h.registry.MustRegister(collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	mux := http.NewServeMux()
	mux.Handle("GET /metrics", promhttp.HandlerFor(h.registry, promhttp.HandlerOpts{ErrorHandling: promhttp.ContinueOnError}))
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = fmt.Fprintln(w, "ok") })
	mux.HandleFunc("GET /readyz", h.serveReady)
	h.server = http.Server{
		Handler: mux, ReadHeaderTimeout: 5 * time.Second,
		ErrorLog: slog.NewLogLogger(log.Handler(), slog.LevelDebug),
	}
	return h
}

// check adds a part's view of itself under its name.
func (h *health) check(name string, f func(context.Context) error) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.checks[name] = f
}

// condition is one part's state as status and /readyz print it.
type condition struct {
	Part    string `json:"part"`
	Ready   bool   `json:"ready"`
	Message string `json:"message,omitempty"`
}

// conditions asks every part, in the order of their names.
func (h *health) conditions(ctx context.Context) []condition {
	h.mu.Lock()
	names := make([]string, 0, len(h.checks))
	for n := range h.checks {
		names = append(names, n)
	}
	checks := h.checks
	h.mu.Unlock()
	slices.Sort(names)
	out := make([]condition, 0, len(names))
	for _, n := range names {
		c := condition{Part: n, Ready: true}
		if err := checks[n](ctx); err != nil {
			c.Ready, c.Message = false, err.Error()
		}
		out = append(out, c)
	}
	return out
}

func (h *health) serveReady(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	var b strings.Builder
	status := http.StatusOK
	for _, c := range h.conditions(ctx) {
		if c.Ready {
			fmt.Fprintf(&b, "[+] %s ok\n", c.Part)
			continue
		}
		status = http.StatusServiceUnavailable
		fmt.Fprintf(&b, "[-] %s: %s\n", c.Part, c.Message)
	}
	w.WriteHeader(status)
	_, _ = w.Write([]byte(b.String()))
}

// Start listens; an empty address means that nobody asked for it.
func (h *health) Start(ctx context.Context) error {
	if h.addr == "" {
		close(h.done)
		return nil
	}
	var lc net.ListenConfig
	lis, err := lc.Listen(ctx, "tcp", h.addr)
	if err != nil {
		return fmt.Errorf("listen for metrics: %w", err)
	}
	go func() {
		defer close(h.done)
		if err := h.server.Serve(lis); !errors.Is(err, http.ErrServerClosed) {
			h.log.ErrorContext(ctx, "metrics listener stopped", "err", err)
		}
	}()
	return nil
}

// Stop ends the listener.
func (h *health) Stop(ctx context.Context) error {
	err := h.server.Shutdown(ctx)
	<-h.done
	return err
}
