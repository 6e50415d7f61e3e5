// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"cmp"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
)

// claim says which peer has each range, and what was refused: of two that
// overlap the one that is in force stays, else the first peer by name has it. The
// node's own ranges are nobody else's. The caller holds mu.
func (d *Dataplane) claim() (map[netip.Prefix]string, error) {
	type wish struct {
		peer   string
		prefix netip.Prefix
		waits  int // 1 when it is not in force
	}
	var wishes []wish
	for _, name := range slices.Sorted(maps.Keys(d.peers)) {
		for _, c := range d.peers[name].PodCIDRs {
			w := wish{name, c.Masked(), 1}
			if d.claims[w.prefix] == name {
				w.waits = 0
			}
			wishes = append(wishes, w)
		}
	}
	slices.SortStableFunc(wishes, func(a, b wish) int { return cmp.Compare(a.waits, b.waits) })
	claims := map[netip.Prefix]string{}
	var errs []error
	for _, w := range wishes {
		if claims[w.prefix] == w.peer {
			continue // said twice
		}
		if whose := d.overlaps(claims, w.prefix); whose != "" {
			errs = append(errs, fmt.Errorf("%w peer %s: its range %s overlaps with %s", ErrInvalid, w.peer, w.prefix, whose))
			continue
		}
		claims[w.prefix] = w.peer
	}
	return claims, errors.Join(errs...)
}

// overlaps names a range that another one overlaps with, and who has it; empty
// when there is none.
func (d *Dataplane) overlaps(claims map[netip.Prefix]string, c netip.Prefix) string {
	for _, own := range d.node.PodCIDRs {
		if own.Overlaps(c) {
			return fmt.Sprintf("%s of this node", own.Masked())
		}
	}
	for o, peer := range claims {
		if o.Overlaps(c) {
			return fmt.Sprintf("%s of peer %s", o, peer)
		}
	}
	return ""
}
