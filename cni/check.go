// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"github.com/nodeagent/nodeagent/cni/ipam"
	"github.com/nodeagent/nodeagent/cni/netns"
)

// Check compares an attachment with what Attach left: record, leases, both ends
// of the link, addresses, routes and neighbours. Of the request it reads the
// key, the namespace and, if there are any, the addresses that the caller
// believes in. It reports all differences at once, wrapped in ErrBroken.
func (n *Network) Check(ctx context.Context, req Request) (retErr error) {
	ctx, done := n.verb(ctx, "check")
	defer done(&retErr)
	if err := n.check(ctx, req); err != nil {
		return fmt.Errorf("check %s: %w", req.Key, err)
	}
	return nil
}

func (n *Network) check(ctx context.Context, req Request) error {
	if err := req.validate(); err != nil {
		return err
	}
	leave, err := n.enter()
	if err != nil {
		return err
	}
	defer leave()
	unlock, err := n.locks.lock(ctx, req.Key)
	if err != nil {
		return err
	}
	defer unlock()
	rec, ok := n.records.get(req.Key)
	if !ok || rec.State != stateReady {
		return ErrUnknown
	}
	ns, err := netns.Open(req.NetNS)
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // a read-only descriptor: nothing can be lost
	var faults []error
	if ns.Inode() != rec.NetNSInode {
		faults = append(faults, fmt.Errorf("%w: %s is not the namespace it was made in", ErrBroken, req.NetNS))
	}
	for _, a := range req.Addrs {
		if !slices.Contains(n.linkSpec(rec).Addrs, a) {
			faults = append(faults, fmt.Errorf("%w: it does not have address %s", ErrBroken, a))
		}
	}
	for _, p := range rec.Result.Addrs {
		if !slices.ContainsFunc(n.book.Owned(req.String()), func(l ipam.Lease) bool { return l.Addr == p.Addr() }) {
			faults = append(faults, fmt.Errorf("%w: address %s is not reserved for it", ErrBroken, p.Addr()))
		}
	}
	return errors.Join(append(faults, n.inspect(ctx, rec, ns))...)
}

func (n *Network) inspect(ctx context.Context, rec record, ns *netns.NS) error {
	return n.wire.Inspect(ctx, ns, rec.Result.HostIfIndex, n.linkSpec(rec))
}
