// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"github.com/nodeagent/nodeagent/bpf"
	"github.com/nodeagent/nodeagent/dataplane/maps"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// ErrFull says that a map has no room for what is wanted.
var ErrFull = errors.New("full")

// table makes the maps of services agree with what owners want in them. An
// owner is a Service, or an endpoint with host ports (rival.go says who of two
// gets a frontend). Only differences are written: first backends,
// then frontends, then what is not wanted any more is removed.
//
// It is not safe for concurrent use.
type table struct {
	maps   maps.Services
	slots  *slots
	owners map[string]*owned
	fronts map[maps.ServiceKey]*front
	// rivals are what other owners want at frontends that are taken.
	rivals map[maps.ServiceKey][]*front
	// left is what an earlier daemon wrote and nobody has asked for yet.
	left       map[maps.ServiceKey]maps.ServiceValue
	leftBase   map[uint32]int // frontends in left by base
	leftBE     []maps.Backend
	leftRanges map[maps.Range]bool
	// spare are slices that a packet may still be reading: they are free from
	// the next write on.
	spare  []span
	nextID uint32
	// resets says that TCP connections to lost backends are wanted too.
	resets bool
}

type owned struct {
	ids    map[idKey]uint32
	slices []*slice
	fronts []maps.ServiceKey
	ranges []maps.Range
	// draining are backends of TCP that may finish what they have.
	draining []service.Backend
}

// idKey names what shares affinity: one port in one family.
type idKey struct {
	port  string
	proto uint8
	v4    bool
}

type front struct {
	owner string
	value maps.ServiceValue
}

type slice struct {
	span
	backends []service.Backend
	// rows are what is in the array: the backends, or a table made of them.
	rows []service.Backend
}

// change collects what one update writes.
type change struct {
	idx    []uint32
	be     []maps.Backend
	keys   []maps.ServiceKey
	values []maps.ServiceValue
	gone   []maps.ServiceKey
	free   []span
	lost   []lostBackend
	ids    []uint32 // that are not in use any more
	rival  []string // frontends that two owners want, for people
	errs   []error
}

// newTable reads what an earlier daemon left.
func newTable(m maps.Services) (*table, error) {
	t := &table{
		maps:       m,
		slots:      newSlots(m.MaxBackends()),
		owners:     map[string]*owned{},
		fronts:     map[maps.ServiceKey]*front{},
		rivals:     map[maps.ServiceKey][]*front{},
		leftBase:   map[uint32]int{},
		leftRanges: map[maps.Range]bool{},
		nextID:     1,
	}
	var err error
	if t.left, err = m.All(); err != nil {
		return nil, err
	}
	spans := map[uint32]uint32{}
	end := uint32(0)
	for _, v := range t.left {
		t.nextID = max(t.nextID, v.Id+1)
		if v.Count > 0 {
			t.leftBase[v.Base]++
			spans[v.Base] = v.Count
			end = max(end, v.Base+v.Count)
		}
	}
	list := make([]span, 0, len(spans))
	for base, count := range spans {
		list = append(list, span{base, count})
	}
	t.slots.adopt(list)
	if t.leftBE, err = m.Backends(end); err != nil {
		return nil, err
	}
	ranges, err := m.Ranges()
	for _, r := range ranges {
		t.leftRanges[r] = true
	}
	return t, err
}

// set replaces what an owner wants.
func (t *table) set(c *change, owner string, entries []service.Entry) {
	old := t.owners[owner]
	if old == nil {
		old = &owned{}
	}
	next := &owned{ids: map[idKey]uint32{}}
	c.lost = append(c.lost, t.lost(old, owner, entries)...)
	t.setRanges(c, next, old, owner, entries)
	for _, e := range entries {
		key := keyOf(e.Frontend)
		value, err := t.value(c, next, old, key, e)
		if err != nil {
			c.errs = append(c.errs, fmt.Errorf("%s: frontend %s: %w", owner, e.Frontend, err))
			continue
		}
		next.fronts = append(next.fronts, key)
		if t.resets && key.Proto == service.TCP {
			next.draining = append(next.draining, e.Draining...)
		}
		t.put(c, owner, key, value)
	}
	for k, id := range old.ids {
		if next.ids[k] != id {
			c.ids = append(c.ids, id)
		}
	}
	for _, key := range old.fronts {
		if !slices.Contains(next.fronts, key) {
			t.leave(c, owner, key)
		}
	}
	for _, s := range old.slices {
		if !slices.Contains(next.slices, s) {
			t.drop(c, s)
		}
	}
	if len(entries) == 0 {
		delete(t.owners, owner)
		return
	}
	t.owners[owner] = next
}

// claim takes a frontend off the list of leftovers. Its slice stays reserved
// until the list is pruned, unless value found it to be what is wanted.
func (t *table) claim(key maps.ServiceKey, v maps.ServiceValue) {
	delete(t.left, key)
	if v.Count == 0 {
		return
	}
	if t.leftBase[v.Base]--; t.leftBase[v.Base] == 0 {
		delete(t.leftBase, v.Base)
		if !t.inUse(v.Base) {
			t.spare = append(t.spare, span{v.Base, v.Count})
		}
	}
}

// drop gives a slice up. Leftover frontends may still share it: then it is freed
// with the last of them.
func (t *table) drop(c *change, s *slice) {
	if t.leftBase[s.base] > 0 {
		t.leftBE[s.base].Pad = 0
		return
	}
	c.free = append(c.free, s.span)
}

// inUse says whether a slice that was left over has been adopted by an owner.
func (t *table) inUse(base uint32) bool {
	return t.leftBE != nil && base < uint32(len(t.leftBE)) && t.leftBE[base].Pad == adopted
}

// adopted marks, in our copy only, backends at the base of a slice in use.
const adopted = ^uint32(0)

// value is what the kernel is to hold for an entry.
func (t *table) value(c *change, next, old *owned, key maps.ServiceKey, e service.Entry) (maps.ServiceValue, error) {
	v := maps.ServiceValue{Id: t.id(next, old, key, e)}
	if e.Affinity > 0 {
		v.Flags |= uint16(bpf.DatapathSvcFlagsSVC_AFFINITY)
		v.Affinity = maps.TicksOf(e.Affinity)
	}
	if len(e.Ranges) > 0 {
		v.Flags |= uint16(bpf.DatapathSvcFlagsSVC_RANGES)
	}
	if e.Drop {
		v.Flags |= uint16(bpf.DatapathSvcFlagsSVC_DROP)
	}
	if e.Frontend.Scope == service.Outside && !e.Local {
		v.Flags |= uint16(bpf.DatapathSvcFlagsSVC_SNAT)
	}
	if len(e.Backends) == 0 {
		return v, nil
	}
	if e.DSR {
		v.Flags |= uint16(bpf.DatapathSvcFlagsSVC_DSR)
	}
	if e.Maglev {
		v.Flags |= uint16(bpf.DatapathSvcFlagsSVC_MAGLEV)
	}
	s, err := t.slice(c, next, old, key, slice{backends: e.Backends, rows: rowsFor(e)})
	if err != nil {
		return v, err
	}
	v.Base, v.Count = s.base, s.count
	return v, nil
}

// slice finds or makes the slice of an owner with these backends.
func (t *table) slice(c *change, next, old *owned, key maps.ServiceKey, want slice) (*slice, error) {
	same := func(s *slice) bool { return slices.Equal(s.rows, want.rows) }
	if i := slices.IndexFunc(next.slices, same); i >= 0 {
		return next.slices[i], nil
	}
	if i := slices.IndexFunc(old.slices, same); i >= 0 {
		next.slices = append(next.slices, old.slices[i])
		return old.slices[i], nil
	}
	s := &want
	s.count = uint32(len(want.rows))
	proto := key.Proto
	if was, ok := t.left[key]; ok && t.leftEqual(was, want.rows, proto) && !t.inUse(was.Base) {
		s.base = was.Base
		t.leftBE[was.Base].Pad = adopted
		next.slices = append(next.slices, s)
		return s, nil
	}
	base, err := t.slots.alloc(s.count)
	if err != nil {
		return nil, err
	}
	s.base = base
	for i, b := range want.rows {
		c.idx = append(c.idx, base+uint32(i))
		c.be = append(c.be, backendOf(b, proto))
	}
	next.slices = append(next.slices, s)
	return s, nil
}

// leftEqual says whether a leftover frontend has just the backends wanted.
func (t *table) leftEqual(v maps.ServiceValue, want []service.Backend, proto uint8) bool {
	if v.Count != uint32(len(want)) || uint64(v.Base)+uint64(v.Count) > uint64(len(t.leftBE)) {
		return false
	}
	for i, b := range want {
		if t.leftBE[v.Base+uint32(i)] != backendOf(b, proto) {
			return false
		}
	}
	return true
}

// id keeps the number of a port, also over a restart: affinity hangs on it.
func (t *table) id(next, old *owned, key maps.ServiceKey, e service.Entry) uint32 {
	k := idKey{e.Port, e.Frontend.Proto, e.Frontend.Addr.Is4()}
	if id, ok := next.ids[k]; ok {
		return id
	}
	id, ok := old.ids[k]
	if !ok {
		if was, left := t.left[key]; left {
			id = was.Id
		} else {
			id = t.nextID
			t.nextID++
		}
	}
	next.ids[k] = id
	return id
}

// setRanges writes new source ranges at once and removes old ones later: a
// range too many for a moment is better than a client shut out.
func (t *table) setRanges(c *change, next, old *owned, owner string, entries []service.Entry) {
	for _, e := range entries {
		if len(e.Ranges) == 0 {
			continue
		}
		id := t.id(next, old, keyOf(e.Frontend), e)
		for _, p := range e.Ranges {
			r := maps.Range{Service: id, Prefix: p}
			if slices.Contains(next.ranges, r) {
				continue
			}
			next.ranges = append(next.ranges, r)
			if slices.Contains(old.ranges, r) || t.leftRanges[r] {
				delete(t.leftRanges, r)
				continue
			}
			if err := t.maps.PutRange(r); err != nil {
				c.errs = append(c.errs, fmt.Errorf("%s: %w", owner, err))
			}
		}
	}
	for _, r := range old.ranges {
		if slices.Contains(next.ranges, r) {
			continue
		}
		if err := t.maps.DeleteRange(r); err != nil {
			c.errs = append(c.errs, fmt.Errorf("%s: %w", owner, err))
		}
	}
}

// commit writes a change. The slices it frees may be reused by the next one.
func (t *table) commit(c *change) error {
	errs := c.errs
	err := t.maps.PutBackends(c.idx, c.be)
	if err == nil {
		err = t.maps.Put(c.keys, c.values)
	}
	if err != nil {
		errs = append(errs, err)
		t.doubt(c.keys)
	}
	// What another owner took over in the same change stays.
	gone := slices.DeleteFunc(c.gone, func(key maps.ServiceKey) bool { return t.fronts[key] != nil })
	if err := t.maps.Delete(gone); err != nil {
		errs = append(errs, err)
	}
	for _, s := range t.spare {
		t.slots.release(s.base, s.count)
	}
	t.spare = c.free
	return errors.Join(errs...)
}

// doubt makes the next update write these frontends again.
func (t *table) doubt(keys []maps.ServiceKey) {
	for _, key := range keys {
		if f := t.fronts[key]; f != nil {
			f.value = maps.ServiceValue{Id: ^uint32(0)}
		}
	}
}

// prune removes what an earlier daemon left and nobody asked for.
func (t *table) prune(c *change) {
	for key, v := range t.left {
		if t.fronts[key] == nil {
			c.gone = append(c.gone, key)
		}
		t.claim(key, v)
	}
	for r := range t.leftRanges {
		if err := t.maps.DeleteRange(r); err != nil {
			c.errs = append(c.errs, err)
		}
	}
	clear(t.leftRanges)
	t.leftBE = nil
}

func keyOf(f service.Frontend) maps.ServiceKey {
	return maps.ServiceKey{
		Addr:  maps.AddrOf(f.Addr),
		Port:  maps.Port(f.Port),
		Proto: f.Proto,
		Scope: uint8(f.Scope),
	}
}

// frontendOf is the reverse of keyOf.
func frontendOf(k maps.ServiceKey) service.Frontend {
	return service.Frontend{
		Addr: netip.AddrFrom16(k.Addr.B).Unmap(), Port: maps.Port(k.Port), Proto: k.Proto, Scope: service.Scope(k.Scope),
	}
}

func backendOf(b service.Backend, proto uint8) maps.Backend {
	v := maps.Backend{Addr: maps.AddrOf(b.Addr), Port: maps.Port(b.Port), Proto: proto}
	if b.Local {
		v.Flags = uint8(bpf.DatapathBeFlagsBE_LOCAL)
	}
	return v
}

// hostPorts are the entries that an endpoint's host ports ask for.
func hostPorts(ep Endpoint) []service.Entry {
	var out []service.Entry
	for _, hp := range ep.HostPorts {
		for _, addr := range ep.Addrs {
			at := hp.HostIP
			if !at.IsValid() || at.IsUnspecified() {
				at = netip.IPv6Unspecified()
				if addr.Is4() {
					at = netip.IPv4Unspecified()
				}
			}
			if at.Is4() != addr.Is4() {
				continue
			}
			for _, scope := range []service.Scope{service.Cluster, service.Outside} {
				out = append(out, service.Entry{
					Frontend: service.Frontend{Addr: at, Port: hp.HostPort, Proto: hp.Protocol, Scope: scope},
					Port:     fmt.Sprint(hp.HostPort),
					Backends: []service.Backend{{Addr: addr, Port: hp.ContainerPort, Local: true}},
					Local:    true,
				})
			}
		}
	}
	return out
}
