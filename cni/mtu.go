// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"context"
	"errors"
	"fmt"

	"github.com/nodeagent/nodeagent/cni/netns"
)

// defaultMTU is that of a node without a way out.
const defaultMTU = 1500

// mtus are those of an attachment's device and of its default routes; a route
// of 0 has the device's.
type mtus struct{ device, route int }

// SetMTU says which MTU pods have, those that run included: of their devices
// (0: that of the uplink, whatever it becomes) and of their default routes (0:
// that of the tunnel, if there is one, else the device's).
func (n *Network) SetMTU(ctx context.Context, device, route int) error {
	n.mu.Lock()
	n.wantMTU = mtus{device, route}
	n.mu.Unlock()
	leave, err := n.enter()
	if err != nil {
		return nil // Start looks at it
	}
	defer leave()
	return n.followMTU(ctx)
}

// mtuLoop follows the devices that pods have their MTU from: a tunnel comes
// with the first node that is reached through it, and connections that are made
// with too large an MTU lose packets until they hear of it.
func (n *Network) mtuLoop(ctx context.Context) {
	changed := make(chan struct{}, 1)
	changed <- struct{}{} // what happened before anybody listened
	deaf, err := n.wire.Watch(ctx, n.cfg.LinkPrefix, changed)
	for err == nil {
		select {
		case <-changed:
			if err := n.followMTU(ctx); err != nil && ctx.Err() == nil {
				n.log.WarnContext(ctx, "pods keep the mtu they had", "err", err)
			}
		case <-deaf:
			if ctx.Err() != nil {
				return
			}
			select {
			case changed <- struct{}{}:
			default:
			}
			deaf, err = n.wire.Watch(ctx, n.cfg.LinkPrefix, changed)
		}
	}
	n.log.WarnContext(ctx, "changes of the mtu are followed by reconciliation only", "err", err)
}

// followMTU finds out which MTU pods should have and gives it to those that
// have another.
func (n *Network) followMTU(ctx context.Context) error {
	n.following.Lock()
	defer n.following.Unlock()
	if err := n.resolveMTU(ctx); err != nil {
		return err
	}
	var errs []error
	for k, rec := range n.records.list() {
		if (rec.State == stateReady || rec.State == stateWarm) && rec.mtu() != n.currentMTU() {
			errs = append(errs, n.changeMTU(ctx, k))
		}
	}
	return errors.Join(errs...)
}

// resolveMTU looks at the uplink unless the device's MTU was given.
func (n *Network) resolveMTU(ctx context.Context) error {
	n.mu.Lock()
	m := n.wantMTU
	n.mu.Unlock()
	if m.device == 0 {
		uplinks, err := n.wire.Uplinks(ctx)
		if err != nil {
			return err
		}
		m.device = defaultMTU
		for i, u := range uplinks {
			if i == 0 || u.MTU < m.device {
				m.device = u.MTU
			}
		}
	}
	if m.route == 0 && n.deps.Tunnel != "" {
		var err error
		if m.route, err = n.wire.MTUOf(ctx, n.deps.Tunnel); err != nil {
			return err
		}
	}
	if m.route >= m.device {
		m.route = 0
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if n.mtu != m && n.mtu.device != 0 {
		n.log.InfoContext(ctx, "mtu of pods changed", "device", m.device, "route", m.route)
	}
	n.mtu = m
	return nil
}

func (n *Network) currentMTU() mtus {
	n.mu.Lock()
	defer n.mu.Unlock()
	return n.mtu
}

func (r record) mtu() mtus { return mtus{r.Result.MTU, r.RouteMTU} }

// changeMTU gives one attachment the current MTU.
func (n *Network) changeMTU(ctx context.Context, k Key) error {
	unlock, err := n.locks.lock(ctx, k)
	if err != nil {
		return err
	}
	defer unlock()
	rec, ok := n.records.get(k)
	if !ok || rec.State != stateReady && rec.State != stateWarm {
		return nil
	}
	ns, err := netns.Open(rec.Result.NetNS)
	if err != nil {
		return nil // the pod is going or gone
	}
	defer ns.Close() //nolint:errcheck // a read-only descriptor: nothing can be lost
	if ns.Inode() != rec.NetNSInode {
		return nil
	}
	m := n.currentMTU()
	rec.Result.MTU, rec.RouteMTU = m.device, m.route
	if err := n.wire.SetMTU(ctx, ns, rec.Result.HostIfIndex, n.linkSpec(rec)); err != nil {
		return fmt.Errorf("change the MTU of %s: %w", k, err)
	}
	return n.records.put(rec)
}
