// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Interface is what the data path has to know of an interface of the node.
type Interface struct {
	Index int
	Name  string
	MTU   int
	// Addrs are its addresses, in the kernel's order, link-local ones left out.
	Addrs []netip.Addr
	// Links are the ranges that are directly reachable by it.
	Links []netip.Prefix
	// Default says that a default route leads out of it.
	Default bool
}

// Host is the node's side of the network, as the kernel sees it.
type Host struct {
	Interfaces []Interface
}

// Addrs are all addresses of the node, loopback left out.
func (h Host) Addrs() []netip.Addr {
	var out []netip.Addr
	for _, i := range h.Interfaces {
		for _, a := range i.Addrs {
			if !a.IsLoopback() && !slices.Contains(out, a) {
				out = append(out, a)
			}
		}
	}
	return out
}

// retries of a dump that the kernel says was interrupted by a change.
const retries = 10

// retry repeats a netlink dump until it is consistent.
func retry[T any](dump func() (T, error)) (T, error) {
	var out T
	var err error
	for range retries {
		out, err = dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return out, err
		}
	}
	return out, err
}

// ReadHost reads interfaces, addresses and default routes of the calling
// thread's network namespace.
func ReadHost() (Host, error) {
	h := &netlink.Handle{}
	links, err := retry(h.LinkList)
	if err != nil {
		return Host{}, fmt.Errorf("list interfaces: %w", err)
	}
	addrs, err := retry(func() ([]netlink.Addr, error) { return h.AddrList(nil, netlink.FAMILY_ALL) })
	if err != nil {
		return Host{}, fmt.Errorf("list addresses: %w", err)
	}
	defaults, err := defaultRoutes(h)
	if err != nil {
		return Host{}, err
	}
	var out Host
	for _, l := range links {
		a := l.Attrs()
		i := Interface{Index: a.Index, Name: a.Name, MTU: a.MTU, Default: defaults[a.Index]}
		for _, addr := range addrs {
			ip, ok := netip.AddrFromSlice(addr.IP)
			ip = ip.Unmap()
			if addr.LinkIndex != a.Index || !ok || ip.Is6() && ip.IsLinkLocalUnicast() {
				continue
			}
			ones, _ := addr.Mask.Size()
			i.Addrs = append(i.Addrs, ip)
			i.Links = append(i.Links, netip.PrefixFrom(ip, ones).Masked())
		}
		out.Interfaces = append(out.Interfaces, i)
	}
	return out, nil
}

func defaultRoutes(h *netlink.Handle) (map[int]bool, error) {
	out := map[int]bool{}
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		routes, err := retry(func() ([]netlink.Route, error) {
			return h.RouteListFiltered(family, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return nil, fmt.Errorf("list routes: %w", err)
		}
		for _, r := range routes {
			if r.Dst != nil && !isDefault(r) {
				continue
			}
			if r.LinkIndex > 0 {
				out[r.LinkIndex] = true
			}
			for _, nh := range r.MultiPath {
				out[nh.LinkIndex] = true
			}
		}
	}
	return out, nil
}

func isDefault(r netlink.Route) bool {
	ones, _ := r.Dst.Mask.Size()
	return ones == 0 && r.Dst.IP.IsUnspecified() && r.Type == unix.RTN_UNICAST
}

// Forwarding makes the node a router for its pods, which the kernel's part of
// the data path needs. Uplinks keep accepting router advertisements.
func Forwarding(uplinks []string) error {
	for _, name := range uplinks {
		path := "/proc/sys/net/ipv6/conf/" + name + "/accept_ra"
		if v, err := os.ReadFile(path); err == nil && string(v) == "1\n" {
			if err := os.WriteFile(path, []byte("2"), 0); err != nil {
				return fmt.Errorf("keep router advertisements: %w", err)
			}
		}
	}
	for _, path := range []string{"/proc/sys/net/ipv4/ip_forward", "/proc/sys/net/ipv6/conf/all/forwarding"} {
		v, err := os.ReadFile(path)
		if errors.Is(err, os.ErrNotExist) || err == nil && string(v) == "1\n" {
			continue
		}
		if err := os.WriteFile(path, []byte("1"), 0); err != nil {
			return fmt.Errorf("enable forwarding: %w", err)
		}
	}
	return nil
}

// fileHas says whether a line of a file is just this word.
func fileHas(path, word string) bool {
	data, err := os.ReadFile(path)
	return err == nil && slices.Contains(strings.Fields(string(data)), word)
}
