// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// step is one side effect of a verb and how to take it back. A nil undo means
// that doing it again, or leaving it, is harmless.
type step struct {
	name string
	do   func(ctx context.Context) error
	undo func(ctx context.Context) error
}

// undoTime bounds what a verb may spend on taking itself back after its caller
// has gone.
const undoTime = 30 * time.Second

// errCrash, returned by a test's checkpoint, ends the verb on the spot as a
// crash would: nothing is undone.
var errCrash = errors.New("crash")

// run does the steps in order. When one fails, it and those before it are undone
// in reverse; what cannot be undone is reported and left to recovery.
func (m *Manager) run(ctx context.Context, id, verb string, steps []step) error {
	for i, s := range steps {
		m.locks.at(id, s.name)
		err := ctx.Err()
		if err == nil && m.deps.Checkpoint != nil {
			err = m.deps.Checkpoint(verb, s.name)
		}
		if errors.Is(err, errCrash) {
			return err
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
		err = fmt.Errorf("%s %s: %s: %w", verb, id, s.name, err)
		return errors.Join(err, m.undo(ctx, id, steps[:i+1]))
	}
	return nil
}

// run does the step in a span below the call's.
func (s step) run(ctx context.Context) error {
	ctx, span := trace.SpanFromContext(ctx).TracerProvider().Tracer("github.com/nodeagent/nodeagent/csi").Start(ctx, s.name)
	defer span.End()
	err := s.do(ctx)
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	return err
}

func (m *Manager) undo(ctx context.Context, id string, steps []step) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), undoTime)
	defer cancel()
	var errs []error
	for _, s := range slices.Backward(steps) {
		if s.undo == nil {
			continue
		}
		m.locks.at(id, "undo "+s.name)
		if err := s.undo(ctx); err != nil {
			errs = append(errs, fmt.Errorf("%w: undo %s: %w", ErrHalfDone, s.name, err))
		}
	}
	return errors.Join(errs...)
}
