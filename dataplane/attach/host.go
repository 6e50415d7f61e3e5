// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"

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

// Watch sends on changed, without waiting, whenever interfaces, addresses or
// routes of the calling thread's network namespace change; several changes may
// become one. It returns once it listens. The channel that it returns is closed
// when it does not any more: ctx has ended, or the kernel had more to say than
// a socket holds. Then the host has to be read, and watched anew.
func Watch(ctx context.Context, changed chan<- struct{}) (<-chan struct{}, error) {
	ctx, cancel := context.WithCancel(ctx)
	done, err := watch(ctx, cancel, changed)
	if err != nil {
		cancel()
	}
	return done, err
}

func watch(ctx context.Context, cancel context.CancelFunc, changed chan<- struct{}) (<-chan struct{}, error) {
	links := make(chan netlink.LinkUpdate, 64)
	addrs := make(chan netlink.AddrUpdate, 64)
	routes := make(chan netlink.RouteUpdate, 64)
	if err := netlink.LinkSubscribe(links, ctx.Done()); err != nil {
		return nil, fmt.Errorf("watch interfaces: %w", err)
	}
	if err := netlink.AddrSubscribe(addrs, ctx.Done()); err != nil {
		return nil, fmt.Errorf("watch addresses: %w", err)
	}
	if err := netlink.RouteSubscribe(routes, ctx.Done()); err != nil {
		return nil, fmt.Errorf("watch routes: %w", err)
	}
	done := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() { notify(cancel, links, changed) })
	wg.Go(func() { notify(cancel, addrs, changed) })
	wg.Go(func() { notify(cancel, routes, changed) })
	go func() {
		wg.Wait()
		close(done)
	}()
	return done, nil
}

// notify ends when the subscription closes its channel; the others end with it.
func notify[T any](cancel context.CancelFunc, from <-chan T, changed chan<- struct{}) {
	defer cancel()
	for range from {
		select {
		case changed <- struct{}{}:
		default:
		}
	}
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
