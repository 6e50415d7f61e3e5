// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"log/slog"
	"maps"
	"slices"
	"sync"
	"time"
)

// retryMin is the first pause after a sink refused; it doubles up to
// Config.RetryMax.
const retryMin = 100 * time.Millisecond

// topic is the way from changed objects to one sink. Changes only mark keys;
// one goroutine takes the marked keys, reads the newest state of each and
// hands it over. So changes that come while the sink works, or that come
// faster than Coalesce, fold into one. Keys of a batch that the sink refused
// wait apart, so that one bad object does not hold up the others.
type topic struct {
	name string
	// replace hands over everything. It returns the keys of everything, and
	// whether the sink now has the complete state, if only in part.
	replace func(ctx context.Context) (keys []string, whole bool, err error)
	// update hands over the newest state of keys.
	update func(ctx context.Context, keys []string) error
	// needs are the kinds that have to be complete before replace.
	needs []kind
	// early lets updates go out before the state is complete.
	early bool

	coalesce time.Duration
	retryMax time.Duration
	log      *slog.Logger
	metrics  *metrics

	wake chan struct{} // capacity 1
	// ready is closed when the sink has the complete state.
	ready chan struct{}

	mu      sync.Mutex
	dirty   map[string]struct{} // guarded by mu; changed
	refused map[string]struct{} // guarded by mu; offered in vain
	fault   error               // guarded by mu; why the sink refused last
}

func newTopic(name string, cfg Config, log *slog.Logger, m *metrics) *topic {
	return &topic{
		name: name, coalesce: cfg.Coalesce, retryMax: cfg.RetryMax,
		log: log.With("sink", name), metrics: m,
		wake: make(chan struct{}, 1), ready: make(chan struct{}),
		dirty: map[string]struct{}{}, refused: map[string]struct{}{},
	}
}

// mark notes that the object behind key changed.
func (t *topic) mark(key string) {
	t.mu.Lock()
	t.dirty[key] = struct{}{}
	t.mu.Unlock()
	select {
	case t.wake <- struct{}{}:
	default:
	}
}

// take empties the marks; with again it takes refused keys as well.
func (t *topic) take(again bool) []string {
	t.mu.Lock()
	defer t.mu.Unlock()
	if again {
		maps.Copy(t.dirty, t.refused)
		clear(t.refused)
	}
	keys := slices.Sorted(maps.Keys(t.dirty))
	clear(t.dirty)
	return keys
}

// run delivers until ctx ends. complete is closed when everything is known
// that replace needs.
func (t *topic) run(ctx context.Context, complete <-chan struct{}) {
	var wake <-chan struct{} // nil: nothing goes out before it is complete
	if t.early {
		wake = t.wake
	}
	retry := time.NewTimer(0)
	retry.Stop()
	defer retry.Stop()
	wait, waiting, full := retryMin, false, false
	for {
		again := false // refused keys too, and everything if that is still due
		select {
		case <-ctx.Done():
			return
		case <-complete:
			complete, wake, full, again = nil, t.wake, true, true
		case <-wake:
		case <-retry.C:
			again, waiting = true, false
		}
		taken := t.deliver(ctx, full && again, again)
		full = full && !isClosed(t.ready)
		switch {
		case taken && (again || !waiting):
			wait = retryMin
		case !taken && !waiting:
			retry.Reset(wait)
			wait, waiting = min(2*wait, t.retryMax), true
		}
		if !pause(ctx, t.coalesce) {
			return
		}
	}
}

// deliver hands over one batch and reports whether the sink took all of it.
func (t *topic) deliver(ctx context.Context, full, again bool) bool {
	keys := t.take(again)
	if !full && len(keys) == 0 {
		return true
	}
	start := time.Now()
	var whole bool
	var err error
	if full {
		keys, whole, err = t.replace(ctx)
	} else {
		err = t.update(ctx, keys)
	}
	t.metrics.batch(t.name, start, err)
	t.note(ctx, err, keys)
	if whole && !isClosed(t.ready) {
		close(t.ready)
		t.log.InfoContext(ctx, "complete state delivered", "keys", len(keys), "took", time.Since(start))
	}
	return err == nil
}

// note keeps the outcome, and the keys of a batch that was refused.
func (t *topic) note(ctx context.Context, err error, keys []string) {
	t.mu.Lock()
	first := t.fault == nil
	if err != nil {
		t.fault = err
		for _, k := range keys {
			t.refused[k] = struct{}{}
		}
	} else if len(t.refused) == 0 {
		t.fault = nil
	}
	t.mu.Unlock()
	if err != nil && first && ctx.Err() == nil {
		t.log.ErrorContext(ctx, "sink refused a batch, it is offered again until it is taken",
			"keys", len(keys), "err", err)
	}
}

func (t *topic) status() SinkStatus {
	t.mu.Lock()
	defer t.mu.Unlock()
	s := SinkStatus{Name: t.name, Ready: isClosed(t.ready), Pending: len(t.dirty) + len(t.refused)}
	if t.fault != nil {
		s.Fault = t.fault.Error()
	}
	return s
}

// SinkStatus is how far a sink agrees with the source.
type SinkStatus struct {
	Name string `json:"name"`
	// Ready reports that the sink has taken the complete state once.
	Ready bool `json:"ready"`
	// Pending counts changes that the sink has not taken yet.
	Pending int `json:"pending"`
	// Fault is why the sink refused the last batch; empty if it took it.
	Fault string `json:"fault,omitempty"`
}

// pause waits for d and reports whether ctx is still good.
func pause(ctx context.Context, d time.Duration) bool {
	timer := time.NewTimer(d)
	defer timer.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-timer.C:
		return true
	}
}
