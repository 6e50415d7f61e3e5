// SPDX-License-Identifier: Apache-2.0

// Package flight knows which calls run now: a call that is made again while it
// runs joins the first one instead of failing, and calls that change the same
// object wait for each other.
//
// The kubelet gives up on a call after its own deadline and repeats it. A call
// therefore does not end with its first caller: it runs on, and the
// repetition gets its result.
package flight

import (
	"context"
	"fmt"
	"sync"
	"time"
)

// Group runs calls by key. The zero value is not usable; see NewGroup.
type Group[T any] struct {
	limit time.Duration

	// mu guards what follows.
	mu      sync.Mutex
	calls   map[string]*call[T]
	closed  bool
	stop    chan struct{}
	running sync.WaitGroup
}

type call[T any] struct {
	done chan struct{}
	val  T
	err  error
	// arg is what the first caller asked for.
	arg any
}

// NewGroup returns a group whose calls run for at most limit.
func NewGroup[T any](limit time.Duration) *Group[T] {
	return &Group[T]{limit: limit, calls: map[string]*call[T]{}, stop: make(chan struct{})}
}

// Do runs fn, or joins the run of the same key that is under way, and waits
// for its result or the end of ctx. fn's context keeps ctx's values but ends
// only with the group or its limit.
func (g *Group[T]) Do(ctx context.Context, key string, fn func(ctx context.Context) (T, error)) (T, error) {
	return g.DoSame(ctx, key, nil, nil, fn)
}

// DoSame is Do for calls whose key does not tell all: same compares what the
// run under way was asked for with arg, and its error refuses to join.
func (g *Group[T]) DoSame(ctx context.Context, key string, arg any, same func(running any) error,
	fn func(ctx context.Context) (T, error),
) (T, error) {
	var zero T
	g.mu.Lock()
	c, ok := g.calls[key]
	switch {
	case g.closed:
		g.mu.Unlock()
		return zero, fmt.Errorf("%s: %w", key, context.Canceled)
	case ok && same != nil:
		if err := same(c.arg); err != nil {
			g.mu.Unlock()
			return zero, err
		}
	case !ok:
		c = &call[T]{done: make(chan struct{}), arg: arg}
		g.calls[key] = c
		g.running.Add(1)
		go g.run(ctx, key, c, fn)
	}
	g.mu.Unlock()
	select {
	case <-c.done:
		return c.val, c.err
	case <-ctx.Done():
		return zero, fmt.Errorf("still running: %w", ctx.Err())
	}
}

func (g *Group[T]) run(ctx context.Context, key string, c *call[T], fn func(ctx context.Context) (T, error)) {
	defer g.running.Done()
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), g.limit)
	defer cancel()
	go func() {
		select {
		case <-g.stop:
			cancel()
		case <-ctx.Done():
		}
	}()
	finished := false
	defer func() {
		if !finished {
			// fn panics: the joiners must not wait for ever; the chain's
			// recover does not reach this goroutine, so keep the panic's words.
			c.err = fmt.Errorf("internal error in %s: %v", key, recover())
		}
		g.mu.Lock()
		delete(g.calls, key)
		g.mu.Unlock()
		close(c.done)
	}()
	c.val, c.err = fn(ctx)
	finished = true
}

// Close cancels what runs, waits for it and refuses what comes.
func (g *Group[T]) Close() {
	g.mu.Lock()
	if !g.closed {
		g.closed = true
		close(g.stop)
	}
	g.mu.Unlock()
	g.running.Wait()
}

// Locks are one mutex per key, waited for under a context.
type Locks struct {
	// mu guards held.
	mu   sync.Mutex
	held map[string]*lock
}

type lock struct {
	turn chan struct{} // holds one token while free
	refs int
}

// NewLocks returns an empty set.
func NewLocks() *Locks { return &Locks{held: map[string]*lock{}} }

// Lock waits for the key; the returned function gives it back.
func (l *Locks) Lock(ctx context.Context, key string) (unlock func(), err error) {
	l.mu.Lock()
	k, ok := l.held[key]
	if !ok {
		k = &lock{turn: make(chan struct{}, 1)}
		k.turn <- struct{}{}
		l.held[key] = k
	}
	k.refs++
	l.mu.Unlock()
	select {
	case <-k.turn:
		return func() {
			k.turn <- struct{}{}
			l.drop(key, k)
		}, nil
	case <-ctx.Done():
		l.drop(key, k)
		return nil, fmt.Errorf("wait for another call on %s: %w", key, ctx.Err())
	}
}

func (l *Locks) drop(key string, k *lock) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if k.refs--; k.refs == 0 {
		delete(l.held, key)
	}
}
