// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"encoding/binary"
	"net/netip"
)

// Packets are built here from scratch, with every checksum computed in full:
// what the programs mend step by step has to come out the same.

const (
	tcp   = 6
	udp   = 17
	icmp  = 1
	icmp6 = 58
)

// wire describes a packet.
type wire struct {
	src, dst     netip.Addr
	sport, dport uint16 // of echo: identifier and, as dport, sequence
	proto        uint8
	flags        uint8 // of TCP
	ttl          uint8 // 0: 64
	noSum        bool  // UDP without checksum
	reply        bool  // of echo
	payload      []byte
	frag         uint16 // offset and flags of IPv4
	icmpType     uint8  // 0: echo
	icmpCode     uint8
	raw          []byte // instead of the transport header and payload
}

func (w wire) v4() bool { return w.src.Is4() }

func (w wire) bytes() []byte {
	eth := []byte{2, 0, 0, 0, 0, 1, 2, 0, 0, 0, 0, 2}
	if w.v4() {
		eth = binary.BigEndian.AppendUint16(eth, 0x0800)
	} else {
		eth = binary.BigEndian.AppendUint16(eth, 0x86dd)
	}
	return append(eth, w.ip()...)
}

// ip is the packet without the link header.
func (w wire) ip() []byte {
	l4 := w.l4()
	ttl := w.ttl
	if ttl == 0 {
		ttl = 64
	}
	if !w.v4() {
		h := []byte{0x60, 0, 0, 0}
		h = binary.BigEndian.AppendUint16(h, uint16(len(l4)))
		h = append(h, w.proto, ttl)
		h = append(h, w.src.AsSlice()...)
		return append(append(h, w.dst.AsSlice()...), l4...)
	}
	h := []byte{0x45, 0}
	h = binary.BigEndian.AppendUint16(h, uint16(20+len(l4)))
	h = append(h, 0x12, 0x34)
	h = binary.BigEndian.AppendUint16(h, w.frag)
	h = append(h, ttl, w.proto, 0, 0)
	h = append(h, w.src.AsSlice()...)
	h = append(h, w.dst.AsSlice()...)
	binary.BigEndian.PutUint16(h[10:], fold(sum(h)))
	return append(h, l4...)
}

func (w wire) l4() []byte {
	if w.raw != nil {
		return w.raw
	}
	var h []byte
	var at int
	switch w.proto {
	case tcp:
		h = binary.BigEndian.AppendUint16(h, w.sport)
		h = binary.BigEndian.AppendUint16(h, w.dport)
		h = append(h, 0, 0, 0, 1, 0, 0, 0, 0, 0x50, w.flags, 0xff, 0xff, 0, 0, 0, 0)
		at = 16
	case udp:
		h = binary.BigEndian.AppendUint16(h, w.sport)
		h = binary.BigEndian.AppendUint16(h, w.dport)
		h = binary.BigEndian.AppendUint16(h, uint16(8+len(w.payload)))
		h = append(h, 0, 0)
		at = 6
	default:
		h = []byte{w.typ(), w.icmpCode, 0, 0}
		h = binary.BigEndian.AppendUint16(h, w.sport)
		h = binary.BigEndian.AppendUint16(h, w.dport)
		at = 2
	}
	h = append(h, w.payload...)
	if w.noSum {
		return h
	}
	s := sum(h)
	if w.proto != icmp {
		s += sum(w.src.AsSlice()) + sum(w.dst.AsSlice()) + uint32(w.proto) + uint32(len(h))
	}
	c := fold(s)
	if c == 0 && w.proto == udp {
		c = 0xffff
	}
	binary.BigEndian.PutUint16(h[at:], c)
	return h
}

func (w wire) typ() uint8 {
	switch {
	case w.icmpType != 0:
		return w.icmpType
	case w.proto == icmp && w.reply:
		return 0
	case w.proto == icmp:
		return 8
	case w.reply:
		return 129
	default:
		return 128
	}
}

// turned is the answer to a packet.
func (w wire) turned() wire {
	w.src, w.dst = w.dst, w.src
	if w.proto == icmp || w.proto == icmp6 {
		w.reply = !w.reply
		return w
	}
	w.sport, w.dport = w.dport, w.sport
	if w.proto == tcp {
		w.flags = 0x12
	}
	return w
}

func sum(b []byte) uint32 {
	var s uint32
	for i := 0; i+1 < len(b); i += 2 {
		s += uint32(b[i])<<8 | uint32(b[i+1])
	}
	if len(b)%2 == 1 {
		s += uint32(b[len(b)-1]) << 8
	}
	return s
}

func fold(s uint32) uint16 {
	for s > 0xffff {
		s = s>>16 + s&0xffff
	}
	return ^uint16(s)
}
