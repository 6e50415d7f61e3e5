// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"strings"
)

// Problem is one disagreement between records, leases and the kernel.
type Problem struct {
	// Subject is an attachment's key, an address or an interface of the node.
	Subject string `json:"subject"`
	// Faults say what is wrong, one each.
	Faults []string `json:"faults"`
}

// Verify compares everything with everything: each attachment with its link,
// addresses, routes and neighbours, leases and links with the attachments. It
// changes nothing. What is just being made or removed is left out.
func (n *Network) Verify(ctx context.Context) ([]Problem, error) {
	leave, err := n.enter()
	if err != nil {
		return nil, err
	}
	defer leave()
	// The records are read last: whatever is made after the others has one.
	leases := n.book.Leases()
	links, err := n.wire.List(ctx, n.cfg.LinkPrefix)
	if err != nil {
		return nil, err
	}
	recs := n.records.list()
	var out []Problem
	names, owners := map[string]bool{}, map[string]bool{}
	for k, rec := range recs {
		names[rec.Result.HostIfName], owners[k.String()] = true, true
	}
	for _, l := range leases {
		if !owners[l.Owner] {
			out = append(out, Problem{l.Addr.String(), []string{"it belongs to " + l.Owner + ", which does not exist"}})
		}
	}
	for _, l := range links {
		if !names[l.Name] && !l.Retired {
			out = append(out, Problem{l.Name, []string{"the interface belongs to no attachment"}})
		}
	}
	return append(out, n.verifyRecords(ctx, recs)...), nil
}

func (n *Network) verifyRecords(ctx context.Context, recs map[Key]record) (out []Problem) {
	keys := make([]Key, 0, len(recs))
	for k := range recs {
		keys = append(keys, k)
	}
	for _, k := range sortKeys(keys) {
		rec := recs[k]
		if rec.State != stateReady {
			continue
		}
		err := n.Check(ctx, Request{Key: k, NetNS: rec.Result.NetNS})
		if err != nil && !errors.Is(err, ErrUnknown) {
			out = append(out, Problem{k.String(), strings.Split(fmt.Sprint(err), "\n")})
		}
	}
	return out
}
