// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
)

// tuple is one direction of a flow; echo has its identifier as the port of the
// side that asks.
type tuple struct {
	src, dst     netip.Addr
	sport, dport uint16
	proto        uint8
}

func (t tuple) turned() tuple { return tuple{t.dst, t.src, t.dport, t.sport, t.proto} }

// parsed is what the model reads in a packet.
type parsed struct {
	tuple
	v4            bool
	ttl, flags    uint8
	l4            int        // offset of the transport header
	id            uint32     // of a fragmented packet
	first, later  bool       // fragments
	related       bool       // an ICMP error: the tuple is the quoted one, turned
	osrc          netip.Addr // of an ICMP error: its sender
	inner, inner4 int        // offsets of what it quotes
}

// reader reads numbers out of a packet, and remembers when there was none.
type reader struct {
	b     []byte
	short bool
}

func (r *reader) bytes(at, n int) []byte {
	if at+n > len(r.b) {
		r.short = true
		return make([]byte, n)
	}
	return r.b[at : at+n]
}

func (r *reader) u8(at int) uint8   { return r.bytes(at, 1)[0] }
func (r *reader) u16(at int) uint16 { return binary.BigEndian.Uint16(r.bytes(at, 2)) }
func (r *reader) addr(at, n int) netip.Addr {
	a, _ := netip.AddrFromSlice(r.bytes(at, n))
	return a
}

const (
	truncated = DatapathReasonDROP_TRUNCATED
	malformed = DatapathReasonDROP_MALFORMED
	fine      = DatapathReasonREASON_NONE
)

// parse reads a packet as the first stage does; the second result is the reason
// for which it ends there.
func (m *model) parse(b []byte) (p parsed, why DatapathReason) {
	r := &reader{b: b}
	switch r.u16(12) {
	case 0x0800:
		why = p.ip4(r)
	case 0x86dd:
		why = p.ip6(r)
	default:
		return p, DatapathReasonPASS_NOT_IP
	}
	if why == fine && !p.later {
		why = p.transport(r)
	}
	if why != fine || !p.first && !p.later {
		return p, why
	}
	key := fragment{p.src, p.dst, p.id, p.proto}
	if p.first {
		m.frags[key] = [2]uint16{p.sport, p.dport}
	} else if ports, ok := m.frags[key]; ok {
		p.sport, p.dport = ports[0], ports[1]
	}
	return p, fine
}

func (p *parsed) ip4(r *reader) DatapathReason {
	ihl, size := int(r.u8(14)&0xf)*4, int(r.u16(16))
	frag := r.u16(20)
	p.src, p.dst = r.addr(26, 4), r.addr(30, 4)
	p.v4, p.ttl, p.proto, p.l4 = true, r.u8(22), r.u8(23), 14+ihl
	p.later, p.first = frag&0x1fff != 0, frag&0x3fff == 0x2000
	p.id = uint32(r.u16(18))
	switch {
	case r.short:
		return truncated
	case r.u8(14)>>4 != 4 || ihl < 20 || size < ihl:
		return malformed
	case size+14 > len(r.b):
		return truncated
	}
	return fine
}

func (p *parsed) ip6(r *reader) DatapathReason {
	p.src, p.dst = r.addr(22, 16), r.addr(38, 16)
	p.proto, p.ttl, p.l4 = r.u8(20), r.u8(21), 54
	switch {
	case r.short:
		return truncated
	case r.u8(14)>>4 != 6:
		return malformed
	case int(r.u16(18))+54 > len(r.b):
		return truncated
	case p.src.Is4In6() || p.dst.Is4In6():
		return malformed
	}
	for range 6 {
		var size int
		switch p.proto {
		case 0, 43, 60:
			size = (int(r.u8(p.l4+1)) + 1) * 8
		case 51:
			size = (int(r.u8(p.l4+1)) + 2) * 4
		case 44:
			size = 8
			off := r.u16(p.l4 + 2)
			p.later, p.first = off&0xfff8 != 0, off&0xfff8 == 0 && off&1 != 0
			p.id = binary.BigEndian.Uint32(r.bytes(p.l4+4, 4))
		default:
			return p.extended(r)
		}
		next := r.u8(p.l4)
		if r.short {
			return truncated
		}
		fragment := p.proto == 44
		p.proto, p.l4 = next, p.l4+size
		if fragment && p.later {
			return p.extended(r)
		}
	}
	return malformed
}

func (p *parsed) extended(r *reader) DatapathReason {
	if p.l4 > len(r.b) {
		return truncated
	}
	return fine
}

func (p *parsed) transport(r *reader) DatapathReason {
	switch p.proto {
	case tcp:
		p.sport, p.dport = r.u16(p.l4), r.u16(p.l4+2)
		r.bytes(p.l4, 16)
		if !r.short && r.u8(p.l4+12)>>4 < 5 {
			return malformed
		}
		p.flags = r.u8(p.l4 + 13)
	case udp, 132:
		p.sport, p.dport = r.u16(p.l4), r.u16(p.l4+2)
	case icmp, icmp6:
		if p.v4 == (p.proto == icmp) {
			return p.icmp(r)
		}
	}
	if r.short {
		return truncated
	}
	return fine
}

func (p *parsed) icmp(r *reader) DatapathReason {
	r.bytes(p.l4, 8)
	if r.short {
		return truncated
	}
	typ := r.u8(p.l4)
	ask, answer := p.echo()
	switch {
	case typ == ask:
		p.sport = r.u16(p.l4 + 4)
	case typ == answer:
		p.dport = r.u16(p.l4 + 4)
	case p.v4 && (typ == 3 || typ == 11 || typ == 12), !p.v4 && typ >= 1 && typ <= 4:
		return p.quoted(r)
	case !p.v4 && (typ >= 130 && typ <= 137 || typ == 143):
		return DatapathReasonPASS_NEIGHBOUR
	}
	return fine
}

// echo are the types of question and answer.
func (p *parsed) echo() (ask, answer uint8) {
	if p.v4 {
		return 8, 0
	}
	return 128, 129
}

// quoted reads the packet that an error is about.
func (p *parsed) quoted(r *reader) DatapathReason {
	var in tuple
	p.inner = p.l4 + 8
	if p.v4 {
		ihl := int(r.u8(p.inner)&0xf) * 4
		in.src, in.dst, in.proto = r.addr(p.inner+12, 4), r.addr(p.inner+16, 4), r.u8(p.inner+9)
		p.inner4 = p.inner + ihl
		if !r.short && (r.u8(p.inner)>>4 != 4 || ihl < 20) {
			return malformed
		}
	} else {
		in.src, in.dst, in.proto = r.addr(p.inner+8, 16), r.addr(p.inner+24, 16), r.u8(p.inner+6)
		p.inner4 = p.inner + 40
	}
	switch in.proto {
	case tcp, udp, 132:
		in.sport, in.dport = r.u16(p.inner4), r.u16(p.inner4+2)
	case icmp, icmp6:
		r.bytes(p.inner4, 8)
		ask, answer := p.echo()
		if typ := r.u8(p.inner4); typ == ask {
			in.sport = r.u16(p.inner4 + 4)
		} else if typ == answer {
			in.dport = r.u16(p.inner4 + 4)
		}
	}
	if r.short {
		return truncated
	}
	if in.src != p.dst {
		return malformed
	}
	p.osrc, p.related = p.src, true
	p.tuple = in.turned()
	return fine
}
