// SPDX-License-Identifier: Apache-2.0

package bpf

import "net/netip"

// forward decides where a packet goes, and records new flows.
func (m *model) forward(w *walk) DatapathReason {
	act, end := m.wayOf(w)
	if end != fine {
		return end
	}
	w.act = act
	back := w.oif
	if w.leaves() && w.ttl <= 1 {
		return DatapathReasonPASS_TTL
	}
	if w.hook != DatapathHookHOOK_POD && w.known == nil {
		w.flow |= DatapathCtFlagsCT_OUTSIDE
		back = w.link
	}
	if w.known == nil && w.to != 0 && w.to == w.fromPod {
		w.flow |= DatapathCtFlagsCT_HAIRPIN
		w.now.src = w.dst
	}
	return m.note(w, back)
}

// leaves says whether the node routes the packet to another one.
func (w *walk) leaves() bool {
	return w.act >= DatapathReasonFWD_NATIVE && w.act <= DatapathReasonFWD_WORLD || w.act == DatapathReasonFWD_DSR
}

// wayOf is where the packet goes to, or the reason why it goes nowhere.
func (m *model) wayOf(w *walk) (act, end DatapathReason) {
	to := w.now.dst
	if m.host[to] {
		return DatapathReasonPASS_HOST, fine
	}
	if link := m.pods[to]; link != 0 {
		w.to = link
		return DatapathReasonFWD_LOCAL, fine
	}
	fromPod := w.hook == DatapathHookHOOK_POD
	if !fromPod && w.known == nil && w.svc == 0 {
		return DatapathReasonPASS_UNKNOWN, fine
	}
	if m.direct(w) {
		w.oif = m.uplink
		return DatapathReasonFWD_DSR, fine
	}
	act, routed := m.route(to)
	if act != DatapathReasonPASS_ROUTE {
		w.oif, w.way = m.uplink, m.wayTo(to)
	}
	switch {
	case !fromPod && w.known == nil:
		return m.fromOutside(w, act), fine
	case act != DatapathReasonPASS_ROUTE:
		return act, fine
	case w.known != nil:
		return m.worldKnown(w), fine
	case routed:
		return DatapathReasonPASS_ROUTE, fine
	case w.related:
		return 0, DatapathReasonDROP_RELATED
	case !m.fib(to):
		return DatapathReasonPASS_ROUTE, fine
	}
	w.oif, w.snat = m.uplink, m.masq[one(!w.v4)]
	return DatapathReasonFWD_WORLD, fine
}

// fromOutside: a backend elsewhere is asked in the node's name.
func (m *model) fromOutside(w *walk, act DatapathReason) DatapathReason {
	w.flow &^= DatapathCtFlagsCT_DSR
	w.snat = m.masq[one(!w.v4)]
	if act != DatapathReasonPASS_ROUTE || !m.fib(w.now.dst) {
		return act
	}
	w.now.src, w.oif = w.snat, m.uplink
	return DatapathReasonFWD_WORLD
}

// worldKnown: flows of the node's address leave by the interface that their
// record names; what came from outside for a backend elsewhere looks for one.
func (m *model) worldKnown(w *walk) DatapathReason {
	asNode := DatapathCtFlagsCT_SNAT
	if w.reply {
		asNode = DatapathCtFlagsCT_OUTSIDE
	}
	if w.flow&asNode == 0 {
		return DatapathReasonPASS_ROUTE
	}
	if !w.reply && w.flow&DatapathCtFlagsCT_OUTSIDE != 0 {
		w.oif = 0
		if m.fib(w.now.dst) {
			w.oif = m.uplink
		}
	}
	if w.oif == 0 {
		return DatapathReasonPASS_ROUTE
	}
	return DatapathReasonFWD_WORLD
}

// route is how other nodes' pods are reached, and whether anything is known of
// an address.
func (m *model) route(a netip.Addr) (DatapathReason, bool) {
	for p, act := range m.routes {
		if p.Contains(a) {
			return act, true
		}
	}
	return DatapathReasonPASS_ROUTE, false
}

// wayTo is the number of the short cut to an address of another node.
func (m *model) wayTo(a netip.Addr) uint32 {
	for p, n := range m.ways {
		if p.Contains(a) {
			return n
		}
	}
	return 0
}

// fib says whether the kernel of the model's world would send to an address:
// by its default route, or to a neighbour.
func (m *model) fib(a netip.Addr) bool {
	if a.Is4() {
		b := a.As4()
		broadcast := b == [4]byte{192, 0, 2, 255}
		return b[0] != 127 && b[0] < 224 && !broadcast
	}
	anycast := a == netip.MustParseAddr("2001:db8:1::")
	return !anycast && !a.IsLoopback() && !a.IsUnspecified() && !a.IsMulticast() && !a.IsLinkLocalUnicast()
}

// note records a new flow, or opens the lanes of one that is known.
func (m *model) note(w *walk, back uint32) DatapathReason {
	if w.related || w.later {
		return fine
	}
	short := w.act == DatapathReasonFWD_LOCAL && w.hook != DatapathHookHOOK_TUN ||
		w.way != 0 && w.hook == DatapathHookHOOK_POD
	short = short && w.now == w.tuple
	if r := w.known; r != nil {
		if short && r.lanes[one(w.reply)].to == 0 {
			m.open(r, w)
		}
		return fine
	}
	r := &record{orig: w.tuple, flags: w.flow | seen(false, w.flags), oif: back, svc: w.svc}
	if w.act == DatapathReasonFWD_DSR {
		return m.noteDirect(w, r)
	}
	if w.snat.IsValid() || w.now != w.tuple {
		return m.noteTranslated(w, r)
	}
	if w.act < DatapathReasonPASS_NOT_IP {
		if short {
			m.open(r, w)
		}
		m.set(r)
	}
	return fine
}

func (m *model) open(r *record, w *walk) {
	if w.to == 0 {
		r.lanes[one(w.reply)] = lane{w.link, w.way | laneWay}
		return
	}
	r.lanes[one(w.reply)] = lane{w.link, w.to}
	if w.fromPod != 0 {
		r.lanes[one(!w.reply)] = lane{w.to, w.fromPod}
	}
}

// noteTranslated writes both records.
func (m *model) noteTranslated(w *walk, r *record) DatapathReason {
	if !w.snat.IsValid() {
		old, _ := m.at(w.now)
		mine := old == nil || old.is(closing) ||
			old.is(DatapathCtFlagsCT_SECONDARY) && old.other.dport == w.dport && old.other.dst == w.dst
		if !mine {
			w.snat = w.now.src
		}
	}
	if w.snat.IsValid() {
		w.now.src = w.snat
		w.flow |= DatapathCtFlagsCT_SNAT
		r.flags |= DatapathCtFlagsCT_SNAT
		if !m.choose(w) {
			return DatapathReasonDROP_SNAT_PORTS
		}
	}
	r.flags |= DatapathCtFlagsCT_XLAT
	secondary := *r
	secondary.flags |= DatapathCtFlagsCT_SECONDARY
	secondary.orig, secondary.other = w.now, w.tuple
	r.other = w.now
	m.set(&secondary)
	m.set(r)
	return fine
}

// choose keeps the port when it can be kept, and takes the one that the
// programs took otherwise, if that is free and in the range.
func (m *model) choose(w *walk) bool {
	hasPort := w.proto == tcp || w.proto == udp || w.sport != 0
	inRange := w.sport >= 61000
	free := func() bool { old, _ := m.at(w.now); return old == nil }
	if w.proto == 132 || !hasPort {
		return free()
	}
	if inRange && free() {
		return true
	}
	w.now.sport = m.took(w)
	return w.now.sport >= 61000 && free()
}
