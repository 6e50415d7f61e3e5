// SPDX-License-Identifier: Apache-2.0

package link

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cni/netns"
)

// Create makes the pair and everything inside the pod, and returns the index
// of the host end, which stays down: nothing reaches the pod and the pod
// reaches nothing before Enable. A host end of the same name that was left by
// an earlier try is replaced. The error wraps ErrExists if the pod has an
// interface of that name. After an error nothing is left.
func (w *Wire) Create(ctx context.Context, pod *netns.NS, s Spec) (index int, retErr error) {
	err := w.add(ctx, pod, s)
	if errors.Is(err, unix.EEXIST) {
		// Either end may be a leftover of ours that waits for its deletion.
		if err := errors.Join(w.Remove(ctx, s.HostName), w.reap(ctx)); err != nil {
			return 0, fmt.Errorf("replace link %s: %w", s.HostName, err)
		}
		if err = w.add(ctx, pod, s); errors.Is(err, unix.EEXIST) {
			return 0, fmt.Errorf("create %s in %s: %w", s.IfName, pod.Path(), ErrExists)
		}
	}
	if err != nil {
		return 0, fmt.Errorf("create link %s to %s in %s: %w", s.HostName, s.IfName, pod.Path(), err)
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, w.Remove(context.WithoutCancel(ctx), s.HostName))
		}
	}()
	if index, err = w.indexOf(ctx, s.HostName); err != nil {
		return 0, fmt.Errorf("find link %s: %w", s.HostName, err)
	}
	if err := inside(pod, func(h *netlink.Handle) error { return furnish(h, s) }); err != nil {
		return 0, fmt.Errorf("set up %s in %s: %w", s.IfName, pod.Path(), err)
	}
	return index, nil
}

// add makes the pair with one message; the inner end never exists outside the
// pod's namespace (moving a link costs 12-19 ms, this 0.8).
func (w *Wire) add(ctx context.Context, pod *netns.NS, s Spec) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name, attrs.HardwareAddr, attrs.MTU, attrs.Group = s.HostName, s.HostMAC, s.MTU, Group
	veth := netlink.NewVeth(attrs)
	veth.PeerName, veth.PeerHardwareAddr, veth.PeerMTU = s.IfName, s.MAC, uint32(s.MTU)
	veth.PeerNamespace = netlink.NsFd(pod.Fd())
	return w.with(ctx, func(h *netlink.Handle) error { return h.LinkAdd(veth) })
}

func (w *Wire) indexOf(ctx context.Context, name string) (index int, err error) {
	err = w.with(ctx, func(h *netlink.Handle) error {
		l, err := h.LinkByName(name)
		if err != nil {
			return err
		}
		index = l.Attrs().Index
		return nil
	})
	return index, err
}

// furnish runs inside the pod.
func furnish(h *netlink.Handle, s Spec) error {
	peer, err := h.LinkByName(s.IfName)
	if err != nil {
		return err
	}
	var has6 bool
	for _, a := range s.Addrs {
		has6 = has6 || a.Is6()
	}
	if err := ipv6Quiet(s.IfName, has6); err != nil {
		return err
	}
	if err := h.LinkSetUp(byIndex(loIndex)); err != nil {
		return fmt.Errorf("set lo up: %w", err)
	}
	if err := h.LinkSetUp(peer); err != nil {
		return fmt.Errorf("set link up: %w", err)
	}
	for _, a := range s.Addrs {
		if err := furnishFamily(h, peer.Attrs().Index, a, s); err != nil {
			return fmt.Errorf("%s: %w", a, err)
		}
	}
	return nil
}

// loIndex is the index of lo in every namespace.
const loIndex = 1

// furnishFamily adds the address, the gateway's neighbour entry and the routes
// of one family.
func furnishFamily(h *netlink.Handle, index int, a netip.Addr, s Spec) error {
	// No duplicate address detection: the address is ours by allocation, and
	// tentative addresses would hold up the pod for a second and more.
	addr := &netlink.Addr{IPNet: hostPrefix(a), Flags: unix.IFA_F_NODAD}
	if err := h.AddrReplace(byIndex(index), addr); err != nil {
		return fmt.Errorf("add address: %w", err)
	}
	gw := Gateway(a)
	if err := setNeighbour(h, index, gw, s.HostMAC); err != nil {
		return err
	}
	if a.Is4() {
		// IPv6 takes a link-local gateway as on-link by nature.
		onLink := &netlink.Route{LinkIndex: index, Dst: hostPrefix(gw), Scope: netlink.SCOPE_LINK}
		if err := addRoute(h, onLink); err != nil {
			return fmt.Errorf("add route to the gateway: %w", err)
		}
	}
	if err := addRoute(h, defaultRoute(index, a, s)); err != nil {
		return fmt.Errorf("add default route: %w", err)
	}
	return nil
}

// secondMetric and above are the metrics of routes over an interface that is
// not the pod's first.
const secondMetric = 4096

// addRoute leaves to another interface of the pod what leads over it already:
// ours comes after it, and serves those who bind to our interface, or lose the other.
func addRoute(h *netlink.Handle, r *netlink.Route) error {
	err := h.RouteAdd(r)
	if errors.Is(err, unix.EEXIST) {
		r.Priority = secondMetric + r.LinkIndex
		err = h.RouteReplace(r)
	}
	return err
}

func defaultRoute(index int, a netip.Addr, s Spec) *netlink.Route {
	return &netlink.Route{LinkIndex: index, Gw: Gateway(a).AsSlice(), Dst: defaultPrefix(a), MTU: s.RouteMTU}
}

// setDefaultRoute replaces the default route over a link in its place among others.
func setDefaultRoute(h *netlink.Handle, index int, a netip.Addr, s Spec) error {
	r := defaultRoute(index, a, s)
	family := netlink.FAMILY_V6
	if a.Is4() {
		family = netlink.FAMILY_V4
	}
	have, err := dump(func() ([]netlink.Route, error) {
		return h.RouteListFiltered(family, r, netlink.RT_FILTER_OIF|netlink.RT_FILTER_DST)
	})
	if err != nil {
		return fmt.Errorf("list default routes: %w", err)
	}
	if len(have) == 0 {
		return addRoute(h, r)
	}
	r.Priority = have[0].Priority
	if err := h.RouteReplace(r); err != nil {
		return fmt.Errorf("set default route: %w", err)
	}
	return nil
}

func defaultPrefix(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: make(net.IP, a.BitLen()/8), Mask: net.CIDRMask(0, a.BitLen())}
}

func setNeighbour(h *netlink.Handle, index int, a netip.Addr, mac net.HardwareAddr) error {
	family := unix.AF_INET6
	if a.Is4() {
		family = unix.AF_INET
	}
	err := h.NeighSet(&netlink.Neigh{
		LinkIndex: index, Family: family, State: netlink.NUD_PERMANENT, IP: a.AsSlice(), HardwareAddr: mac,
	})
	if err != nil {
		return fmt.Errorf("set neighbour %s: %w", a, err)
	}
	return nil
}

// ipv6Quiet keeps IPv6 on an interface from doing anything by itself: no
// router discovery, no duplicate detection of the link-local address. It
// enables IPv6 where the namespace has it off but the pod has an address. It
// runs on a thread inside the namespace. A kernel without IPv6 has no such
// files, which matters only if the pod has an IPv6 address: adding it fails.
func ipv6Quiet(ifName string, enable bool) error {
	settings := []struct{ name, value string }{{"accept_ra", "0"}, {"accept_dad", "0"}}
	if enable {
		settings = append(settings, struct{ name, value string }{"disable_ipv6", "0"})
	}
	for _, s := range settings {
		path := filepath.Join("/proc/sys/net/ipv6/conf", ifName, s.name)
		if err := os.WriteFile(path, []byte(s.value), 0); err != nil && !errors.Is(err, os.ErrNotExist) {
			return fmt.Errorf("set %s: %w", path, err)
		}
	}
	return nil
}
