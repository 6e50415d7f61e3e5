// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"context"
	"fmt"
	"net/netip"
	"sync"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Concern says which changes are worth telling of. It is asked by several
// goroutines at once and must not wait.
type Concern interface {
	// Link is asked of changes of interfaces.
	Link(index int, name string) bool
	// Host is asked of changes of routes to one address alone.
	Host(addr netip.Addr) bool
}

// Watch sends on changed, without waiting, whenever interfaces, addresses or
// routes of the calling thread's network namespace change in a way that
// concerns; several changes may become one. It returns once it listens. The
// channel that it returns is closed when it does not any more: ctx has ended,
// or the kernel had more to say than a socket holds. Then the host has to be
// read, and watched anew.
func Watch(ctx context.Context, changed chan<- struct{}, c Concern) (<-chan struct{}, error) {
	ctx, cancel := context.WithCancel(ctx)
	done, err := watch(ctx, cancel, changed, c)
	if err != nil {
		cancel()
	}
	return done, err
}

func watch(ctx context.Context, cancel context.CancelFunc, changed chan<- struct{}, c Concern) (<-chan struct{}, error) {
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
	wg.Go(func() {
		notify(cancel, links, changed, func(u netlink.LinkUpdate) bool { return c.Link(u.Attrs().Index, u.Attrs().Name) })
	})
	wg.Go(func() { notify(cancel, addrs, changed, counts) })
	wg.Go(func() { notify(cancel, routes, changed, func(u netlink.RouteUpdate) bool { return leads(u.Route, c) }) })
	go func() {
		wg.Wait()
		close(done)
	}()
	return done, nil
}

// counts says whether an address is one that ReadHost returns.
func counts(u netlink.AddrUpdate) bool {
	ip, ok := netip.AddrFromSlice(u.LinkAddress.IP)
	return ok && (ip.Unmap().Is4() || !ip.IsLinkLocalUnicast())
}

// leads says whether a route may be a default route or the way to what concerns.
func leads(r netlink.Route, c Concern) bool {
	if r.Type == unix.RTN_MULTICAST {
		return false
	}
	if r.Dst == nil {
		return true
	}
	ones, bits := r.Dst.Mask.Size()
	ip, ok := netip.AddrFromSlice(r.Dst.IP)
	if ok && ip.Is6() && ip.IsLinkLocalUnicast() {
		return false
	}
	return !ok || ones < bits || c.Host(ip.Unmap())
}

// notify ends when the subscription closes its channel; the others end with it.
func notify[T any](cancel context.CancelFunc, from <-chan T, changed chan<- struct{}, concerns func(T) bool) {
	defer cancel()
	for u := range from {
		if !concerns(u) {
			continue
		}
		select {
		case changed <- struct{}{}:
		default:
		}
	}
}
