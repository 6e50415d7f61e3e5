// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"time"

	"github.com/nodeagent/nodeagent/bpf"
	"github.com/nodeagent/nodeagent/dataplane/maps"
	"github.com/nodeagent/nodeagent/dataplane/observe"
)

const (
	// portsLook is the pause between two looks at flows that found no port.
	portsLook = time.Second
	// portsPause is how long a sweep for their sake is not repeated: a walk over
	// a large table takes a second of a processor.
	portsPause = 5 * time.Second
	// hurry is how many times sooner such a sweep forgets what holds a port and is
	// no connection that goes on.
	hurry = 4
)

// watchPorts sweeps the table of flows, and sooner than usual, when flows that
// leave with the node's address found no free port.
func (d *Dataplane) watchPorts(ctx context.Context) {
	tick := time.NewTicker(portsLook)
	defer tick.Stop()
	var last uint64
	var swept time.Time
	for first := true; ; first = false {
		n, err := d.portless()
		if err != nil {
			d.log.ErrorContext(ctx, "look for flows without a port", "err", err)
		}
		if n > last && !first && time.Since(swept) > portsPause {
			d.log.WarnContext(ctx, "flows found no free port", "packets", n-last)
			swept = time.Now()
			d.portsShort.Store(true)
			wake(d.sweepNow)
		}
		last = n
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
	}
}

// portless is how many packets were dropped because there was no free port.
func (d *Dataplane) portless() (sum uint64, err error) {
	for h := range bpf.DatapathHookHOOK_MAX {
		c, err := observe.CounterOf(d.kernel.Counters, h, bpf.DatapathReasonDROP_SNAT_PORTS)
		if err != nil {
			return 0, err
		}
		sum += c.Packets
	}
	return sum, nil
}

// pressed is the timeout of a flow while ports are short.
func pressed(f maps.Flow, t time.Duration, ongoing bool) time.Duration {
	if ongoing || !f.Is(bpf.DatapathCtFlagsCT_SNAT) {
		return t
	}
	return t / hurry
}
