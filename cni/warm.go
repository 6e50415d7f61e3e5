// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"

	"go.etcd.io/bbolt"

	"github.com/nodeagent/nodeagent/cni/ipam"
	"github.com/nodeagent/nodeagent/cni/netns"
)

// linkPreparer is a data path that can attach its programs ahead of a pod.
type linkPreparer interface {
	PrepareLink(ctx context.Context, ifindex int) error
}

// Warm gives a namespace that waits for a pod its interface and addresses,
// from the node's own ranges: everything of an attach that costs time. The link
// stays down and the data path knows no endpoint. Attach in the same namespace
// takes it over, if it suits the pod, and else replaces it; Detach of the same
// key throws it away. Slots survive a restart of the daemon.
func (n *Network) Warm(ctx context.Context, k Key, path string) (retErr error) {
	ctx, done := n.verb(ctx, "warm")
	defer done(&retErr)
	if err := n.warm(ctx, k, path); err != nil {
		return fmt.Errorf("warm %s: %w", k, err)
	}
	return nil
}

func (n *Network) warm(ctx context.Context, k Key, path string) error {
	if err := errors.Join(k.validate(), n.Status(ctx)); err != nil {
		return err
	}
	leave, err := n.enter()
	if err != nil {
		return err
	}
	defer leave()
	ns, err := n.openPod(path)
	if err != nil {
		return err
	}
	defer ns.Close() //nolint:errcheck // a read-only descriptor: nothing can be lost
	unlock, err := n.locks.lock(ctx, k)
	if err != nil {
		return err
	}
	defer unlock()
	if old, ok := n.records.get(k); ok {
		if old.State == stateWarm && old.NetNSInode == ns.Inode() {
			return nil
		}
		return fmt.Errorf("%w: the key is in use", ErrInvalid)
	}
	rec := n.newRecord(Request{Key: k, NetNS: path}, ns)
	if err := n.runSteps(ctx, n.warmSteps(&rec, ns)); err != nil {
		return n.noteUndone(rec, err)
	}
	return nil
}

func (n *Network) warmSteps(rec *record, ns *netns.NS) []step {
	steps := n.attachSteps(rec, ipam.DefaultPool, ns)[:2] // reserve, link
	return append(steps,
		step{
			name: "prepare",
			do: func(ctx context.Context) error {
				if p, ok := n.dp.(linkPreparer); ok {
					return p.PrepareLink(ctx, rec.Result.HostIfIndex)
				}
				return nil
			},
		},
		step{
			name: "commit",
			do: func(context.Context) error {
				rec.State = stateWarm
				return n.records.put(*rec)
			},
		})
}

// claim makes the warm slot in a namespace the attachment of a pod. It returns
// nil and no error if there is none; one that does not suit the pod is removed.
func (n *Network) claim(ctx context.Context, req Request, pool string, ns *netns.NS) (*Result, error) {
	slot, ok := n.slotIn(ns)
	if !ok {
		return nil, nil
	}
	unlock, err := n.locks.lock(ctx, slot)
	if err != nil {
		return nil, err
	}
	defer unlock()
	old, ok := n.records.get(slot)
	if !ok || old.State != stateWarm || old.NetNSInode != ns.Inode() {
		return nil, nil // somebody was quicker
	}
	// The inode may have been given to another namespace since.
	there, err := n.wire.Exists(ctx, old.Result.HostIfName, old.Result.HostIfIndex)
	if err != nil {
		return nil, err
	}
	if !there || !old.suits(req, pool, n.currentMTU()) {
		return nil, n.detachLocked(ctx, old)
	}
	rec := old
	rec.State, rec.Request, rec.Since = statePending, req, n.deps.Now()
	rec.Result.Key, rec.Result.NetNS = req.Key, req.NetNS
	if err := n.runSteps(ctx, n.claimSteps(&rec, slot)); err != nil {
		return nil, n.noteUndone(rec, err)
	}
	return &rec.Result, nil
}

// slotIn returns the key of the warm slot in a namespace.
func (n *Network) slotIn(ns *netns.NS) (Key, bool) {
	n.records.mu.Lock()
	defer n.records.mu.Unlock()
	k, ok := n.records.warm[ns.Inode()]
	return k, ok
}

// suits says if a pod that asks for this can have the slot as it is.
func (r record) suits(req Request, pool string, m mtus) bool {
	for _, a := range req.Addrs {
		if !slices.Contains(r.Result.Addrs, netip.PrefixFrom(a, a.BitLen())) {
			return false
		}
	}
	return pool == ipam.DefaultPool && len(req.Ranges) == 0 && req.IfName == r.Request.IfName && r.mtu() == m && len(req.MAC) == 0
}

// claimSteps are attachSteps for a link that exists. When one after the first
// fails the slot is gone: there is another, or Attach without one.
func (n *Network) claimSteps(rec *record, slot Key) []step {
	rest := n.attachSteps(rec, "", nil)[2:] // endpoint, enable, commit
	return append([]step{
		{
			name: "claim", anchor: true,
			do:   func(context.Context) error { return n.rename(rec, slot) },
			undo: func(context.Context) error { return n.release(rec.Request.Key) },
		},
		{
			name: "adopt",
			do:   func(context.Context) error { return nil },
			undo: func(ctx context.Context) error { return n.wire.Remove(ctx, rec.Result.HostIfName) },
		},
	}, rest...)
}

// rename gives the slot's leases to the pod and replaces its record by that of
// the pod, in one transaction.
func (n *Network) rename(rec *record, slot Key) error {
	err := n.book.Rename(slot.String(), rec.Request.String(), func(tx *bbolt.Tx, _ []ipam.Lease) error {
		return errors.Join(deleteRecord(tx, slot), putRecord(tx, *rec))
	})
	if err != nil {
		return err
	}
	n.records.forget(slot)
	n.records.remember(*rec)
	return nil
}

// WarmSlots returns the keys of all slots that wait for a pod.
func (n *Network) WarmSlots() []Key {
	var out []Key
	for k, rec := range n.records.list() {
		if rec.State == stateWarm {
			out = append(out, k)
		}
	}
	return sortKeys(out)
}
