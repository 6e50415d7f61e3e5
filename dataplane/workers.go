// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"context"
	"errors"
	"maps"
	"net/netip"
	"slices"
	"time"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
	flows "github.com/nodeagent/nodeagent/dataplane/maps"
)

const (
	// podsQuiet is how long no pod may have come or gone before links get their
	// faster attachment: each one holds the lock of all interface changes for
	// about 10 ms.
	podsQuiet = 2 * time.Second
	// sweepEvery is the usual pause between two walks over the table of flows.
	sweepEvery = 15 * time.Second
	// udpStreamAfter is how long a UDP flow has to last to be more than one exchange.
	udpStreamAfter = 2 * time.Second
)

// followPods does for pods' links what is too slow for the pod's own way.
func (d *Dataplane) followPods(ctx context.Context) {
	quiet := time.NewTimer(podsQuiet)
	defer quiet.Stop()
	tcx := true
	for {
		select {
		case <-ctx.Done():
			return
		case <-d.podsChanged:
			quiet.Reset(podsQuiet)
			continue
		case <-quiet.C:
		}
		idx, gone, ok := d.nextLink(tcx)
		if !ok {
			continue
		}
		if gone {
			if err := d.kernel.ForgetPod(idx); err != nil {
				d.log.DebugContext(ctx, "detach from link", "if_index", idx, "err", err)
			}
		} else if err := d.handOver(idx); errors.Is(err, ebpf.ErrNotSupported) {
			tcx = false
		}
		// One at a time: whoever waits for the lock gets his turn between.
		quiet.Reset(time.Millisecond)
	}
}

// nextLink picks a link that has work, links that are gone first.
func (d *Dataplane) nextLink(tcx bool) (idx int, gone, ok bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	for idx := range d.forgotten {
		delete(d.forgotten, idx)
		return idx, true, true
	}
	if !tcx {
		return 0, false, false
	}
	for idx := range d.handover {
		delete(d.handover, idx)
		return idx, false, true
	}
	return 0, false, false
}

// handOver may meet a link that goes away at the same moment.
func (d *Dataplane) handOver(idx int) error {
	err := d.kernel.HandOver(idx)
	if err != nil {
		d.log.Debug("link keeps its filter", "if_index", idx, "err", err)
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	if !d.attached[idx] {
		d.forgotten[idx] = true
	}
	return err
}

// sweepFlows forgets flows that are idle, and those of addresses that are gone.
func (d *Dataplane) sweepFlows(ctx context.Context) {
	tick, look := time.NewTicker(d.deps.SweepEvery), time.NewTimer(roomLook)
	defer tick.Stop()
	defer look.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-look.C:
			crowded, next, err := d.crowded()
			look.Reset(next)
			if err != nil {
				d.log.ErrorContext(ctx, "look at the table of flows", "err", err)
			}
			if !crowded {
				continue
			}
		case <-tick.C:
			if err := d.sweepAffinity(ctx); err != nil {
				d.log.ErrorContext(ctx, "sweep affinity", "err", err)
			}
		case <-d.sweepNow:
			if !settle(ctx, hostSettle) {
				return
			}
		}
		d.mu.Lock()
		gone := maps.Clone(d.purge)
		clear(d.purge)
		d.mu.Unlock()
		d.svcMu.Lock()
		lost := maps.Clone(d.lost)
		clear(d.lost)
		d.svcMu.Unlock()
		if _, err := d.sweep(ctx, gone, lost, d.portsShort.Swap(false)); err != nil {
			d.log.ErrorContext(ctx, "sweep flows", "err", err)
		}
		if err := d.disconnect(lost); err != nil {
			d.log.ErrorContext(ctx, "end sockets of removed backends", "err", err)
		}
	}
}

// sweep walks the table and returns how many records it removed. When ports are
// short it is in a hurry with those that hold one.
func (d *Dataplane) sweep(ctx context.Context, gone map[netip.Addr]bool, lost map[lostBackend]bool, short bool) (int, error) {
	began := time.Now()
	now, err := flows.Now()
	if err != nil {
		return 0, err
	}
	// Read first: what is made during the walk counts twice rather than not at all.
	made, err := d.flows.Made()
	if err != nil {
		return 0, err
	}
	var idle, left []flows.Flow
	var c census
	count := uint32(0)
	err = d.flows.Each(func(f flows.Flow) bool {
		count++
		switch {
		case touches(f, gone) || d.idle(f, now, short):
			idle = append(idle, f)
			return true
		case stranded(f, lost):
			left = append(left, f)
		}
		c.add(d.worth(f), now.AgeOf(f.Seen), recordsOf(f))
		return true
	})
	// A translated flow lives as long as either of its records is used.
	idle = slices.DeleteFunc(idle, func(f flows.Flow) bool {
		if !f.Is(bpf.DatapathCtFlagsCT_XLAT) || touches(f, gone) {
			return false
		}
		other, ok := d.flows.Partner(f)
		return ok && !d.idle(other, now, short)
	})
	err = errors.Join(err, d.flows.Delete(idle), d.abandon(left))
	count -= uint32(len(idle))
	removed, roomErr := d.makeRoom(ctx, now, count, &c)
	removed = min(removed, count)
	d.flowCount.Store(count - removed)
	d.room.walked(count-removed, removed, made, d.flows.Size(), time.Since(began))
	return len(idle) + len(left) + int(removed), errors.Join(err, roomErr)
}

func touches(f flows.Flow, gone map[netip.Addr]bool) bool {
	if len(gone) == 0 {
		return false
	}
	return gone[f.Orig.Src.Addr()] || gone[f.Orig.Dst.Addr()] ||
		gone[f.Other.Src.Addr()] || gone[f.Other.Dst.Addr()]
}

// idle says whether a record was not used for longer than its kind may be.
func (d *Dataplane) idle(f flows.Flow, now flows.Ticks, short bool) bool {
	t, ongoing := d.timeout(f)
	if short {
		t = pressed(f, t, ongoing)
	}
	return now.Since(f.Seen) > t
}

// timeout of a record, and whether it is of a connection or a stream that goes on.
func (d *Dataplane) timeout(f flows.Flow) (_ time.Duration, ongoing bool) {
	const closing = bpf.DatapathCtFlagsCT_FIN_ORIG | bpf.DatapathCtFlagsCT_FIN_REPLY
	both := f.Is(bpf.DatapathCtFlagsCT_ORIG | bpf.DatapathCtFlagsCT_REPLY)
	t := d.cfg.Timeouts
	switch f.Orig.Proto {
	case protoTCP:
		switch {
		case f.Is(closing) || f.Is(bpf.DatapathCtFlagsCT_RST):
			return t.TCPClosing, false
		case f.Is(bpf.DatapathCtFlagsCT_DSR | bpf.DatapathCtFlagsCT_FIN_ORIG):
			// Where the other side's FIN does not pass.
			return t.TCPSyn, false
		case both:
			return t.TCPEstablished, true
		default:
			return t.TCPSyn, false
		}
	case protoUDP:
		// One question and one answer are no stream: who asks a lot from new
		// ports must not use them all up.
		if both && f.Seen.Since(f.Since) > udpStreamAfter {
			return t.UDPStream, true
		}
		return t.UDP, false
	default:
		return t.ICMP, false
	}
}

const (
	protoTCP = 6
	protoUDP = 17
)
