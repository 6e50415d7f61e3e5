// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"fmt"
	"time"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
)

// rateBurst is how long a pod may send at the speed of the machine after a
// pause: long enough for TCP to see a rate and not a row of losses.
const rateBurst = 50 * time.Millisecond

// minBurst lets the largest packet that segmentation offload makes pass.
const minBurst = 128 << 10

// Rates are the buckets that limit endpoints: at slot n what the endpoint sends,
// at n+1 what it gets. Slot 0 is nobody's.
type Rates struct{ m *ebpf.Map }

// NewRates wraps the map "rates".
func NewRates(m *ebpf.Map) Rates { return Rates{m} }

// Slots is the number of endpoints that can have limits.
func (r Rates) Slots() uint32 { return r.m.MaxEntries()/2 - 1 }

// Put sets the limits of a slot, bytes a second; 0 means unlimited.
func (r Rates) Put(slot uint32, egress, ingress uint64) error {
	for i, rate := range []uint64{egress, ingress} {
		v := bpf.DatapathBucket{Bytes: rate, Burst: burst(rate), Tokens: burst(rate)}
		if err := r.m.Update(slot+uint32(i), v, ebpf.UpdateLock); err != nil {
			return fmt.Errorf("write bandwidth: %w", err)
		}
	}
	return nil
}

func burst(rate uint64) uint64 {
	return max(rate*uint64(rateBurst)/uint64(time.Second), minBurst)
}
