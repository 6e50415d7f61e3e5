// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/dataplane/observe"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

var (
	balancers = []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:cafe::1")}
	outsiders = []netip.Addr{netip.MustParseAddr("192.0.2.254"), netip.MustParseAddr("2001:db8:1::fe")}
)

// direct makes the hosts of a laboratory lead flows from outside to each other.
func direct(mode string) func(*Config) {
	return func(c *Config) { c.ServiceOptions.ExternalMode = mode }
}

// leadTo makes the world reach the balancers' addresses by a host.
func (l *lab) leadTo(tb testing.TB, h *host, addrs ...netip.Addr) {
	tb.Helper()
	for i, ip := range addrs {
		l.world.run(tb, fmt.Sprintf("ip route replace %s via %s", ip, h.node.Addrs[i%2]))
	}
}

func (l *lab) serveEverywhere(tb testing.TB, objs ...service.Object) {
	tb.Helper()
	for _, h := range l.hosts {
		h.agent.must(tb, "UpdateServices", objs)
	}
}

// TestRootDirectReturn asks services from the world through a node that has no
// backend: the backend sees the client, and the answer passes that node by.
func TestRootDirectReturn(t *testing.T) {
	for _, mode := range []string{"auto", "vxlan"} {
		t.Run(mode, func(t *testing.T) {
			l := newLabWith(t, 2, direct(ExternalDSR))
			x, y := l.hosts[0], l.hosts[1]
			b := y.addPod(t, "b")
			l.join(t, mode)
			b.serve(t, "b", 80, b.addrs...)
			y.serve(t, "y", 81, y.node.Addrs...)
			affine := newService("affine", vips(3), 80, b.target())
			affine.Service.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
			l.serveEverywhere(t,
				external(newService("b", vips(1), 80, b.target()), 30080, balancers, false),
				external(newService("y", vips(2), 81, y.target()), 30081, nil, false),
				external(affine, 30082, nil, false))
			l.leadTo(t, x, balancers...)
			for i := range 2 {
				for what, c := range map[string]struct {
					to   netip.AddrPort
					name string
				}{
					"node port":              {netip.AddrPortFrom(x.node.Addrs[i], 30080), "b"},
					"balancer":               {netip.AddrPortFrom(balancers[i], 80), "b"},
					"node port to a node":    {netip.AddrPortFrom(x.node.Addrs[i], 30081), "y"},
					"with affinity":          {netip.AddrPortFrom(x.node.Addrs[i], 30082), "b"},
					"backend's own node too": {netip.AddrPortFrom(y.node.Addrs[i], 30080), "b"},
				} {
					for _, network := range []string{"tcp", "udp"} {
						t.Run(what+"/"+family(c.to.Addr())+"/"+network, func(t *testing.T) {
							name, saw, err := l.world.ask(network, c.to)
							if err != nil || name != c.name || saw != outsiders[i].String() {
								t.Errorf("got %s which saw %s, %v; want %s which saw %s", name, saw, err, c.name, outsiders[i])
							}
						})
					}
				}
			}
			if n := counted(t, x, "world"); n != 0 {
				t.Errorf("%d packets went back through the first node", n)
			}
			// Other nodes are no clients from outside: one may be its own backend.
			for i := range 2 {
				for port, want := range map[uint16]string{30080: "b", 30081: "y"} {
					if name, _, err := y.ask("tcp", netip.AddrPortFrom(x.node.Addrs[i], port)); err != nil || name != want {
						t.Errorf("from the backend's node: got %s, %v; want %s", name, err, want)
					}
				}
			}
			// The answers passed the first node by: it has seen one direction only.
			if n := counted(t, x, "direct_return"); n == 0 {
				t.Error("nothing was led to the other node")
			}
			l.streamDirect(t, netip.AddrPortFrom(balancers[0], 80))
			l.streamDirect(t, netip.AddrPortFrom(balancers[1], 80))
		})
	}
}

// counted is a counter of a host's uplinks.
func counted(tb testing.TB, h *host, reason string) uint64 {
	tb.Helper()
	return countedAt(tb, h, "from_uplink", reason)
}

// countedAt is a counter of a host's hook.
func countedAt(tb testing.TB, h *host, hook, reason string) uint64 {
	tb.Helper()
	var all []observe.Counter
	if err := h.agent.get("Counters", struct{}{}, &all); err != nil {
		tb.Fatal(err)
	}
	for _, c := range all {
		if c.Hook == hook && c.Reason.Name == reason {
			return c.Packets
		}
	}
	return 0
}

// streamDirect sends a lot both ways over one connection: whole packets too.
func (l *lab) streamDirect(tb testing.TB, to netip.AddrPort) {
	tb.Helper()
	const size = 1 << 20
	err := l.world.do(func() error {
		c, err := dial("tcp", to.String())
		if err != nil {
			return err
		}
		defer c.Close()                                 //nolint:errcheck // all is said
		c.SetDeadline(time.Now().Add(10 * time.Second)) //nolint:errcheck // a socket has deadlines
		sent := make(chan error, 1)
		go func() {
			_, err := c.Write(make([]byte, size))
			sent <- errors.Join(err, c.(*net.TCPConn).CloseWrite()) //nolint:errcheck,forcetypeassert // it was dialled so
		}()
		n, err := io.Copy(io.Discard, c)
		if n < size {
			err = errors.Join(err, fmt.Errorf("%d bytes of %d came back", n, size))
		}
		return errors.Join(err, <-sent)
	})
	if err != nil {
		tb.Errorf("stream to %s: %v", to, err)
	}
}

// TestRootDirectReturnMixed: nodes that do not take what is led to them are
// asked as ever; hybrid and annotations choose by protocol and service.
func TestRootDirectReturnMixed(t *testing.T) {
	for _, c := range []struct {
		name, mode, asked string
		far               bool // the other node takes it too
		tcp, udp          bool // whether the client is seen
	}{
		{"the other node does not", ExternalDSR, "", false, false, false},
		{"hybrid", ExternalHybrid, "", true, true, false},
		{"a service asks", ExternalAnnotated, "dsr", true, true, true},
		{"a service does not want it", ExternalDSR, "snat", true, false, false},
		{"nobody asks", ExternalAnnotated, "", true, false, false},
	} {
		t.Run(c.name, func(t *testing.T) {
			l := newLabWith(t, 2, direct(c.mode))
			x, y := l.hosts[0], l.hosts[1]
			b := y.addPod(t, "b")
			if !c.far {
				y.agent.kill(t)
				y.cfg.ServiceOptions.ExternalMode = ExternalSNAT
				y.startAgent(t)
				y.agent.must(t, "UpdateEndpoint", b.ep)
			}
			l.join(t, "auto")
			b.serve(t, "b", 80, b.addrs...)
			o := external(newService("b", vips(1), 80, b.target()), 30080, nil, false)
			if c.asked != "" {
				o.Service.Annotations = map[string]string{service.ExternalMode: c.asked}
			}
			l.serveEverywhere(t, o)
			for i := range 2 {
				for network, seen := range map[string]bool{"tcp": c.tcp, "udp": c.udp} {
					want := x.node.Addrs[i]
					if seen {
						want = outsiders[i]
					}
					name, saw, err := l.world.ask(network, netip.AddrPortFrom(x.node.Addrs[i], 30080))
					if err != nil || name != "b" || saw != want.String() {
						t.Errorf("%s: got %s which saw %s, %v; want b which saw %s", network, name, saw, err, want)
					}
				}
			}
		})
	}
}

// TestRootDirectReturnRestart: connections go on while either daemon is killed
// and starts again, and so do new ones.
func TestRootDirectReturnRestart(t *testing.T) {
	l := newLabWith(t, 2, direct(ExternalDSR))
	x, y := l.hosts[0], l.hosts[1]
	b := y.addPod(t, "b")
	l.join(t, "auto")
	b.serve(t, "b", 80, b.addrs...)
	o := external(newService("b", vips(1), 80, b.target()), 30080, nil, false)
	l.serveEverywhere(t, o)
	to := netip.AddrPortFrom(x.node.Addrs[0], 30080)
	var c net.Conn
	if err := l.world.do(func() (err error) { c, err = dial("tcp", to.String()); return err }); err != nil {
		t.Fatal(err)
	}
	defer c.Close()                                 //nolint:errcheck // the test is over
	c.SetDeadline(time.Now().Add(30 * time.Second)) //nolint:errcheck // a socket has deadlines
	talk := func(what string) {
		t.Helper()
		if _, err := fmt.Fprintln(c, what); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 256)
		for heard := ""; !strings.Contains(heard, what); {
			n, err := c.Read(buf)
			if err != nil {
				t.Fatalf("%s: %v", what, err)
			}
			heard += string(buf[:n])
		}
		if name, saw, err := l.world.ask("tcp", to); err != nil || name != "b" || saw != outsiders[0].String() {
			t.Errorf("%s: a new connection got %s which saw %s, %v", what, name, saw, err)
		}
	}
	talk("before")
	for _, h := range l.hosts {
		h.agent.kill(t)
		talk("without " + h.name)
		h.startAgent(t)
		talk("started " + h.name)
		if h == y {
			h.agent.must(t, "UpdateEndpoint", b.ep)
		}
		h.agent.must(t, "UpdateServices", []service.Object{o})
		l.joinOne(t, h, "auto")
		talk("again " + h.name)
	}
}

// TestRootDirectReturnEarly: a node that does not know its addresses yet starts,
// and is led to once it does.
func TestRootDirectReturnEarly(t *testing.T) {
	l := newLabWith(t, 2, direct(ExternalDSR))
	x, y := l.hosts[0], l.hosts[1]
	known := y.node
	y.agent.stop(t)
	y.run(t, "ip link del nvx0")
	y.node.Addrs, y.node.PodCIDRs = nil, nil
	y.startAgent(t)
	y.node = known
	y.agent.must(t, "SetNode", y.node)
	b := y.addPod(t, "b")
	l.join(t, "auto")
	b.serve(t, "b", 80, b.addrs...)
	l.serveEverywhere(t, external(newService("b", vips(1), 80, b.target()), 30080, nil, false))
	name, saw, err := l.world.ask("tcp", netip.AddrPortFrom(x.node.Addrs[0], 30080))
	if err != nil || name != "b" || saw != outsiders[0].String() {
		t.Errorf("got %s which saw %s, %v; want b which saw %s", name, saw, err, outsiders[0])
	}
}

// TestRootDirectReturnMoves: a UDP flow goes to another backend of the other
// node when its own is removed, though that node knows the flow already.
func TestRootDirectReturnMoves(t *testing.T) {
	l := newLabWith(t, 2, direct(ExternalDSR))
	x, y := l.hosts[0], l.hosts[1]
	b, c := y.addPod(t, "b"), y.addPod(t, "c")
	l.join(t, "auto")
	b.serve(t, "b", 80, b.addrs...)
	c.serve(t, "c", 80, c.addrs...)
	at := func(to *pod) service.Object {
		return external(newService("s", vips(1), 80, to.target()), 30080, nil, false)
	}
	l.serveEverywhere(t, at(b))
	from := netip.AddrPortFrom(outsiders[0], 45678)
	to := netip.AddrPortFrom(x.node.Addrs[0], 30080)
	if name, err := l.world.askFrom(from, to); err != nil || name != "b" {
		t.Fatalf("got %s, %v; want b", name, err)
	}
	x.agent.must(t, "UpdateServices", []service.Object{at(c)}) // y does not know yet
	for deadline := time.Now().Add(time.Minute); ; {
		name, err := l.world.askFrom(from, to)
		if err == nil && name == "c" {
			break
		}
		if time.Now().After(deadline) {
			t.Fatalf("got %s, %v; want c", name, err)
		}
	}
}

// TestRootDirectReturnTooBig: a datagram that does not fit in the overlay, and
// must not be cut, is answered: the client learns the size of the way. Smaller
// ones, and answers of any size, pass.
func TestRootDirectReturnTooBig(t *testing.T) {
	l := newLabWith(t, 2, direct(ExternalDSR))
	x, y := l.hosts[0], l.hosts[1]
	b := y.addPod(t, "b")
	l.join(t, "auto")
	b.serve(t, "b", 80, b.addrs...)
	l.serveEverywhere(t, external(newService("b", vips(1), 80, b.target()), 30080, nil, false))
	for i, headers := range []int{28, 48} {
		to := netip.AddrPortFrom(x.node.Addrs[i], 30080)
		err := l.world.do(func() error {
			c, err := dial("udp", to.String())
			if err != nil {
				return err
			}
			defer c.Close()                                       //nolint:errcheck // all is said
			c.SetDeadline(time.Now().Add(10 * time.Second))       //nolint:errcheck // a socket has deadlines
			if err := neverCut(c.(*net.UDPConn), i); err != nil { //nolint:errcheck,forcetypeassert // it was dialled so
				return err
			}
			// What the client learns is an error of its next call, whatever that is. On a
			// machine that has no time for the answers a row without pauses would fill
			// the queue that what fits has to pass, too.
			for learnt := false; !learnt; <-time.After(5 * time.Millisecond) {
				_, err := c.Write(make([]byte, 1500-headers))
				if learnt = errors.Is(err, syscall.EMSGSIZE); err != nil && !learnt {
					return err
				}
			}
			again := func(call func([]byte) (int, error), size int) (err error) {
				for range 3 {
					if _, err = call(make([]byte, size)); !errors.Is(err, syscall.EMSGSIZE) {
						break
					}
				}
				return err
			}
			if err := again(c.Write, 1450-headers); err != nil {
				return fmt.Errorf("what fits: %w", err)
			}
			return again(c.Read, 2048)
		})
		if err != nil {
			t.Errorf("%s: %v", family(to.Addr()), err)
		}
	}
}

// neverCut sets "don't fragment" and lets path discovery decide what may be sent.
func neverCut(c *net.UDPConn, family int) error {
	raw, err := c.SyscallConn()
	if err != nil {
		return err
	}
	level, name := syscall.IPPROTO_IP, syscall.IP_MTU_DISCOVER
	if family == 1 {
		level, name = syscall.IPPROTO_IPV6, syscall.IPV6_MTU_DISCOVER
	}
	var set error
	err = raw.Control(func(fd uintptr) { set = syscall.SetsockoptInt(int(fd), level, name, syscall.IP_PMTUDISC_DO) })
	return errors.Join(err, set)
}
