// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"slices"
	"sync"
	"time"
)

// locks serialise the verbs of one object; different objects never wait for
// each other.
type locks struct {
	wait time.Duration
	mu   sync.Mutex
	// held by object id
	held map[string]*holder
}

type holder struct {
	verb  string
	since time.Time
	// step is guarded by locks.mu
	step string
	done chan struct{}
}

func newLocks(wait time.Duration) *locks { return &locks{wait: wait, held: map[string]*holder{}} }

// lock takes the object for verb, or waits a moment and says who has it.
func (l *locks) lock(ctx context.Context, id, verb string) (release func(), err error) {
	timer := time.NewTimer(l.wait)
	defer timer.Stop()
	for {
		l.mu.Lock()
		h := l.held[id]
		if h == nil {
			mine := &holder{verb: verb, since: time.Now(), step: "start", done: make(chan struct{})}
			l.held[id] = mine
			l.mu.Unlock()
			return func() { l.release(id, mine) }, nil
		}
		busy := &BusyError{ID: id, Verb: h.verb, Step: h.step, Since: h.since}
		l.mu.Unlock()
		select {
		case <-h.done:
		case <-timer.C:
			return nil, busy
		case <-ctx.Done():
			return nil, busy
		}
	}
}

func (l *locks) release(id string, h *holder) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.held[id] == h {
		delete(l.held, id)
		close(h.done)
	}
}

// lockAll takes several objects in one order, so that two callers never wait
// for each other in a circle.
func (l *locks) lockAll(ctx context.Context, ids []string, verb string) (release func(), err error) {
	ids = slices.Compact(slices.Sorted(slices.Values(ids)))
	var got []func()
	release = func() {
		for _, r := range slices.Backward(got) {
			r()
		}
	}
	for _, id := range ids {
		r, err := l.lock(ctx, id, verb)
		if err != nil {
			release()
			return nil, err
		}
		got = append(got, r)
	}
	return release, nil
}

// at notes the step that a verb has reached, for those who wait.
func (l *locks) at(id, step string) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if h := l.held[id]; h != nil {
		h.step = step
	}
}

// Operation is a verb at work.
type Operation struct {
	ID, Verb, Step string
	Since          time.Time
}

func (l *locks) list() []Operation {
	l.mu.Lock()
	defer l.mu.Unlock()
	out := make([]Operation, 0, len(l.held))
	for id, h := range l.held {
		out = append(out, Operation{ID: id, Verb: h.verb, Step: h.step, Since: h.since})
	}
	slices.SortFunc(out, func(a, b Operation) int { return a.Since.Compare(b.Since) })
	return out
}
