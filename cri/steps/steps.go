// SPDX-License-Identifier: Apache-2.0

// Package steps runs a table of steps that either all happen or leave the
// world as it was: undo is written beside do and cannot be forgotten.
package steps

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
)

// Step is one side effect and its reversal.
type Step struct {
	// Name appears in errors: "<name>: …".
	Name string
	// Do has the effect. It may leave part of it when it fails.
	Do func(ctx context.Context) error
	// Undo takes back whatever Do did, wholly, in part or not at all; it may be
	// called when Do never ran, and again after it succeeded. Nil: nothing to undo.
	Undo func(ctx context.Context) error
}

// UndoTimeout bounds the whole undo of one table.
const UndoTimeout = 2 * time.Minute

// Error tells which step failed and what could not be undone.
type Error struct {
	Step string
	Err  error
	// Undo is nil when the world is as it was before.
	Undo error
}

// Error names the step; the undo's failure follows.
func (e *Error) Error() string {
	if e.Undo != nil {
		return fmt.Sprintf("%s: %v (and undo: %v)", e.Step, e.Err, e.Undo)
	}
	return fmt.Sprintf("%s: %v", e.Step, e.Err)
}

// Unwrap gives the cause; what undo met does not change the error's kind.
func (e *Error) Unwrap() error { return e.Err }

// Run does the steps in order. When one fails, or ctx ends between two, it and
// those before it are undone in reverse on a context of their own, and Run
// returns an *Error.
func Run(ctx context.Context, table []Step) error {
	for i, s := range table {
		err := ctx.Err()
		if err == nil {
			err = do(Stage(ctx, s.Name), s)
		}
		if err != nil {
			return &Error{Step: s.Name, Err: err, Undo: Undo(ctx, table[:i+1])}
		}
	}
	return nil
}

// do does a step in its span.
func do(ctx context.Context, s Step) error {
	err := s.Do(ctx)
	if err != nil {
		trace.SpanFromContext(ctx).SetStatus(codes.Error, err.Error())
	}
	return err
}

// Undo takes the whole table back in reverse, going on past errors, even when
// ctx has ended.
func Undo(ctx context.Context, table []Step) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), UndoTimeout)
	defer cancel()
	var errs []error
	for _, s := range slices.Backward(table) {
		if s.Undo == nil {
			continue
		}
		if err := undo(ctx, s); err != nil {
			errs = append(errs, fmt.Errorf("undo %s: %w", s.Name, err))
		}
	}
	return errors.Join(errs...)
}

// undo takes one step back, in a span.
func undo(ctx context.Context, s Step) error {
	ctx, span := trace.SpanFromContext(ctx).TracerProvider().Tracer(scope).Start(ctx, "undo "+s.Name)
	defer span.End()
	err := s.Undo(ctx)
	if err != nil {
		span.SetStatus(codes.Error, err.Error())
	}
	return err
}
