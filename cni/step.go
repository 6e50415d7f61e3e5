// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"
)

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
			err = s.do(ctx)
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
