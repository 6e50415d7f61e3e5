// SPDX-License-Identifier: Apache-2.0

// Package shim is the daemon's side of nodeagent's own shim: where its program is, and the standard streams of containers that
// it keeps. Containers of other shims have FIFOs, which the daemon reads.
package shim

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
	"time"

	"github.com/containerd/errdefs"

	"github.com/nodeagent/nodeagent/cri/container"
	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/sandbox"
	"github.com/nodeagent/nodeagent/cri/shim/link"
	"github.com/nodeagent/nodeagent/cri/store"
	"github.com/nodeagent/nodeagent/cri/stream"
)

// answerTimeout bounds one question to a shim.
const answerTimeout = 10 * time.Second

// Opener opens the streams of containers: names for our shim, FIFOs for any other.
type Opener struct {
	FIFOs container.FIFOs
	// Ours says whether a runtime handler's containers have our shim.
	Ours func(handler string) bool
	// Direct says whether the shim makes the processes of exec itself.
	Direct func(handler string) bool
	// SandboxDir is the directory of a sandbox, where its shim has its socket.
	SandboxDir func(id string) string
}

var _ container.Opener = Opener{}

var (
	_ container.Shims = (*Launcher)(nil)
	_ sandbox.Shims   = (*Launcher)(nil)
)

// Open makes the streams of a container before its task is made.
func (o Opener) Open(c *store.Container, dir string) (container.Streams, error) {
	if !o.Ours(c.Handler) {
		return o.FIFOs.Open(c, dir)
	}
	return o.streams(c), nil
}

// Reattach takes up the streams of a running container again; with our shim they were never let go.
func (o Opener) Reattach(c *store.Container, dir string) (container.Streams, error) {
	if !o.Ours(c.Handler) {
		return o.FIFOs.Reattach(c, dir)
	}
	return o.streams(c), nil
}

func (o Opener) streams(c *store.Container) *streams {
	cfg := c.Config.M
	dir := o.SandboxDir(c.SandboxID)
	out := link.Output{Log: c.LogPath, MaxSize: o.FIFOs.MaxLogSize, Dir: dir, Direct: o.Direct(c.Handler)}.URI()
	s := &streams{
		id: c.ID, dir: dir, control: o.FIFOs.Control,
		paths: containerd.Streams{Terminal: cfg.GetTty(), Stdout: out}, closed: make(chan struct{}),
	}
	if !cfg.GetTty() {
		s.paths.Stderr = out
	}
	if c.Stdin {
		s.paths.Stdin = link.Input(cfg.GetStdinOnce())
	}
	return s
}

// streams are those of one container, which the shim holds.
type streams struct {
	id, dir string
	paths   containerd.Streams
	control container.Control
	once    sync.Once
	closed  chan struct{}
}

var _ container.Streams = (*streams)(nil)

// Paths are the URIs that the shim reads.
func (s *streams) Paths() containerd.Streams { return s.paths }

// Connected has nothing to do.
func (s *streams) Connected() error { return nil }

// Drain has nothing to wait for: deleting the task has drained the output.
func (s *streams) Drain(context.Context) error { return nil }

// Close ends the attaches of this daemon.
func (s *streams) Close() error {
	s.once.Do(func() { close(s.closed) })
	return nil
}

// Reopen has the shim open the log file anew; it returns when nothing more is written to the old one.
func (s *streams) Reopen() error {
	ctx, cancel := context.WithTimeout(context.Background(), answerTimeout) //nolint:forbidigo // container.Streams has no context here
	defer cancel()
	conn, _, err := s.ask(ctx, link.Request{Op: link.OpReopen, Container: s.id})
	if err != nil {
		return fmt.Errorf("reopen log: %w", err)
	}
	return conn.Close()
}

// Attach connects a client until the container's or the client's end.
func (s *streams) Attach(ctx context.Context, c stream.Streams) error {
	conn, in, err := s.ask(ctx, link.Request{
		Op: link.OpAttach, Container: s.id, Stdin: c.Stdin != nil, Stdout: c.Stdout != nil, Stderr: c.Stderr != nil,
	})
	if err != nil {
		return fmt.Errorf("attach: %w", err)
	}
	defer func() { _ = conn.Close() }()
	done := make(chan struct{})
	defer close(done)
	go s.watch(ctx, conn, done)
	if c.Resize != nil && s.paths.Terminal {
		go s.resize(ctx, c.Resize, done)
	}
	if c.Stdin != nil {
		// Not waited for: only the client's end lets its Read return.
		go feed(conn, c.Stdin)
	}
	return ended(ctx, copyFrames(in, c))
}

// watch ends the connection with the call, the container or the daemon.
func (s *streams) watch(ctx context.Context, conn net.Conn, done <-chan struct{}) {
	select {
	case <-ctx.Done():
	case <-s.closed:
	case <-done:
	}
	_ = conn.Close()
}

func (s *streams) resize(ctx context.Context, sizes <-chan stream.Size, done <-chan struct{}) {
	for {
		select {
		case size, ok := <-sizes:
			if !ok {
				return
			}
			// A terminal that has gone needs no size.
			_ = s.control.ResizeTerminal(ctx, containerd.Process{ContainerID: s.id}, uint32(size.Width), uint32(size.Height))
		case <-ctx.Done():
			return
		case <-done:
			return
		}
	}
}

// feed sends a client's input; an empty frame tells its end.
func feed(w io.Writer, r io.Reader) {
	buf := make([]byte, 32<<10)
	for {
		n, err := r.Read(buf)
		if n > 0 && link.WriteFrame(w, link.Stdin, buf[:n]) != nil {
			return
		}
		if err != nil {
			_ = link.WriteFrame(w, link.Stdin, nil)
			return
		}
	}
}

// copyFrames gives the container's output to the client until one of them ends.
func copyFrames(r io.Reader, c stream.Streams) error {
	var buf []byte
	for {
		name, p, err := link.ReadFrame(r, buf)
		if err != nil {
			return err
		}
		buf = p
		w := c.Stdout
		if name == link.Stderr {
			w = c.Stderr
		}
		if w == nil {
			continue
		}
		if _, err := w.Write(p); err != nil {
			return err
		}
	}
}

// ended sorts the ends of an attach: the container's is no error, nor is the call's own cancellation more than that.
func ended(ctx context.Context, err error) error {
	if ctx.Err() != nil {
		return ctx.Err()
	}
	if errors.Is(err, io.EOF) || errors.Is(err, net.ErrClosed) || errors.Is(err, io.ErrUnexpectedEOF) {
		return nil
	}
	return err
}

// ask sends a request to the pod's shim and reads its answer.
func (s *streams) ask(ctx context.Context, r link.Request) (_ net.Conn, _ *bufio.Reader, retErr error) {
	conn, err := link.Dial(ctx, s.dir)
	if err != nil {
		return nil, nil, err
	}
	defer func() {
		if retErr != nil {
			_ = conn.Close()
		}
	}()
	if err := conn.SetDeadline(time.Now().Add(answerTimeout)); err != nil {
		return nil, nil, err
	}
	if err := link.WriteLine(conn, r); err != nil {
		return nil, nil, err
	}
	in := bufio.NewReader(conn)
	var answer link.Response
	if err := link.ReadLine(in, &answer); err != nil {
		return nil, nil, fmt.Errorf("read the shim's answer: %w", err)
	}
	switch {
	case answer.NotRunning:
		return nil, nil, fmt.Errorf("%s: %w", answer.Error, errdefs.ErrFailedPrecondition)
	case answer.Error != "":
		return nil, nil, errors.New(answer.Error)
	}
	return conn, in, conn.SetDeadline(time.Time{})
}
