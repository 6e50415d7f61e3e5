// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"sync"
)

// The plan of addresses. The switch and the services are the same in every
// cluster, for each lives in namespaces of its own.
const (
	controlIP4    = "10.99.0.1"
	controlIP6    = "fd99::1"
	controlURL    = "https://" + controlIP4 + ":6443"
	registryPort  = 5000
	podCIDRs      = "10.244.0.0/16,fd00:10:244::/56"
	serviceCIDRs  = "10.96.0.0/16,fd00:10:96::/112"
	serviceFirst4 = "10.96.0.1"
	serviceFirst6 = "fd00:10:96::1"
	clusterDNS    = "10.96.0.10"
	clusterDomain = "cluster.local"
)

// RegistryURL is the registry as the nodes see it.
func RegistryURL() string { return fmt.Sprintf("http://%s:%d", controlIP4, registryPort) }

// startControlBox makes the box of the control plane with the switch in it.
func (c *Cluster) startControlBox(ctx context.Context) error {
	b, err := newBox(ctx, "control", boxSpec{Hostname: "control"}, c.logPath("control", "init"))
	if err != nil {
		return err
	}
	c.Control = b
	c.onDown(b.Close)
	return b.ip(ctx,
		"link set lo up",
		"link add sw0 type bridge mcast_snooping 0",
		"addr add "+controlIP4+"/24 dev sw0",
		"addr add "+controlIP6+"/64 dev sw0 nodad",
		"link set sw0 up",
	)
}

// plug connects a box to the switch as eth0 with a default route through it:
// connect() to a ClusterIP needs a route before anything can be translated.
func (c *Cluster) plug(ctx context.Context, b *Box, ip4, ip6 string) error {
	if err := c.Control.ip(ctx,
		fmt.Sprintf("link add %s type veth peer name eth0 netns %d", b.Name, b.PID),
		fmt.Sprintf("link set %s master sw0 up", b.Name)); err != nil {
		return err
	}
	return b.ip(ctx,
		"link set lo up",
		"addr add "+ip4+"/24 dev eth0",
		"addr add "+ip6+"/64 dev eth0 nodad",
		"link set eth0 up",
		"route add default via "+controlIP4,
		"route add default via "+controlIP6,
	)
}

// Listen opens a TCP listener in the box's network.
func (b *Box) Listen(ctx context.Context, addr string) (l net.Listener, err error) {
	err = b.InNet(func() error {
		l, err = (&net.ListenConfig{}).Listen(ctx, "tcp", addr)
		return err
	})
	return l, err
}

// forwarder carries connections from loopback of the machine into a box.
type forwarder struct {
	listener net.Listener
	wg       sync.WaitGroup

	mu    sync.Mutex // guards open
	open  map[net.Conn]struct{}
	ended bool
}

// newForwarder listens on addr, or on any port of loopback when addr is taken.
func newForwarder(ctx context.Context, b *Box, addr, target string) (*forwarder, error) {
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "tcp", addr)
	if err != nil {
		if l, err = lc.Listen(ctx, "tcp", "127.0.0.1:0"); err != nil {
			return nil, err
		}
	}
	f := &forwarder{listener: l, open: map[net.Conn]struct{}{}}
	f.wg.Go(func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			f.wg.Go(func() { f.carry(context.WithoutCancel(ctx), b, conn, target) })
		}
	})
	return f, nil
}

// Forward carries connections from a loopback address of the machine, which it returns, to one of
// the box; stop ends them.
func (b *Box) Forward(ctx context.Context, target string) (addr string, stop func() error, err error) {
	f, err := newForwarder(ctx, b, "127.0.0.1:0", target)
	if err != nil {
		return "", nil, err
	}
	return f.addr(), func() error { return f.close(context.WithoutCancel(ctx)) }, nil
}

func (f *forwarder) carry(ctx context.Context, b *Box, in net.Conn, target string) {
	defer f.drop(in)
	if !f.keep(in) {
		return
	}
	out, err := b.Dial(ctx, "tcp", target)
	if err != nil {
		return
	}
	defer f.drop(out)
	if !f.keep(out) {
		return
	}
	var wg sync.WaitGroup
	for _, way := range [][2]net.Conn{{in, out}, {out, in}} {
		wg.Go(func() {
			_, _ = io.Copy(way[0], way[1])
			if half, ok := way[0].(interface{ CloseWrite() error }); ok {
				_ = half.CloseWrite()
			}
		})
	}
	wg.Wait()
}

func (f *forwarder) keep(c net.Conn) bool {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.open[c] = struct{}{}
	return !f.ended
}

func (f *forwarder) drop(c net.Conn) {
	_ = c.Close()
	f.mu.Lock()
	defer f.mu.Unlock()
	delete(f.open, c)
}

func (f *forwarder) addr() string { return f.listener.Addr().String() }

func (f *forwarder) close(context.Context) error {
	err := f.listener.Close()
	f.mu.Lock()
	f.ended = true
	for c := range f.open {
		err = errors.Join(err, ignoreClosed(c.Close()))
	}
	f.mu.Unlock()
	f.wg.Wait()
	return err
}

func ignoreClosed(err error) error {
	if errors.Is(err, net.ErrClosed) {
		return nil
	}
	return err
}
