// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"slices"
	"strings"

	"github.com/nodeagent/nodeagent/dataplane/maps"
)

// put records a frontend and writes it if that changes anything. When another
// owner has it, a Service goes before a host port, and between equals who asks
// later; the other one gets it back when the first lets go.
func (t *table) put(c *change, owner string, key maps.ServiceKey, value maps.ServiceValue) {
	was, known := t.left[key]
	if known {
		t.claim(key, was)
	}
	old := t.forgetRival(key, owner)
	f := t.fronts[key]
	if f != nil && f.owner != owner {
		winner, loser := owner, f.owner
		if serves(f.owner) && !serves(owner) {
			winner, loser = f.owner, owner
		}
		if !old {
			c.rival = append(c.rival, fmt.Sprintf("%s is wanted by %s and %s; the first has it", frontendOf(key), winner, loser))
		}
		if winner != owner {
			t.rivals[key] = append(t.rivals[key], &front{owner, value})
			return
		}
		t.rivals[key] = append(t.rivals[key], f)
	}
	if f != nil {
		was, known = f.value, true
	}
	t.fronts[key] = &front{owner: owner, value: value}
	if !known || was != value {
		c.keys = append(c.keys, key)
		c.values = append(c.values, value)
	}
}

// leave ends an owner's wish for a frontend. A rival gets it.
func (t *table) leave(c *change, owner string, key maps.ServiceKey) {
	t.forgetRival(key, owner)
	if f := t.fronts[key]; f == nil || f.owner != owner {
		return
	}
	delete(t.fronts, key)
	all := t.rivals[key]
	if len(all) == 0 {
		c.gone = append(c.gone, key)
		return
	}
	next := all[len(all)-1]
	for _, r := range all {
		if serves(r.owner) && !serves(next.owner) {
			next = r
		}
	}
	t.forgetRival(key, next.owner)
	t.put(c, next.owner, key, next.value)
}

// forgetRival says whether an owner was waiting for a frontend.
func (t *table) forgetRival(key maps.ServiceKey, owner string) bool {
	all := t.rivals[key]
	i := slices.IndexFunc(all, func(f *front) bool { return f.owner == owner })
	if i < 0 {
		return false
	}
	if t.rivals[key] = slices.Delete(all, i, i+1); len(t.rivals[key]) == 0 {
		delete(t.rivals, key)
	}
	return true
}

func serves(owner string) bool { return strings.HasPrefix(owner, "service ") }
