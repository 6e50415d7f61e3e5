// SPDX-License-Identifier: Apache-2.0

package bpf

// covered is a checksum: where it is, and what it is about.
type covered struct {
	at     int
	ranges [][2]int
}

// rest is how far the sum is off; 0 is right.
func (c covered) rest(b []byte) uint16 {
	var s uint32
	for _, r := range c.ranges {
		s += sum(b[r[0]:r[1]])
	}
	if got := fold(s); got != 0xffff {
		return got
	}
	return 0
}

// sums are the checksums of a packet that translation touches.
func (w *walk) sums(in []byte) []covered {
	var out []covered
	if w.l4 == 0 {
		return nil // by the short cut: nothing is touched
	}
	addrs := [2]int{22, 54}
	if w.v4 {
		addrs = [2]int{26, 34}
		out = append(out, covered{24, [][2]int{{14, w.l4}}})
	}
	if w.later {
		return out
	}
	whole := [2]int{w.l4, len(in)}
	if w.related && w.v4 {
		out = append(out, covered{w.inner + 10, [][2]int{{w.inner, min(w.inner4, len(in))}}})
	}
	at, pseudo := w.sumAt()
	if at == 0 || w.l4+at+2 > len(in) || at == 6 && in[w.l4+6] == 0 && in[w.l4+7] == 0 {
		return out // none, or UDP that has none
	}
	if pseudo {
		return append(out, covered{w.l4 + at, [][2]int{addrs, whole}})
	}
	return append(out, covered{w.l4 + at, [][2]int{whole}})
}

// sumAt is where in the transport header the sum is, 0 for nowhere, and whether
// it is about the addresses, too.
func (w *walk) sumAt() (at int, pseudo bool) {
	proto := w.proto
	if w.related {
		proto = []uint8{icmp, icmp6}[one(!w.v4)]
	}
	switch proto {
	case tcp:
		return 16, true
	case udp:
		return 6, true
	case icmp6:
		return 2, true
	case icmp:
		if w.v4 {
			return 2, false
		}
	}
	return 0, false
}
