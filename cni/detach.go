// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"fmt"

	"github.com/nodeagent/nodeagent/cni/link"
)

// Detach removes an attachment: first from the data path, then its link goes
// down, then its addresses begin their rest. It does not look at the pod's
// namespace, which may be gone, nor wait for the link's deletion, which follows
// within milliseconds. An unknown key is success.
func (n *Network) Detach(ctx context.Context, k Key) error {
	return n.detachIf(ctx, k, func(record) bool { return true })
}

// detachIf is Detach if the attachment, looked at again under its lock, still
// is what the caller thinks it is; an unknown key is not asked about.
func (n *Network) detachIf(ctx context.Context, k Key, still func(record) bool) (retErr error) {
	ctx, done := n.verb(ctx, "detach")
	defer done(&retErr)
	if err := k.validate(); err != nil {
		return fmt.Errorf("detach %s: %w", k, err)
	}
	leave, err := n.enter()
	if err != nil {
		return fmt.Errorf("detach %s: %w", k, err)
	}
	defer leave()
	unlock, err := n.locks.lock(ctx, k)
	if err != nil {
		return fmt.Errorf("detach %s: %w", k, err)
	}
	defer unlock()
	rec, ok := n.records.get(k)
	if ok && !still(rec) {
		return nil
	}
	if !ok {
		// A link without a record is what a crash can leave at most.
		rec = record{Request: Request{Key: k}}
		rec.Result.HostIfName = link.HostName(n.cfg.LinkPrefix, k.String())
	}
	if err := n.detachLocked(ctx, rec); err != nil {
		return fmt.Errorf("detach %s: %w", k, err)
	}
	if ok {
		n.log.InfoContext(ctx, "pod detached", "attachment", k, "pod_namespace", rec.Request.Pod.Namespace,
			"pod_name", rec.Request.Pod.Name, "addrs", rec.Result.Addrs)
	}
	return nil
}

// detachLocked has no undo: each step may be repeated, and what a failure
// leaves is recorded as to be finished.
func (n *Network) detachLocked(ctx context.Context, rec record) error {
	key := rec.Request.Key
	return n.runSteps(ctx, []step{
		{name: "mark", do: func(context.Context) error {
			if _, ok := n.records.get(key); !ok || rec.State == stateDeleting {
				return nil
			}
			rec.State = stateDeleting
			return n.records.put(rec)
		}},
		{name: "endpoint", do: func(ctx context.Context) error { return n.dp.DeleteEndpoint(ctx, key.String()) }},
		{name: "retire", do: func(ctx context.Context) error {
			found, err := n.wire.Retire(ctx, rec.Result.HostIfName)
			if found {
				n.wakeReaper()
			}
			return err
		}},
		{name: "release", do: func(context.Context) error { return n.release(key) }},
	})
}

func (n *Network) wakeReaper() {
	select {
	case n.dead <- struct{}{}:
	default: // it is awake already
	}
}

// reapLoop deletes retired links, as many as there are at a time.
func (n *Network) reapLoop(ctx context.Context) {
	for {
		select {
		case <-n.dead:
			if err := n.wire.Reap(ctx); err != nil {
				n.log.WarnContext(ctx, "retired links not deleted yet", "err", err)
			}
		case <-ctx.Done():
			return
		}
	}
}
