// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// meterEvery is how often the devices' accounts are read: two small files for each
// volume that is attached.
const meterEvery = 5 * time.Second

// The kinds of request that are told apart.
const (
	opRead = iota
	opWrite
	opFlush
	ops
)

// LatencyBounds are the upper bounds of a latency's buckets, in seconds.
func LatencyBounds() []float64 {
	return []float64{50e-6, 100e-6, 250e-6, 500e-6, 1e-3, 2.5e-3, 5e-3, 10e-3, 25e-3, 50e-3, 0.1, 0.25, 1}
}

// IO is what one kind of request has done on a volume since it was attached. The kernel
// counts requests and their time, so a request is put into the bucket of the mean of
// the few seconds in which it was made.
type IO struct {
	Op string
	mount.DiskIO
	// Buckets has, for each of LatencyBounds, the requests that took no longer.
	Buckets []uint64
}

// ioMeter follows the devices of attached volumes. What it keeps is bounded by them.
type ioMeter struct {
	mu      sync.Mutex
	volumes map[string]*metered // guarded by mu, as what is in it
}

// metered is one volume's device.
type metered struct {
	rdev uint64
	seq  string
	last [ops]mount.DiskIO
	sum  [ops]mount.DiskIO
	hist [ops][]uint64
}

func newIOMeter() *ioMeter { return &ioMeter{volumes: map[string]*metered{}} }

func counts(s mount.DiskStat) [ops]mount.DiskIO {
	return [ops]mount.DiskIO{opRead: s.Read, opWrite: s.Write, opFlush: s.Flush}
}

// follow begins with what the device has done so far as naught.
func (m *ioMeter) follow(id string, att *backend.Attachment) {
	if att == nil || att.Kind != backend.Device {
		return
	}
	s, err := mount.ReadDiskStat(att.Rdev)
	if err != nil {
		return // a device without an account has no metrics
	}
	m.mu.Lock()
	defer m.mu.Unlock()
	if v := m.volumes[id]; v != nil && v.rdev == att.Rdev && v.seq == s.Seq {
		return // a second staging path of the same device
	}
	v := &metered{rdev: att.Rdev, seq: s.Seq, last: counts(s)}
	for op := range v.hist {
		v.hist[op] = make([]uint64, len(LatencyBounds()))
	}
	m.volumes[id] = v
}

// forget ends with a volume.
func (m *ioMeter) forget(id string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	delete(m.volumes, id)
}

// sample reads every account. A device that is gone, or is another's by now, is
// forgotten.
func (m *ioMeter) sample() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for id, v := range m.volumes {
		s, err := mount.ReadDiskStat(v.rdev)
		if err != nil || s.Seq != v.seq {
			delete(m.volumes, id)
			continue
		}
		v.add(counts(s))
	}
}

func (v *metered) add(now [ops]mount.DiskIO) {
	for op := range now {
		d := now[op].Sub(v.last[op])
		v.last[op] = now[op]
		if d.Count == 0 || d.Count > now[op].Count {
			continue
		}
		v.sum[op].Count += d.Count
		v.sum[op].Bytes += d.Bytes
		v.sum[op].Time += d.Time
		mean := d.Time.Seconds() / float64(d.Count)
		for i, bound := range LatencyBounds() {
			if mean <= bound {
				v.hist[op][i] += d.Count
			}
		}
	}
}

// IO is what the attached volumes' devices have done, by volume id.
func (m *Manager) IO() map[string][]IO {
	m.io.sample()
	m.io.mu.Lock()
	defer m.io.mu.Unlock()
	out := map[string][]IO{}
	for id, v := range m.io.volumes {
		for op, name := range map[int]string{opRead: "read", opWrite: "write", opFlush: "flush"} {
			out[id] = append(out[id], IO{Op: name, DiskIO: v.sum[op], Buckets: slices.Clone(v.hist[op])})
		}
	}
	return out
}

// keepMeter samples until ctx ends. Volumes that were attached before the start are
// followed from now on.
func (m *Manager) keepMeter(ctx context.Context) {
	m.meterAttached(ctx)
	tick := time.NewTicker(meterEvery)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
			m.io.sample()
		}
	}
}

func (m *Manager) meterAttached(ctx context.Context) {
	states, err := m.state.all()
	if err != nil {
		return // said by those who need them
	}
	for _, st := range states {
		o := m.peek(st.Volume)
		if o == nil || o.broken != nil || len(st.Staged) == 0 {
			continue
		}
		if atts, err := o.pool.be.Attached(ctx, m.object(o.pool, o.rec)); err == nil && len(atts) > 0 {
			m.io.follow(st.Volume, atts[0])
		}
	}
}

// fillTimeout bounds a scrape that meets a file system which does not answer.
const fillTimeout = 500 * time.Millisecond

// Fill is what the file systems of staged volumes hold, by volume id. One that does not
// answer, or has no number of its own, is left out.
func (m *Manager) Fill(ctx context.Context) map[string]Stats {
	out := map[string]Stats{}
	states, err := m.state.all()
	if err != nil {
		return out
	}
	for _, st := range states {
		o := m.peek(st.Volume)
		paths := slices.DeleteFunc(slices.Collect(maps.Keys(st.Staged)), func(p string) bool { return st.Staged[p].Block })
		if o == nil || o.broken != nil || len(paths) == 0 || ctx.Err() != nil {
			continue
		}
		if s, err := m.fill1(ctx, o, paths[0]); err == nil {
			out[st.Volume] = s
		}
	}
	return out
}

func (m *Manager) fill1(ctx context.Context, o *object, path string) (Stats, error) {
	if ms, ok := o.pool.be.(backend.Measurer); ok {
		used, limit, err := ms.Measure(ctx, m.object(o.pool, o.rec))
		return Stats{Total: limit, Used: used}, err
	}
	s, err := mount.StatTimeout(path, fillTimeout)
	if err != nil {
		return Stats{}, err
	}
	return Stats{Total: s.Total, Used: s.Total - s.Free, Inodes: s.Inodes, InodesUsed: s.Inodes - s.InodesFree}, nil
}
