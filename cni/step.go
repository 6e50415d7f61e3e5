// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// scope is the name under which the spans of verbs and their steps are known.
const scope = "github.com/nodeagent/nodeagent/cni"

// begin opens a span below that of ctx. The function it returns ends it, with the error that the pointer leads to.
func begin(ctx context.Context, name string) (context.Context, func(err *error)) {
	ctx, span := trace.SpanFromContext(ctx).TracerProvider().Tracer(scope).Start(ctx, name)
	return ctx, func(err *error) {
		if *err != nil {
			span.SetStatus(codes.Error, (*err).Error())
		}
		span.End()
	}
}

// verb opens the span of a verb on an attachment and starts its clock; defer the function it returns.
func (n *Network) verb(ctx context.Context, name string) (context.Context, func(err *error)) {
	start := time.Now()
	ctx, end := begin(ctx, "network "+name)
	return ctx, func(err *error) {
		n.metrics.observe(name, start, *err)
		end(err)
	}
}

// undoTimeout bounds the undoing of a verb that failed.
const undoTimeout = 30 * time.Second

// step is one part of a verb. Undo must be right whether do was never begun,
// failed half-way or succeeded.
type step struct {
	name string
	do   func(ctx context.Context) error
	// undo may be nil.
	undo func(ctx context.Context) error
	// anchor marks the step whose undo removes the record: it is undone only if
	// all others were, so that what is left can be found.
	anchor bool
}

// errCrash makes runSteps return as if the process had ended there: no undo.
var errCrash = errors.New("crash")

// runSteps does the steps in order. When one fails, it and those before are
// undone in reverse, on a context of their own and past errors.
func (n *Network) runSteps(ctx context.Context, steps []step) error {
	for i, s := range steps {
		err := n.failpoint(ctx, s.name)
		if err == nil {
			err = context.Cause(ctx)
		}
		if err == nil {
			err = s.run(ctx)
		}
		if err == nil {
			continue
		}
		if errors.Is(err, errCrash) {
			return err
		}
		return errors.Join(fmt.Errorf("%s: %w", s.name, err), undo(ctx, steps[:i+1]))
	}
	return nil
}

// run does the step in a span.
func (s step) run(ctx context.Context) (err error) {
	ctx, end := begin(ctx, s.name)
	defer end(&err)
	return s.do(ctx)
}

func undo(ctx context.Context, steps []step) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTimeout)
	defer cancel()
	var errs []error
	for _, s := range slices.Backward(steps) {
		if s.undo == nil || s.anchor && len(errs) > 0 {
			continue
		}
		if err := s.undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", s.name, err))
		}
	}
	return errors.Join(errs...)
}
