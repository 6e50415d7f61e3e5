// SPDX-License-Identifier: Apache-2.0

package steps

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"go.opentelemetry.io/otel/trace"
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

// scope is the name under which spans of stages and undos are known.
const scope = "github.com/nodeagent/nodeagent/cri"

// clock is one call under way.
type clock struct {
	s    *Stages
	call string
	// span is the call's own, above those of its stages.
	span trace.Span

	mu           sync.Mutex // guards what follows; stages may overlap in a call that has several goroutines
	began, since time.Time
	stage        string
	stageSpan    trace.Span // nil before the first stage, and in calls that are not traced
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
	c := &clock{s: s, call: call, span: trace.SpanFromContext(ctx), began: now, since: now}
	return context.WithValue(ctx, key{}, c), func() { c.end(ctx, id) }
}

// Stage ends the stage of the call that is under way and begins another. Without Time it does nothing. What belongs to the stage
// runs on the context that it returns, so that its spans are below the stage's.
func Stage(ctx context.Context, name string) context.Context {
	c, ok := ctx.Value(key{}).(*clock)
	if !ok {
		return ctx
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.next(name)
	if !c.span.IsRecording() {
		return ctx
	}
	_, c.stageSpan = c.span.TracerProvider().Tracer(scope).Start(trace.ContextWithSpan(ctx, c.span), name)
	return trace.ContextWithSpan(ctx, c.stageSpan)
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
	if c.stageSpan != nil {
		c.stageSpan.End()
		c.stageSpan = nil
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
