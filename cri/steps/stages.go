// SPDX-License-Identifier: Apache-2.0

package steps

import (
	"context"
	"log/slog"
	"sync"
	"time"
)

// Slow is how long a call takes before its stages are worth a line in the log.
const Slow = time.Second

// Stages times the stages of calls. A nil *Stages times none.
type Stages struct {
	// Record takes the duration of one stage of one call.
	Record func(call, stage string, took time.Duration)
	// Log names the stage that made a call slow.
	Log *slog.Logger
}

// clock is one call under way.
type clock struct {
	s    *Stages
	call string

	mu           sync.Mutex // guards what follows; stages may overlap in a call that has several goroutines
	began, since time.Time
	stage        string
	longest      string
	took         time.Duration
}

type key struct{}

// Time begins to time a call, whose stages Stage then names on the context. The returned function ends it; id says of what.
func (s *Stages) Time(ctx context.Context, call, id string) (context.Context, func()) {
	if s == nil {
		return ctx, func() {}
	}
	now := time.Now()
	c := &clock{s: s, call: call, began: now, since: now}
	return context.WithValue(ctx, key{}, c), func() { c.end(ctx, id) }
}

// Stage ends the stage of the call that is under way and begins another. Without Time it does nothing.
func Stage(ctx context.Context, name string) {
	if c, ok := ctx.Value(key{}).(*clock); ok {
		c.mu.Lock()
		defer c.mu.Unlock()
		c.next(name)
	}
}

// next is called with the lock held.
func (c *clock) next(name string) {
	now := time.Now()
	if c.stage != "" {
		took := now.Sub(c.since)
		c.s.Record(c.call, c.stage, took)
		if took > c.took {
			c.longest, c.took = c.stage, took
		}
	}
	c.stage, c.since = name, now
}

func (c *clock) end(ctx context.Context, id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next("")
	if all := time.Since(c.began); all >= Slow && c.s.Log != nil {
		c.s.Log.WarnContext(ctx, "slow call", "call", c.call, "id", id, "took", all, "stage", c.longest, "stage_took", c.took)
	}
}
