// SPDX-License-Identifier: Apache-2.0

package stream_test

import (
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/containerd/console"
	"go.uber.org/goleak"

	"github.com/nodeagent/nodeagent/cri/stream"
)

func TestMain(m *testing.M) {
	// The client's end of a tunnel waits a second for somebody to tell that the
	// server's goodbye was faster than its own.
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("github.com/moby/spdystream.(*Connection).shutdown"))
}

// host is a Runtime whose containers are the machine itself: real processes,
// real pipes and terminals.
type host struct {
	hub   *stream.Hub
	netns string
	fail  error
	lost  error // of the first waits for a process

	mu    sync.Mutex
	procs []*process
}

var _ stream.Runtime = (*host)(nil)

func (h *host) NetNS(context.Context, string) (string, error) { return h.netns, h.fail }

func (h *host) Attach(ctx context.Context, _ string, s stream.Streams) error {
	return h.hub.Attach(ctx, s)
}

func (h *host) Exec(_ context.Context, _ string, c stream.Command) (stream.Process, error) {
	if h.fail != nil {
		return nil, h.fail
	}
	p := &process{cmd: exec.Command(c.Args[0], c.Args[1:]...), exited: make(chan struct{}), drained: make(chan struct{}), lost: h.lost}
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
	start := p.pipes
	if c.TTY {
		start = p.terminal
	}
	if err := start(c); err != nil {
		return nil, err
	}
	h.mu.Lock()
	h.procs = append(h.procs, p)
	h.mu.Unlock()
	go func() {
		_ = p.cmd.Wait()
		close(p.exited)
	}()
	go func() {
		p.copies.Wait()
		close(p.drained)
	}()
	return p, nil
}

// process is a child with its ends of the streams.
type process struct {
	cmd     *exec.Cmd
	stdin   *os.File
	outputs []*os.File
	pty     console.Console
	copies  sync.WaitGroup
	exited  chan struct{}
	drained chan struct{}
	deleted bool
	killed  bool
	lost    error
}

var _ stream.Process = (*process)(nil)

func (p *process) pipes(c stream.Command) error {
	var child []*os.File
	out := func(w io.Writer) (*os.File, error) {
		if w == nil {
			return nil, nil
		}
		r, wr, err := os.Pipe()
		if err != nil {
			return nil, err
		}
		p.outputs, child = append(p.outputs, r), append(child, wr)
		p.copies.Go(func() { _, _ = io.Copy(w, r) })
		return wr, nil
	}
	stdout, err := out(c.Stdout)
	if err != nil {
		return err
	}
	if stdout != nil {
		p.cmd.Stdout = stdout
	}
	stderr, err := out(c.Stderr)
	if err != nil {
		return err
	}
	if stderr != nil {
		p.cmd.Stderr = stderr
	}
	if c.Stdin != nil {
		r, w, err := os.Pipe()
		if err != nil {
			return err
		}
		p.cmd.Stdin, p.stdin, child = r, w, append(child, r)
		go func() { _, _ = io.Copy(w, c.Stdin) }()
	}
	err = p.cmd.Start()
	for _, f := range child {
		_ = f.Close()
	}
	return err
}

func (p *process) terminal(c stream.Command) error {
	pty, path, err := console.NewPty()
	if err != nil {
		return err
	}
	tty, err := os.OpenFile(path, os.O_RDWR|syscall.O_NOCTTY, 0)
	if err != nil {
		return err
	}
	defer tty.Close() //nolint:errcheck // the child has it
	p.pty = pty
	p.cmd.Stdin, p.cmd.Stdout, p.cmd.Stderr = tty, tty, tty
	p.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true, Setctty: true}
	if err := p.cmd.Start(); err != nil {
		return err
	}
	if c.Stdin != nil {
		go func() { _, _ = io.Copy(pty, c.Stdin) }()
	}
	p.copies.Go(func() { _, _ = io.Copy(c.Stdout, pty) })
	return nil
}

// Wait is refused with lost until the process is killed. It lasts no longer than a deadline less a moment, and has an error of its
// own then, as containerd's.
func (p *process) Wait(ctx context.Context) (uint32, error) {
	if p.lost != nil && !p.killed {
		return 0, p.lost
	}
	var over <-chan time.Time
	if end, ok := ctx.Deadline(); ok {
		over = time.After(time.Until(end) - time.Millisecond)
	}
	select {
	case <-over:
		return 0, errors.New("stream terminated")
	case <-p.exited:
		return uint32(p.cmd.ProcessState.ExitCode()), nil
	case <-ctx.Done():
		return 0, ctx.Err()
	}
}

func (p *process) Drain(ctx context.Context) error {
	select {
	case <-p.drained:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (p *process) Resize(_ context.Context, s stream.Size) error {
	return p.pty.Resize(console.WinSize{Width: s.Width, Height: s.Height})
}

func (p *process) CloseStdin(context.Context) error { return p.stdin.Close() }

func (p *process) Kill(context.Context) error {
	p.killed = true
	return p.cmd.Process.Kill()
}

func (p *process) Delete(context.Context) error {
	p.deleted = true
	_ = syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL) // what the command left
	<-p.exited
	if p.stdin != nil {
		_ = p.stdin.Close()
	}
	for _, f := range p.outputs {
		_ = f.Close()
	}
	if p.pty != nil {
		_ = p.pty.Close()
	}
	<-p.drained
	return nil
}

// serve starts a server on the host.
func serve(t *testing.T, h *host, change ...func(*stream.Config)) *stream.Server {
	t.Helper()
	cfg := stream.Default()
	cfg.DrainTimeout = 100 * time.Millisecond
	for _, f := range change {
		f(&cfg)
	}
	s, err := stream.New(cfg, h)
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
		h.mu.Lock()
		defer h.mu.Unlock()
		for _, p := range h.procs {
			<-p.exited
			if !p.deleted {
				t.Errorf("%v was not deleted", p.cmd.Args)
			}
		}
	})
	return s
}

var errBroken = errors.New("broken runtime")
