// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"fmt"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Remove deletes the link with this host end, if it is one of ours, and waits
// until it is gone. Nothing to delete is success.
func (w *Wire) Remove(ctx context.Context, hostName string) error {
	err := w.with(ctx, func(h *netlink.Handle) error {
		l, err := h.LinkByName(hostName)
		if absent(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if !ours(l) {
			return fmt.Errorf("%w: %s was not made by nodeagent", ErrExists, hostName)
		}
		if err := h.LinkDel(byIndex(l.Attrs().Index)); err != nil && !absent(err) {
			return err
		}
		return nil
	})
	if err != nil {
		return fmt.Errorf("remove link %s: %w", hostName, err)
	}
	return nil
}

func ours(l netlink.Link) bool {
	g := l.Attrs().Group
	return l.Type() == "veth" && (g == Group || g == groupRetired)
}

// Retire takes a link out of service at once: the host end goes down, which
// removes its routes and neighbours, so that nothing reaches the pod any more.
// Its deletion, which waits for RCU (12-20 ms), follows by Reap. It says
// whether there was a link.
func (w *Wire) Retire(ctx context.Context, hostName string) (found bool, err error) {
	err = w.with(ctx, func(h *netlink.Handle) error {
		l, err := h.LinkByName(hostName)
		if absent(err) {
			return nil
		}
		if err != nil {
			return err
		}
		if !ours(l) {
			return fmt.Errorf("%w: it was not made by nodeagent", ErrExists)
		}
		if err := retire(h, l.Attrs().Index); err != nil && !absent(err) {
			return err
		}
		found = true
		return nil
	})
	if err != nil {
		return false, fmt.Errorf("retire link %s: %w", hostName, err)
	}
	return found, nil
}

// retire sets a link down and moves it to the group of those to be deleted,
// with one message.
func retire(h *netlink.Handle, index int) error {
	if err := h.LinkSetGroup(byIndex(index), groupRetired); err != nil {
		return err
	}
	return h.LinkSetDown(byIndex(index))
}

// Reap deletes all retired links with one request, so that any number of them
// waits for RCU once. A call while a deletion is under way joins the next one.
func (w *Wire) Reap(ctx context.Context) error { return w.reap(ctx) }

func (w *Wire) reap(ctx context.Context) error {
	for {
		w.mu.Lock()
		under := w.reaping
		if under == nil {
			under = make(chan struct{})
			w.reaping = under
			w.mu.Unlock()
			err := w.deleteGroup()
			w.mu.Lock()
			w.reaping = nil
			w.mu.Unlock()
			close(under)
			return err
		}
		w.mu.Unlock()
		select {
		case <-under:
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}

// deleteGroup is RTM_DELLINK with a group instead of a name, which the netlink
// library does not offer.
func (w *Wire) deleteGroup() error {
	return w.host.Do(func() error {
		req := nl.NewNetlinkRequest(unix.RTM_DELLINK, unix.NLM_F_ACK)
		req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
		req.AddData(nl.NewRtAttr(unix.IFLA_GROUP, nl.Uint32Attr(groupRetired)))
		if _, err := req.Execute(unix.NETLINK_ROUTE, 0); err != nil && !absent(err) {
			return fmt.Errorf("delete retired links: %w", err)
		}
		return nil
	})
}
