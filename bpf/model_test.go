// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
)

// The model says what the programs of datapath.c have to do with a packet, in
// the world that newModel describes: which verdict, for which reason, with
// which bytes, and what is recorded of the flow. It is written to be read, not
// to be fast, and shares nothing with the programs but their numbers.

// fragment identifies a packet that comes in pieces.
type fragment struct {
	src, dst netip.Addr
	id       uint32
	proto    uint8
}

// lane is the short cut of one direction, from link to link or, with laneWay,
// to another node.
type lane struct{ from, to uint32 }

// record is what is known of a flow, under one of its tuples.
type record struct {
	orig  tuple // the direction that began, under this key
	other tuple // translated flows: the same direction, under the other key
	flags DatapathCtFlags
	oif   uint32
	svc   uint32
	lanes [2]lane
}

type frontend struct {
	id      uint32
	backend netip.AddrPort // invalid: nobody serves it
	direct  bool           // the backend's node answers clients from outside itself
}

type model struct {
	pods   map[netip.Addr]uint32 // to link
	host   map[netip.Addr]bool
	uplink uint32
	masq   [2]netip.Addr
	routes map[netip.Prefix]DatapathReason // how they are reached
	ways   map[netip.Prefix]uint32         // the numbers of those that have a short cut
	vips   map[netip.AddrPort]frontend     // TCP and UDP, asked from pods
	ports  map[uint16]frontend             // of the node, from anywhere
	led    map[netip.Prefix]bool           // whose node takes what is led to it

	flows map[tuple]*record
	frags map[fragment][2]uint16
	// took is the port that the programs gave a flow whose own is taken, or not
	// in the range: any will do.
	took func(*walk) uint16
}

// walk is a packet on its way through the model.
type walk struct {
	parsed
	hook    DatapathHook
	link    uint32
	now     tuple // as it shall leave
	known   *record
	reply   bool
	flow    DatapathCtFlags // what a new record shall say
	svc     uint32
	oif     uint32
	snat    netip.Addr
	to      uint32 // link of the pod it is for
	fromPod uint32
	way     uint32 // the number of its way to another node
	act     DatapathReason
}

// outcome is what becomes of a packet.
type outcome struct {
	reason DatapathReason
	w      *walk
	out    []byte // nil: whatever it is, nobody sees it
}

func (m *model) run(hook DatapathHook, link uint32, in []byte) outcome {
	to, ok := m.express(hook, link, in)
	if ok && to&laneWay == 0 {
		return outcome{reason: DatapathReasonFWD_LOCAL, out: in, w: &walk{to: to}}
	}
	p, why := m.parse(in)
	if ok && p.ttl > 1 {
		return m.byWay(to, &walk{parsed: p, now: p.tuple}, in)
	}
	w := &walk{parsed: p, hook: hook, link: link, now: p.tuple, act: DatapathReasonPASS_HOST}
	stages := []func(*walk) DatapathReason{m.spoof, m.conntrack, m.service, m.forward}
	if hook >= DatapathHookHOOK_TOPOD {
		stages = stages[1:2]
	}
	for _, stage := range stages {
		if why != fine {
			return outcome{reason: why, w: w, out: in}
		}
		why = stage(w)
	}
	if why != fine {
		return outcome{reason: why, w: w, out: in}
	}
	out, ok := w.rewrite(in)
	if !ok {
		return outcome{reason: DatapathReasonDROP_REWRITE, w: w}
	}
	return outcome{reason: w.act, w: w, out: out}
}

// byWay sends by the short cut to another node.
func (m *model) byWay(to uint32, w *walk, in []byte) outcome {
	for p, n := range m.ways {
		if n == to&^laneWay {
			w.act = m.routes[p]
		}
	}
	out, _ := w.rewrite(in)
	return outcome{reason: w.act, w: w, out: out}
}

// at finds the record of a tuple, and says whether it is met by a reply.
func (m *model) at(t tuple) (r *record, reply bool) {
	if r := m.flows[t]; r != nil {
		return r, false
	}
	r = m.flows[t.turned()]
	return r, r != nil
}

func (m *model) set(r *record) {
	if old, _ := m.at(r.orig); old != nil {
		delete(m.flows, old.orig)
	}
	m.flows[r.orig] = r
}

func (r *record) is(f DatapathCtFlags) bool { return r.flags&f != 0 }

const (
	laneWay = 1 << 31

	synFlag, ackFlag, finFlag, rstFlag = 0x02, 0x10, 0x01, 0x04

	closing = DatapathCtFlagsCT_FIN_ORIG | DatapathCtFlagsCT_FIN_REPLY | DatapathCtFlagsCT_RST
	both    = DatapathCtFlagsCT_ORIG | DatapathCtFlagsCT_REPLY | closing
)

// seen are the flags that a packet adds to the record of its flow.
func seen(reply bool, tcpFlags uint8) DatapathCtFlags {
	way, fin := DatapathCtFlagsCT_ORIG, DatapathCtFlagsCT_FIN_ORIG
	if reply {
		way, fin = DatapathCtFlagsCT_REPLY, DatapathCtFlagsCT_FIN_REPLY
	}
	if tcpFlags&finFlag != 0 {
		way |= fin
	}
	if tcpFlags&rstFlag != 0 {
		way |= DatapathCtFlagsCT_RST
	}
	return way
}

// express: an ordinary packet of a flow whose lane is open goes straight.
func (m *model) express(hook DatapathHook, link uint32, in []byte) (uint32, bool) {
	t, flags, ok := ordinary(in)
	if !ok || hook > DatapathHookHOOK_NET {
		return 0, false
	}
	f, reply := m.at(t)
	if f == nil {
		return 0, false
	}
	lane := f.lanes[one(reply)]
	if lane.to == 0 || lane.from != link {
		return 0, false
	}
	f.flags |= seen(reply, flags)
	return lane.to, true
}

// ordinary reads a whole TCP or UDP packet without options that opens nothing.
func ordinary(in []byte) (t tuple, flags uint8, ok bool) {
	r := &reader{b: in}
	var l4 int
	switch {
	case r.u16(12) == 0x0800 && r.u8(14) == 0x45 && r.u16(20)&0x3fff == 0:
		t, l4 = tuple{src: r.addr(26, 4), dst: r.addr(30, 4), proto: r.u8(23)}, 34
	case r.u16(12) == 0x86dd:
		t, l4 = tuple{src: r.addr(22, 16), dst: r.addr(38, 16), proto: r.u8(20)}, 54
	default:
		return t, 0, false
	}
	t.sport, t.dport = r.u16(l4), r.u16(l4+2)
	switch t.proto {
	case tcp:
		r.bytes(l4, 20)
		flags = r.u8(l4 + 13)
	case udp:
		r.bytes(l4, 8)
	default:
		return t, 0, false
	}
	return t, flags, !r.short && flags&(synFlag|ackFlag) != synFlag
}

func one(b bool) int {
	if b {
		return 1
	}
	return 0
}

// spoof: pods send from their own addresses, others never from a pod's.
func (m *model) spoof(w *walk) DatapathReason {
	from := w.src
	if w.related {
		from = w.osrc
	}
	if w.hook == DatapathHookHOOK_TUN {
		return DatapathReasonDROP_TUNNEL // a test run has no tunnel
	}
	if w.hook == DatapathHookHOOK_NET {
		if m.pods[from] != 0 {
			return DatapathReasonDROP_SPOOFED
		}
		return fine
	}
	if w.dst.IsMulticast() || w.dst.Is4() && w.dst.As4()[0] >= 224 {
		return DatapathReasonDROP_MULTICAST
	}
	if m.pods[from] != w.link {
		return DatapathReasonDROP_SPOOFED
	}
	w.fromPod = w.link
	return fine
}

// conntrack finds the flow, and where it is translated to.
func (m *model) conntrack(w *walk) DatapathReason {
	r, reply := m.at(w.tuple)
	if r == nil {
		return fine
	}
	if !reply && m.outlived(w, r) {
		return fine
	}
	w.known, w.reply = r, reply
	if !w.related {
		now := seen(reply, w.flags)
		if r.elsewhere(w) && w.flags&synFlag == 0 {
			now |= DatapathCtFlagsCT_REPLY
		}
		m.touch(r, now)
	}
	if r.is(DatapathCtFlagsCT_XLAT) && r.is(DatapathCtFlagsCT_SECONDARY) == reply {
		w.oif, w.svc, w.flow, w.now = r.oif, r.svc, r.flags, r.other
		if reply {
			w.now = r.other.turned()
		}
	}
	return fine
}

// outlived: a record is of an earlier flow when a SYN meets a closed
// connection, or a pod's packet the tuple that another flow was translated to.
func (m *model) outlived(w *walk, r *record) bool {
	opens := w.proto != tcp || w.flags&(synFlag|ackFlag) == synFlag
	if w.related || !opens {
		return false
	}
	if !r.is(DatapathCtFlagsCT_SECONDARY) {
		return w.proto == tcp && (r.is(closing) || r.elsewhere(w) && r.is(DatapathCtFlagsCT_REPLY))
	}
	if w.hook != DatapathHookHOOK_POD {
		return false
	}
	if primary, _ := m.at(r.other); primary != nil {
		delete(m.flows, primary.orig)
	}
	return true
}

func (m *model) touch(r *record, flags DatapathCtFlags) {
	isNew := r.flags&flags != flags
	r.flags |= flags
	if isNew && r.is(DatapathCtFlagsCT_XLAT) {
		if other, _ := m.at(r.other); other != nil {
			other.flags |= flags & both
		}
	}
}

// service gives a new flow to a service its backend.
func (m *model) service(w *walk) DatapathReason {
	if w.known != nil || w.later || w.related || w.proto != tcp && w.proto != udp {
		return fine
	}
	f, ok := frontend{}, false
	if w.hook == DatapathHookHOOK_POD {
		f, ok = m.vips[netip.AddrPortFrom(w.dst, w.dport)]
	}
	if !ok && m.host[w.dst] {
		f, ok = m.ports[w.dport]
	}
	if !ok {
		return fine
	}
	if !f.backend.IsValid() {
		return DatapathReasonFWD_REJECT
	}
	w.svc, w.flow = f.id, DatapathCtFlagsCT_SERVICE
	if f.direct {
		w.flow |= DatapathCtFlagsCT_DSR
	}
	backend := f.backend
	if !w.v4 {
		backend = netip.AddrPortFrom(six(backend.Addr()), backend.Port())
	}
	w.now.dst, w.now.dport = backend.Addr(), backend.Port()
	return fine
}

// six is the IPv6 address of whoever has an IPv4 address in the model's world.
func six(a netip.Addr) netip.Addr {
	for _, p := range []pair{podA, podB, node, world, far, direct, native} {
		if p.at(0) == a {
			return p.at(1)
		}
	}
	return a
}

// rewrite makes the packet that leaves; false when it is too short for that.
// Checksums are left: the caller looks at them as a whole.
func (w *walk) rewrite(in []byte) ([]byte, bool) {
	out := append([]byte{}, in...)
	if w.now != w.tuple && w.act != DatapathReasonFWD_DSR {
		if w.related {
			w.rewriteError(out)
		} else if !w.rewriteFlow(out) {
			return nil, false
		}
	}
	if w.leaves() {
		out[w.ttlAt()]--
	}
	switch w.act {
	case DatapathReasonFWD_TUNNEL:
		copy(out, make([]byte, 12))
	case DatapathReasonFWD_DSR:
		putBackend(out, w.now.dst, w.now.dport)
	default:
	}
	return out, true
}

func (w *walk) ttlAt() int {
	if w.v4 {
		return 22
	}
	return 21
}

func (w *walk) putAddrs(b []byte, src, dst netip.Addr) {
	s, d := src.AsSlice(), dst.AsSlice()
	copy(b, s)
	copy(b[len(s):], d)
}

func (w *walk) rewriteFlow(out []byte) bool {
	w.putAddrs(out[w.ttlAt()+w.toAddrs():], w.now.src, w.now.dst)
	if w.later {
		return true
	}
	sum := map[uint8]int{tcp: 16, udp: 6, icmp6: 2}[w.proto]
	if sum > 0 && w.l4+sum+2 > len(out) {
		return false
	}
	switch w.proto {
	case tcp, udp:
		binary.BigEndian.PutUint16(out[w.l4:], w.now.sport)
		binary.BigEndian.PutUint16(out[w.l4+2:], w.now.dport)
	case icmp, icmp6:
		if w.sport|w.dport != w.now.sport|w.now.dport {
			binary.BigEndian.PutUint16(out[w.l4+4:], w.now.sport|w.now.dport)
		}
	}
	return true
}

// toAddrs is how far the addresses are behind the TTL.
func (w *walk) toAddrs() int {
	if w.v4 {
		return 4
	}
	return 1
}

// rewriteError: the receiver, the sender if it is the flow's other end, and
// what is quoted.
func (w *walk) rewriteError(out []byte) {
	src := w.osrc
	if src == w.src {
		src = w.now.src
	}
	w.putAddrs(out[w.ttlAt()+w.toAddrs():], src, w.now.dst)
	at := 12
	if !w.v4 {
		at = 8
	}
	w.putAddrs(out[w.inner+at:], w.now.dst, w.now.src)
	switch w.proto {
	case tcp, udp:
		binary.BigEndian.PutUint16(out[w.inner4:], w.now.dport)
		binary.BigEndian.PutUint16(out[w.inner4+2:], w.now.sport)
	case icmp, icmp6:
		if w.sport|w.dport != w.now.sport|w.now.dport {
			binary.BigEndian.PutUint16(out[w.inner4+4:], w.now.sport|w.now.dport)
		}
	}
}
