// SPDX-License-Identifier: Apache-2.0

package stream

import (
	"context"
	"errors"
	"io"
	"sync"
	"time"
)

// ErrSlow ends the attach of a client that took nothing for too long.
var ErrSlow = errors.New("client does not take the container's output")

// slowClient is how long a full queue may hold up the container.
const slowClient = 10 * time.Second

// queued is how many writes of the container wait for one client.
const queued = 64

// Control reaches the container's process behind a Hub.
type Control struct {
	// Stdin takes the container's input; nil when it has none.
	Stdin io.Writer
	// StdinOnce closes the input when the first client that gave input ends.
	StdinOnce bool
	// CloseStdin lets the container read the end of its input.
	CloseStdin func(ctx context.Context) error
	// Resize sets the terminal's size; nil without a terminal.
	Resize func(ctx context.Context, size Size) error
}

// Hub is the meeting point of a container's streams and its attached clients.
// Output costs nothing while nobody is attached.
type Hub struct {
	ctl Control

	// mu guards the clients.
	mu      sync.RWMutex
	clients map[*client]struct{}
	closed  bool
}

// NewHub makes a hub without clients.
func NewHub(ctl Control) *Hub {
	return &Hub{ctl: ctl, clients: map[*client]struct{}{}}
}

// Stdout returns the writer that takes the container's output, for logs.Pump.
func (h *Hub) Stdout() io.Writer { return tee{h: h} }

// Stderr returns the writer that takes the container's errors.
func (h *Hub) Stderr() io.Writer { return tee{h: h, stderr: true} }

// Close ends all attaches after they have got what was written; call it when
// the container's output has ended.
func (h *Hub) Close() {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.closed = true
	for c := range h.clients {
		c.finish()
	}
}

// chunk is one write of the container.
type chunk struct {
	data   []byte
	stderr bool
}

// client is one attached session.
type client struct {
	s     Streams
	queue chan chunk
	end   chan struct{} // closed by finish: no more output follows
	once  sync.Once
	gone  chan struct{} // closed when the session takes no more
	slow  chan struct{} // closed by the tee that gave up
}

func (c *client) finish() { c.once.Do(func() { close(c.end) }) }

// tee is one output stream of the container.
type tee struct {
	h      *Hub
	stderr bool
}

// Write queues p for each client; it never fails, and blocks no longer than
// slowClient for one that takes nothing, which is then detached.
func (t tee) Write(p []byte) (int, error) {
	t.h.mu.RLock()
	if len(t.h.clients) == 0 {
		t.h.mu.RUnlock()
		return len(p), nil
	}
	to := make([]*client, 0, len(t.h.clients))
	for c := range t.h.clients {
		if (t.stderr && c.s.Stderr != nil) || (!t.stderr && c.s.Stdout != nil) {
			to = append(to, c)
		}
	}
	t.h.mu.RUnlock()
	item := chunk{data: append([]byte(nil), p...), stderr: t.stderr}
	for _, c := range to {
		t.h.give(c, item)
	}
	return len(p), nil
}

// give queues one chunk for one client or detaches it.
func (h *Hub) give(c *client, item chunk) {
	select {
	case c.queue <- item:
		return
	case <-c.gone:
		return
	default:
	}
	timer := time.NewTimer(slowClient)
	defer timer.Stop()
	select {
	case c.queue <- item:
	case <-c.gone:
	case <-timer.C:
		if h.remove(c) {
			close(c.slow)
		}
	}
}

// remove detaches c; false when it was detached before.
func (h *Hub) remove(c *client) bool {
	h.mu.Lock()
	defer h.mu.Unlock()
	_, ok := h.clients[c]
	delete(h.clients, c)
	return ok
}

// Attach connects a client until the container's output ends, the client goes
// or, without output streams, its input ends.
func (h *Hub) Attach(ctx context.Context, s Streams) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := &client{
		s: s, queue: make(chan chunk, queued),
		end: make(chan struct{}), gone: make(chan struct{}), slow: make(chan struct{}),
	}
	h.mu.Lock()
	if h.closed {
		c.finish()
	} else {
		h.clients[c] = struct{}{}
	}
	h.mu.Unlock()
	defer h.remove(c)
	defer close(c.gone)

	// The copy of the input ends at the latest when the library closes the
	// connection after our return; nobody can interrupt a Read.
	inputEnded := make(chan bool, 1)
	if s.Stdin != nil && h.ctl.Stdin != nil {
		go func() { inputEnded <- h.copyInput(ctx, s) }()
	}
	var wg sync.WaitGroup
	defer wg.Wait()
	defer cancel()
	if s.Resize != nil && h.ctl.Resize != nil {
		wg.Go(func() { h.resize(ctx, s.Resize) })
	}
	return c.deliver(ctx, inputEnded, s.Stdout == nil && s.Stderr == nil)
}

// deliver writes the queue to the client.
func (c *client) deliver(ctx context.Context, inputEnded <-chan bool, inputOnly bool) error {
	for {
		select {
		case item := <-c.queue:
			if !c.write(item) {
				return nil
			}
		case <-c.end:
			c.rest()
			return nil
		case <-c.slow:
			return ErrSlow
		case goes := <-inputEnded:
			inputEnded = nil
			if inputOnly || !goes {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// rest delivers what was queued before the end.
func (c *client) rest() {
	for {
		select {
		case item := <-c.queue:
			if !c.write(item) {
				return
			}
		default:
			return
		}
	}
}

// write gives one chunk to the client; false when the client has gone.
func (c *client) write(item chunk) bool {
	w := c.s.Stdout
	if item.stderr {
		w = c.s.Stderr
	}
	_, err := w.Write(item.data)
	return err == nil
}

// copyInput copies the client's input and says whether the session goes on
// without it: when the input was the container's only one and has ended for
// the container too. Otherwise the end of the input is the only sign that a
// client without a terminal has gone.
func (h *Hub) copyInput(ctx context.Context, s Streams) bool {
	_, err := io.Copy(h.ctl.Stdin, s.Stdin)
	if !h.ctl.StdinOnce || s.TTY || h.ctl.CloseStdin == nil {
		return false
	}
	return h.ctl.CloseStdin(ctx) == nil && err == nil
}

// resize passes on the terminal's sizes.
func (h *Hub) resize(ctx context.Context, sizes <-chan Size) {
	for {
		select {
		case <-ctx.Done():
			return
		case size, ok := <-sizes:
			if !ok {
				return
			}
			_ = h.ctl.Resize(ctx, size) // the process may have ended
		}
	}
}
