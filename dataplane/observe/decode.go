// SPDX-License-Identifier: Apache-2.0

package observe

import (
	"encoding/binary"
	"fmt"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/bpf"
	"github.com/nodeagent/nodeagent/dataplane/maps"
)

// decode reads an event of the ring buffer.
func decode(raw []byte) (Event, error) {
	var v bpf.DatapathEvent
	if _, err := binary.Decode(raw, binary.NativeEndian, &v); err != nil {
		return Event{}, fmt.Errorf("event of %d bytes: %w", len(raw), err)
	}
	at, err := wall(v.Time)
	return Event{
		Time:    at,
		Hook:    HookOf(bpf.DatapathHook(v.Hook)),
		Reason:  ReasonOf(bpf.DatapathReason(v.Reason)),
		Flow:    maps.TupleOf(v.T),
		To:      maps.TupleOf(v.N),
		IfIndex: int(v.Ifindex),
		Service: v.Svc,
		Len:     int(v.Len),
	}, err
}

// wall turns a moment of CLOCK_MONOTONIC into the time of day.
func wall(ns uint64) (time.Time, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &ts); err != nil {
		return time.Time{}, fmt.Errorf("read clock: %w", err)
	}
	return time.Now().Add(time.Duration(int64(ns) - ts.Nano())), nil
}
