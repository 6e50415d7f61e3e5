// SPDX-License-Identifier: Apache-2.0

// Package link makes a pod's link: a veth pair whose inner end is born in the
// pod's namespace, host-prefix addresses, a link-local gateway, permanent
// neighbours on both ends, host routes. It is the only netlink writer beside
// dataplane/attach. It promises that nothing on the way of an attach reads a
// dump, whose cost grows with the node and which churn can interrupt for ever,
// and that whatever it makes carries Group, so that it is found again.
package link

import (
	"context"
	"crypto/sha256"
	"encoding/base32"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cni/netns"
)

// Groups of links (IFLA_GROUP); "na" in ASCII.
const (
	// Group marks the host end of a pod's link.
	Group = 0x6e61
	// groupRetired marks a host end that is about to be deleted.
	groupRetired = 0x6e62
)

// Errors of this package.
var (
	// ErrExists: the interface exists inside the pod and is not ours to replace.
	ErrExists = errors.New("interface already exists in the namespace")
	// ErrBroken: Inspect found something that is not as Create and Enable leave it.
	ErrBroken = errors.New("link is not as it was made")
)

// The gateways are the same in every pod: link-local, permanent neighbours
// with the host end's address, never resolved.
var (
	gateway4 = netip.AddrFrom4([4]byte{169, 254, 1, 1})
	gateway6 = netip.AddrFrom16([16]byte{0: 0xfe, 1: 0x80, 15: 1})
)

// Gateway returns the pod's gateway in the family of a.
func Gateway(a netip.Addr) netip.Addr {
	if a.Is4() {
		return gateway4
	}
	return gateway6
}

// HostName returns the name of the host end for an attachment: prefix and a
// hash of the id, 15 characters at most.
func HostName(prefix, id string) string {
	sum := sha256.Sum256([]byte(id))
	name := prefix + strings.ToLower(base32.StdEncoding.EncodeToString(sum[:8]))
	return name[:unix.IFNAMSIZ-1]
}

// MACs returns the hardware addresses of the two ends for an attachment:
// locally administered, the same each time they are asked for.
func MACs(id string) (pod, host net.HardwareAddr) {
	sum := sha256.Sum256([]byte("mac " + id))
	pod, host = sum[:6:6], sum[6:12:12]
	pod[0], host[0] = pod[0]&0xfc|2, host[0]&0xfc|2
	return pod, host
}

// Spec describes one link.
type Spec struct {
	// HostName and HostMAC are those of the host end.
	HostName string
	HostMAC  net.HardwareAddr
	// Alias is shown by ip link, for people.
	Alias string
	// IfName and MAC are those of the pod's end.
	IfName string
	MAC    net.HardwareAddr
	// Addrs are the pod's addresses, at most one per family.
	Addrs []netip.Addr
	// MTU is that of the device.
	MTU int
	// RouteMTU is that of the pod's default route; 0 means the device's.
	RouteMTU int
}

// Wire makes links between one host namespace and pods.
type Wire struct {
	host *netns.NS
	// free has the handles nobody uses; each is one socket in the host namespace.
	free chan *netlink.Handle

	mu sync.Mutex // guards reaping
	// reaping is closed when the deletion under way is done; nil: none is.
	reaping chan struct{}
}

// handles is how many netlink requests may be in flight; the kernel serialises
// most of them under one lock, so more would only wait there.
const handles = 4

// socketTimeout bounds one netlink answer, so that a verb never hangs for ever.
const socketTimeout = 30 * time.Second

// Open returns a Wire whose host ends are in the namespace host, which must
// stay open until Close.
func Open(host *netns.NS) (*Wire, error) {
	w := &Wire{host: host, free: make(chan *netlink.Handle, handles)}
	err := host.Do(func() error {
		for range handles {
			h, err := newHandle()
			if err != nil {
				return err
			}
			w.free <- h
		}
		return nil
	})
	if err != nil {
		w.Close()
		return nil, fmt.Errorf("open netlink: %w", err)
	}
	return w, nil
}

// newHandle opens a socket in the thread's namespace.
func newHandle() (*netlink.Handle, error) {
	h, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, err
	}
	if err := h.SetSocketTimeout(socketTimeout); err != nil {
		h.Close()
		return nil, err
	}
	return h, nil
}

// Close closes the sockets that nobody uses.
func (w *Wire) Close() {
	for {
		select {
		case h := <-w.free:
			h.Close()
		default:
			return
		}
	}
}

// with lends a handle in the host namespace to f.
func (w *Wire) with(ctx context.Context, f func(*netlink.Handle) error) error {
	select {
	case h := <-w.free:
		defer func() { w.free <- h }()
		return f(h)
	case <-ctx.Done():
		return context.Cause(ctx)
	}
}

// inside runs f with a handle of a namespace, on a thread in it.
func inside(ns *netns.NS, f func(*netlink.Handle) error) error {
	return ns.Do(func() error {
		h, err := newHandle()
		if err != nil {
			return fmt.Errorf("open netlink in %s: %w", ns.Path(), err)
		}
		defer h.Close()
		return f(h)
	})
}

// hostPrefix returns a as a prefix of its whole length.
func hostPrefix(a netip.Addr) *net.IPNet {
	return &net.IPNet{IP: a.AsSlice(), Mask: net.CIDRMask(a.BitLen(), a.BitLen())}
}

// byIndex is a link of which only the index matters.
func byIndex(index int) netlink.Link {
	return &netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: index}}
}

// absent says if err means that the object is not there.
func absent(err error) bool {
	var notFound netlink.LinkNotFoundError
	return errors.As(err, &notFound) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ESRCH) ||
		errors.Is(err, unix.ENXIO)
}
