// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"time"

	"github.com/nodeagent/nodeagent/bpf"
	"github.com/nodeagent/nodeagent/dataplane/maps"
)

// socketAffinity is how long what one socket of the node sends without
// connect() stays with its backend: SOCK_AFFINITY of bpf/lib/socket.h.
const socketAffinity = 2 * time.Minute

// sweepAffinity forgets what clients were given when it has expired, or its
// service is gone, and makes room before the oldest are pushed out.
func (d *Dataplane) sweepAffinity(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.svcMu.Lock()
	defer d.svcMu.Unlock()
	if d.table == nil {
		return nil
	}
	timeouts := map[uint32]time.Duration{}
	for _, f := range d.table.fronts {
		timeouts[f.value.Id] = socketAffinity
		if f.value.Flags&uint16(bpf.DatapathSvcFlagsSVC_AFFINITY) != 0 {
			timeouts[f.value.Id] = maps.Duration(f.value.Affinity)
		}
	}
	for _, v := range d.table.left {
		timeouts[v.Id] = maps.Duration(v.Affinity)
	}
	used, err := d.affinity.Sweep(timeouts)
	d.affinityCount.Store(used)
	if err != nil {
		return err
	}
	if size := d.kernel.Aff.MaxEntries(); uint64(used) > uint64(size)/4*3 {
		return d.grow(ctx, map[string]uint32{"aff": roomier(size, uint64(used))})
	}
	return nil
}
