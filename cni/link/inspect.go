// SPDX-License-Identifier: Apache-2.0

package link

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cni/netns"
)

// Inspect compares a link with its spec on both ends and reports every
// difference at once; the error wraps ErrBroken.
func (w *Wire) Inspect(ctx context.Context, pod *netns.NS, index int, s Spec) error {
	var faults []error
	report := func(format string, args ...any) {
		faults = append(faults, fmt.Errorf("%w: "+format, append([]any{ErrBroken}, args...)...))
	}
	if err := ctx.Err(); err != nil {
		return fmt.Errorf("inspect %s: %w", s.HostName, err)
	}
	err := inside(w.host, func(h *netlink.Handle) error { return inspectHost(h, index, s, report) })
	if err != nil {
		return fmt.Errorf("inspect %s: %w", s.HostName, err)
	}
	err = inside(pod, func(h *netlink.Handle) error { return inspectPod(h, s, report) })
	if err != nil {
		return fmt.Errorf("inspect %s in %s: %w", s.IfName, pod.Path(), err)
	}
	return errors.Join(faults...)
}

type reporter func(format string, args ...any)

func inspectHost(h *netlink.Handle, index int, s Spec, report reporter) error {
	l, err := h.LinkByName(s.HostName)
	switch {
	case absent(err):
		report("host interface %s is gone", s.HostName)
		return nil
	case err != nil:
		return err
	case l.Attrs().Index != index:
		report("host interface %s is another one, index %d instead of %d", s.HostName, l.Attrs().Index, index)
	}
	inspectLink(l, s.HostName, s.HostMAC, report)
	for _, a := range s.Addrs {
		routes, err := h.RouteGet(a.AsSlice())
		if err != nil || len(routes) == 0 || routes[0].LinkIndex != index || routes[0].Gw != nil {
			report("the node has no route to %s over %s", a, s.HostName)
		}
		if err := inspectNeighbour(index, a, s.MAC, report); err != nil {
			return err
		}
	}
	return nil
}

func inspectPod(h *netlink.Handle, s Spec, report reporter) error {
	l, err := h.LinkByName(s.IfName)
	if absent(err) {
		report("interface %s is gone", s.IfName)
		return nil
	}
	if err != nil {
		return err
	}
	inspectLink(l, s.IfName, s.MAC, report)
	have, err := addrsOf(h, l)
	if err != nil {
		return err
	}
	for _, a := range s.Addrs {
		if !have[a] {
			report("address %s is not on %s", a, s.IfName)
			continue
		}
		gw := Gateway(a)
		routes, err := h.RouteGetWithOptions(outside(a).AsSlice(), &netlink.RouteGetOptions{OifIndex: l.Attrs().Index})
		if err != nil || len(routes) == 0 || routes[0].LinkIndex != l.Attrs().Index || !routes[0].Gw.Equal(gw.AsSlice()) {
			report("the default route over %s via %s is missing", s.IfName, gw)
		}
		if err := inspectNeighbour(l.Attrs().Index, gw, s.HostMAC, report); err != nil {
			return err
		}
	}
	return nil
}

func inspectLink(l netlink.Link, name string, mac net.HardwareAddr, report reporter) {
	if l.Attrs().RawFlags&unix.IFF_UP == 0 {
		report("interface %s is down", name)
	}
	if !bytes.Equal(l.Attrs().HardwareAddr, mac) {
		report("interface %s has hardware address %s instead of %s", name, l.Attrs().HardwareAddr, mac)
	}
}

// outside returns an address that only a default route leads to (the
// documentation ranges of RFC 5737 and RFC 3849).
func outside(a netip.Addr) netip.Addr {
	if a.Is4() {
		return netip.AddrFrom4([4]byte{192, 0, 2, 1})
	}
	return netip.AddrFrom16([16]byte{0: 0x20, 1: 0x01, 2: 0x0d, 3: 0xb8, 15: 1})
}

func addrsOf(h *netlink.Handle, l netlink.Link) (map[netip.Addr]bool, error) {
	addrs, err := dump(func() ([]netlink.Addr, error) { return h.AddrList(l, netlink.FAMILY_ALL) })
	if err != nil {
		return nil, fmt.Errorf("list addresses: %w", err)
	}
	have := map[netip.Addr]bool{}
	for _, a := range addrs {
		if ip, ok := netip.AddrFromSlice(a.IP); ok {
			have[ip.Unmap()] = true
		}
	}
	return have, nil
}

// inspectNeighbour runs on a thread inside the link's namespace.
func inspectNeighbour(index int, a netip.Addr, mac net.HardwareAddr, report reporter) error {
	n, err := neighbour(index, a)
	switch {
	case errors.Is(err, unix.ENOENT):
		report("the permanent neighbour %s is missing", a)
	case err != nil:
		return fmt.Errorf("get neighbour %s: %w", a, err)
	case n.State&netlink.NUD_PERMANENT == 0 || !bytes.Equal(n.HardwareAddr, mac):
		report("the neighbour %s is %s, not %s for ever", a, n.HardwareAddr, mac)
	}
	return nil
}

// neighbour asks for one entry (RTM_GETNEIGH, kernel 5.0), which the netlink
// library can only do by reading all of them.
func neighbour(index int, a netip.Addr) (*netlink.Neigh, error) {
	family := uint8(unix.AF_INET6)
	if a.Is4() {
		family = unix.AF_INET
	}
	req := nl.NewNetlinkRequest(unix.RTM_GETNEIGH, unix.NLM_F_ACK)
	req.AddData(&netlink.Ndmsg{Family: family, Index: uint32(index)})
	req.AddData(nl.NewRtAttr(netlink.NDA_DST, a.AsSlice()))
	msgs, err := req.Execute(unix.NETLINK_ROUTE, unix.RTM_NEWNEIGH)
	if err != nil {
		return nil, err
	}
	if len(msgs) != 1 {
		return nil, fmt.Errorf("%d answers", len(msgs))
	}
	return netlink.NeighDeserialize(msgs[0])
}
