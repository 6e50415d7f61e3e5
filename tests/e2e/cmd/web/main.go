// SPDX-License-Identifier: Apache-2.0

// Command web is the demo's web server: it says which pod answers, keeps lines of
// text in a file when it is given a directory, and sends streams of bytes that
// its client half (-fetch) checks one by one.
package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"net/http"
	"os"
	"os/signal"
	"path/filepath"
	"time"

	"golang.org/x/sys/unix"
)

func main() {
	if known, err := standIn(filepath.Base(os.Args[0])); known {
		if err != nil {
			os.Exit(127)
		}
		return
	}
	addr := flag.String("listen", ":8080", "address to listen on")
	dir := flag.String("data", "", "directory for the guest book; none without")
	fetchURL := flag.String("fetch", "", "read a stream from this URL, check it, and end")
	flag.Parse()
	log := slog.New(slog.NewTextHandler(os.Stdout, nil))
	ctx, stop := signal.NotifyContext(context.Background(), unix.SIGTERM, unix.SIGINT)
	defer stop()
	do := func() error { return serve(ctx, log, *addr, *dir) }
	if *fetchURL != "" {
		do = func() error { return fetch(ctx, log, *fetchURL) }
	}
	if err := do(); err != nil {
		log.Error("web ends", "err", err)
		os.Exit(1) //nolint:gocritic // the signals' handler need not be undone
	}
}

func serve(ctx context.Context, log *slog.Logger, addr, dir string) error {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /{$}", func(w http.ResponseWriter, r *http.Request) { hello(log, w, r) })
	mux.HandleFunc("GET /healthz", func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "ok\n") })
	mux.HandleFunc("GET /stream", stream)
	if dir != "" {
		b := book{path: filepath.Join(dir, "book")}
		mux.HandleFunc("GET /book", b.read)
		mux.HandleFunc("POST /book", b.write)
	}
	srv := &http.Server{Addr: addr, Handler: mux, ReadHeaderTimeout: 10 * time.Second}
	log.InfoContext(ctx, "web server listens", "addr", addr, "data", dir)
	failed := make(chan error, 1)
	go func() { failed <- srv.ListenAndServe() }()
	select {
	case err := <-failed:
		return err
	case <-ctx.Done():
		return srv.Shutdown(context.WithoutCancel(ctx))
	}
}

func hello(log *slog.Logger, w http.ResponseWriter, r *http.Request) {
	host, err := os.Hostname()
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	log.InfoContext(r.Context(), "request", "remote", r.RemoteAddr)
	_, _ = fmt.Fprintf(w, "hello from %s, you are %s\n", host, r.RemoteAddr)
}

// book is a file that lines are added to, each on disk before it is answered.
type book struct{ path string }

func (b book) read(w http.ResponseWriter, _ *http.Request) {
	data, err := os.ReadFile(b.path)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	_, _ = w.Write(data)
}

func (b book) write(w http.ResponseWriter, r *http.Request) {
	line, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 4096))
	if err == nil {
		err = b.add(line)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.WriteHeader(http.StatusCreated)
}

func (b book) add(line []byte) error {
	f, err := os.OpenFile(b.path, os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	_, err = f.Write(append(line, '\n'))
	return errors.Join(err, f.Sync(), f.Close())
}
