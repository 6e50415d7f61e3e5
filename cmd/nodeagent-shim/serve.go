// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/signal"
	"path/filepath"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/reap"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/task"
	"github.com/nodeagent/nodeagent/cmd/nodeagent-shim/ttrpc"
)

const (
	// gcPercent keeps the heap within a few hundred KiB of what is live, which is next to nothing. It is for the time from the
	// first rest on: until then the pod is being made, and what that leaves behind is collected once, not three times.
	gcPercent = 20
	// idleAfter is how long nothing has to happen before memory is given back.
	idleAfter = 3 * time.Second
	// flushTimeout bounds the telling of the last events.
	flushTimeout = 5 * time.Second
)

// serve is the shim: it runs until containerd asks it to end and no container is left.
func serve(ctx context.Context, f flags) error {
	if err := errors.Join(reap.DefaultSignals(), reap.Subreaper()); err != nil {
		return err
	}
	// Only containerd's Shutdown ends a shim; what a service manager or a terminal sends is meant for others. The signals are
	// caught, not ignored: what is ignored here would be ignored in the containers.
	signal.Notify(make(chan os.Signal, 1), unix.SIGPIPE, unix.SIGHUP, unix.SIGINT, unix.SIGTERM)
	sock := os.NewFile(3, "socket")
	l, err := net.FileListener(sock)
	if err != nil {
		return fmt.Errorf("take over socket: %w", err)
	}
	_ = sock.Close()
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	reaper := reap.New()
	go reaper.Run(ctx)
	events := newPublisher(f)
	published := make(chan struct{})
	go func() {
		defer close(published)
		events.run(ctx)
	}()
	idle := time.AfterFunc(idleAfter, func() {
		debug.SetGCPercent(gcPercent)
		debug.FreeOSMemory()
	})
	stop := make(chan struct{})
	deps := task.Deps{
		Namespace: f.namespace, Reaper: reaper, Events: events.publish,
		Stop: func() { close(stop) }, Idle: func() { idle.Reset(idleAfter) }, Held: f.lifeline,
	}
	if f.lifeline {
		deps.Bundle = func(dir string) error { return record(dir, l.Addr().String()) }
	}
	s := task.New(deps)
	if f.lifeline {
		if err := s.ServeLinks(filepath.Dir(l.Addr().String())); err != nil {
			return err
		}
		go await(os.NewFile(lifelineFD, "lifeline"), s.Release)
	}
	server := &ttrpc.Server{Methods: s.Methods()}
	served := make(chan error, 1)
	go func() { served <- server.Serve(ctx, l) }()
	select {
	case <-stop:
		err = nil
	case err = <-served:
	}
	if u, ok := l.Addr().(*net.UnixAddr); ok {
		err = errors.Join(err, ignoreAbsent(os.Remove(u.Name)))
	}
	events.close()
	t := time.NewTimer(flushTimeout)
	defer t.Stop()
	select {
	case <-published:
	case <-t.C:
	}
	return err
}

// lifelineFD is the descriptor of the pipe that nodeagent holds while a shim that it started has no container.
const lifelineFD = 4

// await calls released when the other end of the lifeline is closed, by whoever or by a death.
func await(lifeline *os.File, released func()) {
	_, _ = lifeline.Read(make([]byte, 1))
	_ = lifeline.Close()
	released()
}

// record writes into a bundle what containerd and the start action write there when they start a shim: its program, for a
// containerd that starts anew, and its socket, for delete.
func record(bundle, socket string) error {
	for name, text := range map[string]string{"shim-binary-path": os.Args[0], socketRecord: socket} {
		if err := os.WriteFile(filepath.Join(bundle, name), []byte(text), 0o600); err != nil {
			return fmt.Errorf("record shim: %w", err)
		}
	}
	return nil
}

func ignoreAbsent(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
