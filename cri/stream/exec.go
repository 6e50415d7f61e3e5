// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"fmt"
	"io"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// MaxCapture is how much of each stream ExecSync returns; the rest is read and
// dropped, as the CRI demands.
const MaxCapture = 16 << 20

// cleanup bounds what is done for a session after its end.
const cleanup = 10 * time.Second

// trailing is more than the pipes and buffers between a command and its client
// hold: output beyond it, after the command's end, is somebody else's.
const trailing = 1 << 20

// drainPeriods is how many drain timeouts output may go on to trickle.
const drainPeriods = 5

// ExecSync runs a command and returns what it printed. A timeout above zero
// that passes kills the command and is context.DeadlineExceeded. Output that a
// descendant holds open is waited for no longer than the drain timeout.
func (s *Server) ExecSync(ctx context.Context, containerID string, args []string, timeout time.Duration) (*runtimeapi.ExecSyncResponse, error) {
	if len(args) == 0 {
		return nil, errors.New("exec: no command")
	}
	var stdout, stderr capture
	run := execution{rt: s.rt, drain: s.cfg.DrainTimeout, timeout: timeout}
	code, err := run.run(ctx, containerID, Command{Args: args, Stdout: &stdout, Stderr: &stderr})
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ExecSyncResponse{
		Stdout: stdout.bytes(), Stderr: stderr.bytes(), ExitCode: int32(code), //nolint:gosec // exit codes fit a byte
	}, nil
}

// execution is one exec from start to the end of its output.
type execution struct {
	rt      Runtime
	drain   time.Duration
	timeout time.Duration // zero: none
	resize  <-chan Size
}

// run starts the command, waits for it and its output, and cleans up.
func (x *execution) run(ctx context.Context, id string, cmd Command) (code uint32, retErr error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	var act activity
	cmd.Stdout, cmd.Stderr = act.watch(cmd.Stdout), act.watch(cmd.Stderr)
	eof := make(chan struct{})
	if cmd.Stdin != nil {
		cmd.Stdin = &endNotifier{r: cmd.Stdin, ended: eof}
	}
	p, err := x.rt.Exec(ctx, id, cmd)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	defer func() {
		dctx, dcancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
		defer dcancel()
		if err := p.Delete(dctx); err != nil && retErr == nil {
			retErr = fmt.Errorf("delete exec in container %s: %w", id, err)
		}
	}()
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	wg.Go(func() { x.serveControls(ctx, p, eof) })
	code, err = x.wait(ctx, p)
	if err != nil {
		return 0, fmt.Errorf("exec in container %s: %w", id, err)
	}
	x.drainOutput(ctx, p, &act)
	return code, nil
}

// serveControls passes on the end of the input and the terminal's sizes.
func (x *execution) serveControls(ctx context.Context, p Process, eof <-chan struct{}) {
	for resize := x.resize; ; {
		select {
		case <-ctx.Done():
			return
		case <-eof:
			eof = nil
			_ = p.CloseStdin(ctx) // the command may have ended: Wait tells
		case size, ok := <-resize:
			if !ok {
				resize = nil
				continue
			}
			_ = p.Resize(ctx, size)
		}
	}
}

// wait waits for the command and kills it when its time is over or it cannot be waited for.
func (x *execution) wait(ctx context.Context, p Process) (uint32, error) {
	wctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if x.timeout > 0 {
		// No deadline: containerd would be told of it, and could end the call a moment before wctx ends.
		over := fmt.Errorf("command timed out after %s: %w", x.timeout, context.DeadlineExceeded)
		defer time.AfterFunc(x.timeout, func() { cancel(over) }).Stop()
	}
	code, err := p.Wait(wctx)
	if err == nil {
		return code, nil
	}
	if wctx.Err() != nil {
		err = context.Cause(wctx)
	}
	kctx, kcancel := context.WithTimeout(context.WithoutCancel(ctx), cleanup)
	defer kcancel()
	if killErr := p.Kill(kctx); killErr != nil {
		return 0, errors.Join(err, fmt.Errorf("kill: %w", killErr))
	}
	if _, waitErr := p.Wait(kctx); waitErr != nil {
		return 0, errors.Join(err, fmt.Errorf("wait for killed command: %w", waitErr))
	}
	return 0, err
}

// drainOutput waits for the end of the output of a command that has ended. It
// gives up when nothing came for the drain timeout, or little for several:
// then a descendant holds the pipe. A client that is slow to take what was
// read is waited for.
func (x *execution) drainOutput(ctx context.Context, p Process, act *activity) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	drained := make(chan struct{})
	go func() {
		defer close(drained)
		_ = p.Drain(ctx)
	}()
	defer func() {
		cancel()
		<-drained
	}()
	tick := time.NewTicker(x.drain)
	defer tick.Stop()
	start := act.total.Load()
	for last, periods := start, 0; periods < drainPeriods; {
		select {
		case <-drained:
			return
		case <-tick.C:
		}
		if act.writing.Load() > 0 {
			continue // the client is slow, not the output
		}
		now := act.total.Load()
		if now == last || now-start > trailing {
			return
		}
		last = now
		periods++
	}
}

// activity counts what moves to the client.
type activity struct {
	total   atomic.Int64
	writing atomic.Int32
}

// watch wraps w; nil stays nil.
func (a *activity) watch(w io.Writer) io.Writer {
	if w == nil {
		return nil
	}
	return &watched{a: a, w: w}
}

// watched is one output. When the client has gone it swallows the rest, so
// that the command never blocks on a pipe that nobody empties.
type watched struct {
	a    *activity
	w    io.Writer
	gone atomic.Bool
}

func (w *watched) Write(p []byte) (int, error) {
	if w.gone.Load() {
		return len(p), nil
	}
	w.a.writing.Add(1)
	_, err := w.w.Write(p)
	w.a.writing.Add(-1)
	w.a.total.Add(int64(len(p)))
	if err != nil {
		w.gone.Store(true)
	}
	return len(p), nil
}

// endNotifier closes ended when the copier has read the end of the input; all
// before it has been copied by then.
type endNotifier struct {
	r     io.Reader
	ended chan struct{}
	once  sync.Once
	err   error
}

func (e *endNotifier) Read(p []byte) (int, error) {
	if e.err != nil {
		e.once.Do(func() { close(e.ended) })
		return 0, e.err
	}
	n, err := e.r.Read(p)
	if err == nil {
		return n, nil
	}
	e.err = err
	if n > 0 {
		return n, nil // the end is told by the next Read
	}
	e.once.Do(func() { close(e.ended) })
	return 0, err
}

// capture keeps the first MaxCapture bytes.
type capture struct {
	mu  sync.Mutex // writes and bytes may overlap when draining gave up
	buf []byte
}

func (c *capture) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.buf = append(c.buf, p[:min(len(p), MaxCapture-len(c.buf))]...)
	return len(p), nil
}

// bytes returns what was kept; later writes do not change it.
func (c *capture) bytes() []byte {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.Clip(c.buf)
}
