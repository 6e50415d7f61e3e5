// SPDX-License-Identifier: Apache-2.0

package maps

import (
	"encoding/binary"
	"errors"
	"fmt"
	"net/netip"
	"time"

	"github.com/cilium/ebpf"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/bpf"
)

// tickShift is the unit of time of the data path (bpf/lib/clock.h), as a shift
// of nanoseconds of CLOCK_MONOTONIC.
const tickShift = 27

// Ticks is a moment of the data path's clock.
type Ticks uint32

// Now is the present moment of the data path's clock.
func Now() (Ticks, error) {
	var ts unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC_COARSE, &ts); err != nil {
		return 0, fmt.Errorf("read clock: %w", err)
	}
	return Ticks(uint64(ts.Nano()) >> tickShift), nil
}

// Since is the time from then to t, also over a wrap of the clock.
func (t Ticks) Since(then Ticks) time.Duration {
	// What is written while we look may be a tick ahead.
	return max(time.Duration(int32(t-then)), 0) << tickShift
}

// AgeOf is the same in ticks.
func (t Ticks) AgeOf(then Ticks) uint32 { return uint32(max(int32(t-then), 0)) }

// TicksOf converts a duration, at least one tick.
func TicksOf(d time.Duration) uint32 { return uint32(max(d>>tickShift, 1)) }

// Duration is the reverse of TicksOf.
func Duration(ticks uint32) time.Duration { return time.Duration(ticks) << tickShift }

// Tuple is one direction of a flow.
type Tuple struct {
	Src, Dst netip.AddrPort
	Proto    uint8
}

// TupleOf reads a tuple of the kernel's.
func TupleOf(t bpf.DatapathTuple) Tuple {
	return Tuple{
		Src:   netip.AddrPortFrom(ToAddr(t.Src), Port(t.Sport)),
		Dst:   netip.AddrPortFrom(ToAddr(t.Dst), Port(t.Dport)),
		Proto: t.Proto,
	}
}

func (t Tuple) raw() bpf.DatapathTuple {
	return bpf.DatapathTuple{
		Src:   AddrOf(t.Src.Addr()),
		Dst:   AddrOf(t.Dst.Addr()),
		Sport: Port(t.Src.Port()),
		Dport: Port(t.Dst.Port()),
		Proto: t.Proto,
	}
}

// Reverse is the other direction.
func (t Tuple) Reverse() Tuple { return Tuple{Src: t.Dst, Dst: t.Src, Proto: t.Proto} }

// Flow is one record of the conntrack table.
type Flow struct {
	// Orig is the direction that began; of a translated flow's secondary
	// record, as it is after translation.
	Orig Tuple
	// Other is the other tuple of a translated flow, in the same direction.
	Other       Tuple
	Flags       bpf.DatapathCtFlags
	Seen, Since Ticks
	IfIndex     int
	Service     uint32
	key         bpf.DatapathTuple
}

// Is says whether all of the flags are set.
func (f Flow) Is(flags bpf.DatapathCtFlags) bool { return f.Flags&flags == flags }

// Any says whether one of the flags is set.
func (f Flow) Any(flags bpf.DatapathCtFlags) bool { return f.Flags&flags != 0 }

// Untranslated says that the kernel carries the flow, and that the record does
// not know whether it is translated there.
func (f Flow) Untranslated() bool {
	return f.Is(bpf.DatapathCtFlagsCT_KERNEL) && !f.Is(bpf.DatapathCtFlagsCT_XLAT)
}

// Conntrack is the table of flows.
type Conntrack struct{ m, made *ebpf.Map }

// NewConntrack wraps the map "ct", and "ct_made" that counts its records.
func NewConntrack(m, made *ebpf.Map) Conntrack { return Conntrack{m, made} }

// Made is how many records the programs have made since the map was.
func (c Conntrack) Made() (sum uint64, err error) {
	var per []uint64
	if err := c.made.Lookup(uint32(0), &per); err != nil {
		return 0, fmt.Errorf("read count of flows: %w", err)
	}
	for _, n := range per {
		sum += n
	}
	return sum, nil
}

// Size is the table's capacity.
func (c Conntrack) Size() uint32 { return c.m.MaxEntries() }

// Each calls fn for every record until it returns false. Records that come or
// go meanwhile may be missed or seen twice.
func (c Conntrack) Each(fn func(Flow) bool) error {
	keys := make([]bpf.DatapathTuple, batch)
	values := make([]bpf.DatapathCtValue, batch)
	var cursor ebpf.MapBatchCursor
	for {
		n, err := c.m.BatchLookup(&cursor, keys, values, nil)
		for i := range n {
			if !fn(flowOf(keys[i], values[i])) {
				return nil
			}
		}
		if errors.Is(err, ebpf.ErrKeyNotExist) {
			return nil
		}
		if err != nil {
			return fmt.Errorf("read conntrack: %w", err)
		}
	}
}

// Partner is the other record of a translated flow; false when it is gone.
func (c Conntrack) Partner(f Flow) (Flow, bool) {
	for _, t := range []Tuple{f.Other, f.Other.Reverse()} {
		var v bpf.DatapathCtValue
		key := t.raw()
		if err := c.m.Lookup(key, &v); err == nil {
			return flowOf(key, v), true
		}
	}
	return Flow{}, false
}

// Delete removes records.
func (c Conntrack) Delete(flows []Flow) error {
	var errs []error
	for _, f := range flows {
		if err := deleteKey(c.m, f.key); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Forget removes the records of a flow, both of a translated one.
func (c Conntrack) Forget(f Flow) error {
	err := deleteKey(c.m, f.key)
	if f.Is(bpf.DatapathCtFlagsCT_XLAT) {
		other, _ := f.Other.key()
		err = errors.Join(err, deleteKey(c.m, other))
	}
	return err
}

// Mark adds flags to a record and takes others away, and closes its short cut so
// that the next packet meets them; one that is gone is no fault. What the
// programs write to it meanwhile may be lost.
func (c Conntrack) Mark(f Flow, add, remove bpf.DatapathCtFlags) error {
	var v bpf.DatapathCtValue
	err := c.m.Lookup(f.key, &v)
	if err == nil {
		v.Flags = v.Flags&^uint32(remove) | uint32(add)
		v.Lane[0].To, v.Lane[1].To = 0, 0
		err = c.m.Update(f.key, v, ebpf.UpdateExist)
	}
	if err == nil || errors.Is(err, ebpf.ErrKeyNotExist) {
		return nil
	}
	return fmt.Errorf("mark flow: %w", err)
}

// NewFlow is a flow that was begun elsewhere.
type NewFlow struct {
	Orig, Other Tuple
	Service     uint32
	// Outside is the interface that replies leave by, of a flow from outside.
	Outside int
}

// Adopt writes the two records of a translated flow that is established;
// false when it has some. If the flow, once translated, was translated again
// on its way out, it is both that the records say.
func (c Conntrack) Adopt(f NewFlow) (bool, error) {
	now, err := Now()
	if err != nil {
		return false, err
	}
	how := ebpf.UpdateNoExist
	var out bpf.DatapathCtValue
	oif := f.Outside
	key, _ := f.Other.key()
	if err := c.m.Lookup(key, &out); err == nil && out.Flags&uint32(bpf.DatapathCtFlagsCT_XLAT) != 0 &&
		out.Flags&uint32(bpf.DatapathCtFlagsCT_SECONDARY) == 0 {
		// Its record from before goes on as the one of the whole.
		f.Other, oif, how = TupleOf(out.Other), int(out.Oif), ebpf.UpdateAny
	}
	flags := bpf.DatapathCtFlagsCT_XLAT | bpf.DatapathCtFlagsCT_ORIG | bpf.DatapathCtFlagsCT_REPLY | bpf.DatapathCtFlagsCT_SERVICE
	if f.Outside != 0 {
		flags |= bpf.DatapathCtFlagsCT_OUTSIDE
	}
	if f.Orig.Src != f.Other.Src {
		flags |= bpf.DatapathCtFlagsCT_SNAT
	}
	v := bpf.DatapathCtValue{Seen: uint32(now), Since: uint32(now), Svc: f.Service, Oif: uint32(oif)}
	made, err := c.adopt(f.Other, f.Orig, v, flags|bpf.DatapathCtFlagsCT_SECONDARY, how)
	if err != nil {
		return false, err
	}
	first, err := c.adopt(f.Orig, f.Other, v, flags, ebpf.UpdateNoExist)
	return made && first, err
}

func (c Conntrack) adopt(at, other Tuple, v bpf.DatapathCtValue, flags bpf.DatapathCtFlags, how ebpf.MapUpdateFlags) (bool, error) {
	key, swapped := at.key()
	if swapped {
		flags |= bpf.DatapathCtFlagsCT_SWAPPED
	}
	v.Flags, v.Other = uint32(flags), other.raw()
	var old bpf.DatapathCtValue
	if err := c.m.Lookup(key, &old); err == nil && flowOf(key, old).Untranslated() {
		how = ebpf.UpdateAny
	}
	err := c.m.Update(key, v, how)
	if errors.Is(err, ebpf.ErrKeyExist) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("write flow: %w", err)
	}
	return true, nil
}

// key is the tuple with its lower end first, as ct_key of bpf/lib/conntrack.h
// makes it; true when its ends were swapped for it.
func (t Tuple) key() (bpf.DatapathTuple, bool) {
	raw := t.raw()
	word := func(a bpf.DatapathAddr, i int) uint32 { return binary.LittleEndian.Uint32(a.B[4*i:]) }
	higher := raw.Sport > raw.Dport
	for i := 3; i >= 0; i-- {
		if s, d := word(raw.Src, i), word(raw.Dst, i); s != d {
			higher = s > d
			break
		}
	}
	if higher {
		return t.Reverse().raw(), true
	}
	return raw, false
}

func flowOf(key bpf.DatapathTuple, v bpf.DatapathCtValue) Flow {
	f := Flow{
		Orig:    TupleOf(key),
		Other:   TupleOf(v.Other),
		Flags:   bpf.DatapathCtFlags(v.Flags),
		Seen:    Ticks(v.Seen),
		Since:   Ticks(v.Since),
		IfIndex: int(v.Oif),
		Service: v.Svc,
		key:     key,
	}
	if f.Is(bpf.DatapathCtFlagsCT_SWAPPED) {
		f.Orig = f.Orig.Reverse()
	}
	return f
}
