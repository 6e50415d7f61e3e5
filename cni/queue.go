// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"fmt"
	"time"

	"github.com/nodeagent/nodeagent/cni/conflist"
	"github.com/nodeagent/nodeagent/cni/shim"
)

// lockPatience bounds the wait for CNI programs that write a delete down; each
// holds the lock for a few milliseconds.
const lockPatience = 10 * time.Second

// openQueue does the deletes that came while the daemon was away. It keeps the
// queue's lock until Open, so that a CNI program that finds nobody on the
// socket waits instead of writing down what nobody would read.
func (n *Network) openQueue(ctx context.Context) error {
	lock, err := n.queue.Lock(true, lockPatience)
	if err != nil {
		return fmt.Errorf("lock the queue of deletes: %w", err)
	}
	n.setQueueLock(lock)
	return n.replay(ctx)
}

// replay does the deletes of the queue. One that fails stays for the next time.
func (n *Network) replay(ctx context.Context) error {
	err := n.queue.Each(func(c shim.Call) error {
		k := Key{c.ContainerID, c.IfName}
		rec, ok := n.records.get(k)
		if !ok {
			return nil
		}
		n.log.InfoContext(ctx, "queued delete done", "attachment", k)
		return n.detachLocked(ctx, rec)
	})
	if err != nil {
		n.log.WarnContext(ctx, "queued deletes not all done yet", "err", err)
	}
	return nil
}

// Open says that the local API answers now: CNI programs that wait go on, and
// as soon as the node has pod CIDRs other runtimes find the network.
func (n *Network) Open(ctx context.Context) error {
	if err := n.closeQueue(); err != nil {
		return fmt.Errorf("release the queue of deletes: %w", err)
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	n.opened = true
	return n.announce(ctx)
}

// announce writes the conflist once Attach can be served. The caller holds mu.
func (n *Network) announce(ctx context.Context) error {
	if !n.cfg.Conflist.Enabled || !n.opened || len(n.cidrs) == 0 {
		return nil
	}
	changed, err := conflist.Write(n.cfg.Conflist, n.deps.Socket, n.cfg.QueueDir)
	if changed {
		n.log.InfoContext(ctx, "conflist written", "path", n.cfg.Conflist.Path)
	}
	return err
}

func (n *Network) closeQueue() error {
	if lock := n.setQueueLock(nil); lock != nil {
		return lock.Unlock()
	}
	return nil
}

// setQueueLock replaces the lock and returns the old one.
func (n *Network) setQueueLock(l *shim.Lock) *shim.Lock {
	n.mu.Lock()
	defer n.mu.Unlock()
	old := n.queueLock
	n.queueLock = l
	return old
}

// replayLate does deletes that were written down in spite of the lock (a CNI
// program that could not reach a busy daemon).
func (n *Network) replayLate(ctx context.Context) error {
	lock, err := n.queue.Lock(true, 0)
	if err != nil {
		return nil // someone writes just now: next time
	}
	defer lock.Unlock() //nolint:errcheck // closing releases it in any case
	return n.queue.Each(func(c shim.Call) error { return n.Detach(ctx, Key{c.ContainerID, c.IfName}) })
}
