// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"runtime"
	"time"
)

// turnWait is the longest that heavy work waits for its turn.
const turnWait = 2 * time.Second

// turns keep heavy work, mkfs and fsck of many volumes at once, from taking all
// processors: as many go at once as there are, and light verbs find time between
// them. It is manners, no lock: who has waited for turnWait goes, so that work
// which hangs on a dead device holds up nobody for longer.
type turns chan struct{}

func newTurns() turns { return make(turns, max(2, runtime.GOMAXPROCS(0))) }

// take waits for a turn; done ends it.
func (t turns) take(ctx context.Context) (done func()) {
	timer := time.NewTimer(turnWait)
	defer timer.Stop()
	select {
	case t <- struct{}{}:
		return func() { <-t }
	case <-timer.C:
	case <-ctx.Done():
	}
	return func() {}
}
