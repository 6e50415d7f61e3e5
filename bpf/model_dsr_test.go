// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
)

// direct says whether a packet is led to the backend's node: its flow is, or it
// begins one from outside whose service wants it, whose backend's node takes it,
// and whose client is no other node, nor a pod of one.
func (m *model) direct(w *walk) bool {
	if w.flow&DatapathCtFlagsCT_DSR == 0 {
		return false
	}
	if w.known != nil {
		return !w.reply
	}
	if w.hook != DatapathHookHOOK_NET || !m.takes(w.now.dst) || m.takes(w.src) {
		return false
	}
	from, known := m.route(w.src)
	return !known || from == DatapathReasonPASS_ROUTE
}

// takes says whether the node of an address takes what is led to it.
func (m *model) takes(a netip.Addr) bool {
	for p := range m.led {
		if p.Contains(a) {
			return true
		}
	}
	return false
}

// elsewhere: replies of the flow do not pass here.
func (r *record) elsewhere(w *walk) bool {
	return r.is(DatapathCtFlagsCT_DSR) && w.hook == DatapathHookHOOK_NET
}

// noteDirect records one direction only: nobody here sees the other.
func (m *model) noteDirect(w *walk, r *record) DatapathReason {
	r.flags |= DatapathCtFlagsCT_XLAT
	r.other = w.now
	m.set(r)
	return fine
}

// putBackend writes the backend where link addresses are.
func putBackend(mac []byte, a netip.Addr, port uint16) {
	h, b := uint64(0xcbf29ce484222325), a.As16()
	for i := 0; i < 16; i += 4 {
		h = (h ^ uint64(binary.LittleEndian.Uint32(b[i:]))) * 0x9e3779b97f4a7c15
		h ^= h >> 32
	}
	id := binary.LittleEndian.AppendUint64(nil, h>>8)
	mac[0], mac[1], mac[6] = 2, 0, 2
	binary.BigEndian.PutUint16(mac[2:], port)
	copy(mac[4:], id[5:7])
	copy(mac[7:], id[:5])
}
