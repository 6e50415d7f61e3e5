// SPDX-License-Identifier: Apache-2.0

package lab

import (
	"context"
	"fmt"
	"os"
	"time"

	"github.com/nodeagent/nodeagent/tests/bench/figures"
)

// Names of the peers that most areas have.
const (
	Nodeagent  = "nodeagent"
	Containerd = "containerd"
)

// Run is one area being measured.
type Run struct {
	Config
	// Area receives the figures.
	Area *figures.Area
	// Dir is a directory of the run's own for logs and files; removed after it.
	Dir string
}

// Progress overwrites one line on a terminal with what is going on.
func (r *Run) Progress(what string, n, of int) {
	if fi, err := os.Stderr.Stat(); err != nil || fi.Mode()&os.ModeCharDevice == 0 {
		return
	}
	fmt.Fprintf(os.Stderr, "\r\x1b[K  %s: %s %d/%d", r.Area.Name, what, n, of)
	if n >= of {
		fmt.Fprint(os.Stderr, "\r\x1b[K")
	}
}

// Pause waits for d, as a measurement of rest does.
func Pause(ctx context.Context, d time.Duration) error {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-t.C:
		return nil
	}
}

// Until polls cond until it is nil; at ctx's end the error has cond's last.
func Until(ctx context.Context, every time.Duration, cond func() error) error {
	t := time.NewTicker(every)
	defer t.Stop()
	for {
		err := cond()
		if err == nil {
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("%w; at last: %w", ctx.Err(), err)
		case <-t.C:
		}
	}
}
