// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/bpf"
)

// Keys and values of services as the kernel has them.
type (
	// ServiceKey is a frontend.
	ServiceKey = bpf.DatapathSvcKey
	// ServiceValue says what becomes of a frontend's traffic.
	ServiceValue = bpf.DatapathSvcValue
	// Backend is one slot of the array of backends.
	Backend = bpf.DatapathBackend
)

// Services is the map from frontend to slice of backends, and the array that
// the slices are in.
type Services struct{ svc, be, ranges *ebpf.Map }

// NewServices wraps the maps "svc", "be" and "ranges".
func NewServices(svc, be, ranges *ebpf.Map) Services { return Services{svc, be, ranges} }

// MaxBackends is the length of the array of backends.
func (s Services) MaxBackends() uint32 { return s.be.MaxEntries() }

// MaxFrontends is the capacity of the map of frontends.
func (s Services) MaxFrontends() uint32 { return s.svc.MaxEntries() }

// All returns all frontends.
func (s Services) All() (map[ServiceKey]ServiceValue, error) {
	return all[ServiceKey, ServiceValue](s.svc)
}

// Backends returns the first n slots of the array.
func (s Services) Backends(n uint32) ([]Backend, error) {
	n = min(n, s.be.MaxEntries())
	out := make([]Backend, n)
	keys := make([]uint32, n)
	var cursor ebpf.MapBatchCursor
	for at := 0; at < int(n); {
		end := min(at+batch, int(n))
		got, err := s.be.BatchLookup(&cursor, keys[at:end], out[at:end], nil)
		at += got
		if errors.Is(err, ebpf.ErrKeyNotExist) || err == nil && got == 0 {
			break
		}
		if err != nil {
			return nil, fmt.Errorf("read backends: %w", err)
		}
	}
	return out, nil
}

// PutBackends writes slots of the array.
func (s Services) PutBackends(idx []uint32, be []Backend) error {
	if err := putBatch(s.be, idx, be); err != nil {
		return fmt.Errorf("write %d backends: %w", len(idx), err)
	}
	return nil
}

// Put writes frontends, each atomically. Their backends must be in place.
func (s Services) Put(keys []ServiceKey, values []ServiceValue) error {
	if err := putBatch(s.svc, keys, values); err != nil {
		return fmt.Errorf("write %d frontends: %w", len(keys), err)
	}
	return nil
}

// Delete removes frontends.
func (s Services) Delete(keys []ServiceKey) error {
	var errs []error
	for _, k := range keys {
		if err := deleteKey(s.svc, k); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Range is a source that may enter a service.
type Range struct {
	Service uint32
	Prefix  netip.Prefix
}

func rangeKey(r Range) bpf.DatapathRangeKey {
	return bpf.DatapathRangeKey{
		Bits: 32 + prefixBits(r.Prefix),
		Svc:  r.Service,
		Addr: AddrOf(r.Prefix.Masked().Addr()),
	}
}

// PutRange lets a source enter a service.
func (s Services) PutRange(r Range) error {
	if err := s.ranges.Put(rangeKey(r), uint32(1)); err != nil {
		return fmt.Errorf("write source range %s: %w", r.Prefix, err)
	}
	return nil
}

// DeleteRange is the reverse of PutRange.
func (s Services) DeleteRange(r Range) error { return deleteKey(s.ranges, rangeKey(r)) }

// Ranges returns all source ranges.
func (s Services) Ranges() ([]Range, error) {
	raw, err := all[bpf.DatapathRangeKey, uint32](s.ranges)
	if err != nil {
		return nil, err
	}
	out := make([]Range, 0, len(raw))
	for k := range raw {
		out = append(out, Range{Service: k.Svc, Prefix: toPrefix(k.Addr, k.Bits-32)})
	}
	return out, nil
}

// putBatch writes many entries with few system calls.
func putBatch[K, V any](m *ebpf.Map, keys []K, values []V) error {
	for at := 0; at < len(keys); at += batch {
		end := min(at+batch, len(keys))
		if end-at == 1 {
			if err := m.Put(keys[at], values[at]); err != nil {
				return err
			}
			continue
		}
		if _, err := m.BatchUpdate(keys[at:end], values[at:end], nil); err != nil {
			return err
		}
	}
	return nil
}
