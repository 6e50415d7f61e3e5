// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"time"
)

// part is one thing that is started in order and stopped in reverse. A nil
// start or stop has nothing to do.
type part struct {
	name  string
	start func(context.Context) error
	stop  func(context.Context) error
}

// slowPart is when a start or stop is worth a line in the log.
const slowPart = 2 * time.Second

// startAll starts the parts in order. When one fails, those already started
// are stopped in reverse and the failure is returned with what that stop said.
// A cancelled ctx counts as a failure between two parts.
func startAll(ctx context.Context, log *slog.Logger, parts []part, stopTimeout time.Duration) error {
	for i, p := range parts {
		err := ctx.Err()
		if err == nil && p.start != nil {
			err = timed(ctx, log, "start", p.name, p.start)
		}
		if err != nil {
			return errors.Join(fmt.Errorf("start %s: %w", p.name, err),
				stopAll(ctx, log, parts[:i], stopTimeout))
		}
	}
	return nil
}

// stopAll stops the parts in reverse, goes on past errors and joins them. It
// runs on a context of its own, bounded by timeout, so that a cancelled ctx
// does not cut it short.
func stopAll(ctx context.Context, log *slog.Logger, parts []part, timeout time.Duration) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), timeout)
	defer cancel()
	var errs []error
	for _, p := range slices.Backward(parts) {
		if p.stop == nil {
			continue
		}
		if err := timed(ctx, log, "stop", p.name, p.stop); err != nil {
			errs = append(errs, fmt.Errorf("stop %s: %w", p.name, err))
		}
	}
	return errors.Join(errs...)
}

func timed(ctx context.Context, log *slog.Logger, verb, name string, f func(context.Context) error) error {
	begin := time.Now()
	err := f(ctx)
	took := time.Since(begin)
	if took >= slowPart {
		log.InfoContext(ctx, "slow part", "verb", verb, "part", name, "took", took)
	} else {
		log.DebugContext(ctx, "part done", "verb", verb, "part", name, "took", took)
	}
	return err
}
