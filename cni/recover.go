// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"time"

	"github.com/nodeagent/nodeagent/cni/ipam"
	"github.com/nodeagent/nodeagent/cni/netns"
)

// recoverAll makes the kernel and the data path agree with the records. What
// was being made or removed when the daemon ended is removed; what was in place
// is told to the data path; only then is pruned what nobody owns.
func (n *Network) recoverAll(ctx context.Context) error {
	var keep []string
	owned := map[string]bool{}
	for k, rec := range n.records.list() {
		if rec.State != stateReady && rec.State != stateWarm {
			if err := n.detachLocked(ctx, rec); err != nil {
				return fmt.Errorf("finish what was begun with %s: %w", k, err)
			}
			n.log.InfoContext(ctx, "unfinished attachment removed", "attachment", k, "state", string(rec.State))
			continue
		}
		there, err := n.wire.Exists(ctx, rec.Result.HostIfName, rec.Result.HostIfIndex)
		if err != nil {
			return err
		}
		if !there {
			continue // reconciliation looks twice before it frees anything
		}
		owned[rec.Result.HostIfName] = true
		if rec.State == stateWarm {
			continue // no pod, no endpoint
		}
		if err := n.dp.UpdateEndpoint(ctx, endpoint(rec)); err != nil {
			return fmt.Errorf("tell the data path about %s: %w", k, err)
		}
		keep = append(keep, k.String())
	}
	if err := n.dp.PruneEndpoints(ctx, keep); err != nil {
		return fmt.Errorf("prune endpoints: %w", err)
	}
	return errors.Join(n.pruneLeases(ctx), n.pruneLinks(ctx, owned))
}

// pruneLeases frees addresses whose owner has no record. The two go together in
// one transaction, so this finds nothing unless the database was tampered with.
func (n *Network) pruneLeases(ctx context.Context) error {
	owners := map[string]bool{}
	for k := range n.records.list() {
		owners[k.String()] = true
	}
	for _, l := range n.book.Leases() {
		if owners[l.Owner] {
			continue
		}
		n.log.WarnContext(ctx, "address without an attachment freed", "addr", l.Addr, "owner", l.Owner)
		if err := n.book.Release(l.Owner, nil); err != nil {
			return err
		}
	}
	return nil
}

// pruneLinks deletes our links that no attachment in place has.
func (n *Network) pruneLinks(ctx context.Context, owned map[string]bool) error {
	links, err := n.wire.List(ctx, n.cfg.LinkPrefix)
	if err != nil {
		return err
	}
	for _, l := range links {
		if owned[l.Name] {
			continue
		}
		if _, err := n.wire.Retire(ctx, l.Name); err != nil {
			return err
		}
		n.log.InfoContext(ctx, "link without an attachment removed", "interface", l.Name, "alias", l.Alias)
	}
	return n.wire.Reap(ctx)
}

// reconcileLoop looks for attachments whose pod is gone, for ever.
func (n *Network) reconcileLoop(ctx context.Context) {
	tick := time.NewTicker(n.cfg.ReconcileInterval)
	defer tick.Stop()
	for {
		select {
		case <-tick.C:
			if err := n.Reconcile(ctx); err != nil && ctx.Err() == nil {
				n.log.WarnContext(ctx, "reconciliation incomplete", "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}

// Reconcile looks once at every attachment and link. What two looks in a row
// find without a pod is removed: an attachment whose link is gone and whose
// namespace is gone or another one, and a link that no attachment has. A
// removal that failed earlier is tried again at once. It goes on past errors.
func (n *Network) Reconcile(ctx context.Context) error {
	leave, err := n.enter()
	if err != nil {
		return err
	}
	defer leave()
	seen := map[string]bool{}
	links := map[string]bool{}
	owned := map[string]bool{}
	list, err := n.wire.List(ctx, n.cfg.LinkPrefix)
	if err != nil {
		return err
	}
	for _, l := range list {
		links[l.Name] = true
	}
	// The records are read after the links: a link made in between has one.
	errs := []error{n.replayLate(ctx), n.followMTU(ctx)}
	for k, rec := range n.records.list() {
		owned[rec.Result.HostIfName] = true
		switch {
		case rec.State == stateDeleting:
			errs = append(errs, n.detachIf(ctx, k, func(r record) bool { return r.State == stateDeleting }))
		case rec.State != statePending && !links[rec.Result.HostIfName] && podGone(rec):
			seen["attachment "+k.String()] = true
			if n.suspected("attachment " + k.String()) {
				n.log.WarnContext(ctx, "attachment of a pod that is gone removed", "attachment", k, "addrs", rec.Result.Addrs)
				errs = append(errs, n.detachIf(ctx, k, podGone))
			}
		}
	}
	for _, l := range list {
		if owned[l.Name] && !l.Retired {
			continue
		}
		seen["link "+l.Name] = true
		if !n.suspected("link " + l.Name) {
			continue
		}
		n.log.WarnContext(ctx, "link without an attachment removed", "interface", l.Name, "alias", l.Alias)
		_, err := n.wire.Retire(ctx, l.Name)
		errs = append(errs, err)
		n.wakeReaper()
	}
	n.setSuspects(seen)
	return errors.Join(errs...)
}

// podGone says if the namespace of an attachment is gone from its path.
func podGone(rec record) bool {
	ns, err := netns.Open(rec.Result.NetNS)
	if err != nil {
		return true
	}
	defer ns.Close() //nolint:errcheck // a read-only descriptor: nothing can be lost
	return ns.Inode() != rec.NetNSInode
}

func (n *Network) suspected(what string) bool {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.suspects[what]
}

// Suspects are the attachments and links that the last look found without a
// pod, and the next one removes if it finds them again, sorted.
func (n *Network) Suspects() []string {
	n.mu.Lock()
	defer n.mu.Unlock()
	return slices.Sorted(maps.Keys(n.suspects))
}

func (n *Network) setSuspects(seen map[string]bool) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.suspects = seen
}

// Collect removes every attachment of a CNI network (empty: of the CRI in this
// process) whose key is not in valid. The caller promises that no Attach or
// Detach of that network is under way. It goes on past errors.
func (n *Network) Collect(ctx context.Context, network string, valid []Key) (retErr error) {
	ctx, done := n.verb(ctx, "collect")
	defer done(&retErr)
	leave, err := n.enter()
	if err != nil {
		return fmt.Errorf("collect: %w", err)
	}
	defer leave()
	keep := map[Key]bool{}
	for _, k := range valid {
		keep[k] = true
	}
	var stale []Key
	for k, rec := range n.records.list() {
		if rec.Request.Network == network && !keep[k] {
			stale = append(stale, k)
		}
	}
	var errs []error
	for _, k := range sortKeys(stale) {
		n.log.InfoContext(ctx, "attachment without a sandbox collected", "attachment", k, "network", network)
		errs = append(errs, n.Detach(ctx, k))
	}
	return errors.Join(errs...)
}

// Capacity says if another pod can have addresses from the node's own ranges:
// nil, or an error that wraps ErrExhausted.
func (n *Network) Capacity() error {
	free := map[bool]uint64{}
	var known []bool
	for _, u := range n.book.Usage() {
		if u.Pool != ipam.DefaultPool {
			continue
		}
		v6 := u.Prefix.Addr().Is6()
		if _, ok := free[v6]; !ok {
			known = append(known, v6)
		}
		free[v6] += u.Total - u.Used
	}
	for _, v6 := range known {
		if free[v6] == 0 {
			return fmt.Errorf("%w: every address of the node's pod CIDRs is in use", ErrExhausted)
		}
	}
	return nil
}
