// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// BenchmarkRootPath compares the ways between two namespaces, in turns within
// one run: what the machine does meanwhile is the same for all. "wire" is one
// veth between two hosts, "kernel" two veths and the kernel's routing without
// netfilter. Client and server are threads on one processor.
//
// Reported are the best turns: round trips (RR) and connections (CRR) a second,
// and the stream in Gbit/s, and each as a ratio to "wire".
func BenchmarkRootPath(b *testing.B) {
	l := newLab(b, 1)
	h := l.hosts[0]
	x, y := h.addPod(b, "x"), h.addPod(b, "y")
	objs := []service.Object{newService("y", vips(1), 5000, y.target())}
	for i := range 5000 {
		objs = append(objs, newService(fmt.Sprint("s", i), farVIPs(i), 5000, y.target()))
	}
	h.agent.must(b, "UpdateServices", objs[:1])
	wireA, wireB := newWire(b)
	kernA, kernB := newKernelPath(b)
	paths := []path{
		{"wire", wireA, wireB, netip.MustParseAddrPort("10.9.0.2:5000"), netip.MustParseAddrPort("10.9.0.2:5000")},
		{"wire6", wireA, wireB, netip.MustParseAddrPort("[fd09::2]:5000"), netip.MustParseAddrPort("[fd09::2]:5000")},
		{"kernel", kernA, kernB, netip.MustParseAddrPort("10.9.2.2:5000"), netip.MustParseAddrPort("10.9.2.2:5000")},
		{"pod", x.netns, y.netns, netip.AddrPortFrom(y.addrs[0], 5000), netip.AddrPortFrom(y.addrs[0], 5000)},
		{"pod6", x.netns, y.netns, netip.AddrPortFrom(y.addrs[1], 5000), netip.AddrPortFrom(y.addrs[1], 5000)},
		{"service", x.netns, y.netns, netip.AddrPortFrom(vips(1)[0], 80), netip.AddrPortFrom(y.addrs[0], 5000)},
	}
	h.waitLinks(b, x, y)
	compare(b, paths)
}

// BenchmarkRootNodes compares the ways between pods of two nodes that are
// joined by one veth, natively and through the overlay, with "wire".
func BenchmarkRootNodes(b *testing.B) {
	wireA, wireB := newWire(b)
	paths := []path{{"wire", wireA, wireB, netip.MustParseAddrPort("10.9.0.2:5000"), netip.MustParseAddrPort("10.9.0.2:5000")}}
	for _, mode := range []string{"native", "vxlan"} {
		b.Run(mode, func(b *testing.B) {
			l := newLab(b, 2)
			l.joinDirectly(b)
			l.join(b, mode)
			x, y := l.hosts[0].addPod(b, "x"), l.hosts[1].addPod(b, "y")
			l.hosts[0].waitLinks(b, x)
			l.hosts[1].waitLinks(b, y)
			for _, p := range []*pod{x, y} { // as the CNI does it
				p.run(b, "ip route change default via 169.254.1.1 mtu 1430")
			}
			to := netip.AddrPortFrom(y.addrs[0], 5000)
			compare(b, append(paths, path{mode, x.netns, y.netns, to, to}))
		})
	}
}

// joinDirectly gives two hosts a link of their own, and addresses on it.
func (l *lab) joinDirectly(b *testing.B) {
	b.Helper()
	l.hosts[0].run(b, "ip link add eth1 type veth peer name eth1 netns "+l.hosts[1].path)
	for i, h := range l.hosts {
		a, a6 := fmt.Sprintf("192.168.50.%d", i+1), fmt.Sprintf("2001:db8:50::%d", i+1)
		h.run(b, "ip addr add "+a+"/24 dev eth1; ip addr add "+a6+"/64 dev eth1 nodad; ip link set eth1 up")
		h.node.Addrs = []netip.Addr{netip.MustParseAddr(a), netip.MustParseAddr(a6)}
		h.agent.must(b, "SetNode", h.node)
	}
}

// compare measures paths in turns and reports the best of each, and as a ratio
// to the first.
func compare(b *testing.B, paths []path) {
	b.Helper()
	best := map[string][3]float64{}
	for range max(b.N, 1) {
		for _, p := range paths {
			got := best[p.name]
			for i, m := range p.measure(b) {
				got[i] = max(got[i], m)
			}
			best[p.name] = got
		}
	}
	for _, p := range paths {
		v, w := best[p.name], best[paths[0].name]
		b.ReportMetric(v[0], p.name+"-RR/s")
		b.ReportMetric(v[1], p.name+"-CRR/s")
		b.ReportMetric(v[2], p.name+"-Gbit/s")
		b.Logf("%-8s RR %7.0f (%.3f)  CRR %6.0f (%.3f)  stream %5.1f (%.3f)", p.name,
			v[0], v[0]/w[0], v[1], v[1]/w[1], v[2], v[2]/w[2])
	}
}

func farVIPs(i int) []netip.Addr {
	v := vips(1)
	v4, v6 := v[0].As4(), v[1].As16()
	v4[1], v4[2], v4[3] = 97, byte(i>>8), byte(i)
	v6[13], v6[14] = byte(i>>8), byte(i)
	return []netip.Addr{netip.AddrFrom4(v4), netip.AddrFrom16(v6)}
}

func newWire(b *testing.B) (x, y netns) {
	b.Helper()
	x, y = newNetNS(b, "wireA"), newNetNS(b, "wireB")
	x.run(b, "ip link add eth0 type veth peer name eth0 netns "+y.path+"; ip addr add 10.9.0.1/24 dev eth0; ip addr add fd09::1/64 dev eth0 nodad; ip link set eth0 up")
	y.run(b, "ip addr add 10.9.0.2/24 dev eth0; ip addr add fd09::2/64 dev eth0 nodad; ip link set eth0 up")
	return x, y
}

func newKernelPath(b *testing.B) (x, y netns) {
	b.Helper()
	r := newNetNS(b, "router")
	x, y = newNetNS(b, "kernA"), newNetNS(b, "kernB")
	for i, n := range []netns{x, y} {
		r.run(b, fmt.Sprintf("ip link add v%d type veth peer name eth0 netns %s; ip addr add 10.9.%d.1/24 dev v%d; ip link set v%d up", i, n.path, i+1, i, i))
		n.run(b, fmt.Sprintf("ip addr add 10.9.%d.2/24 dev eth0; ip link set eth0 up; ip route add default via 10.9.%d.1", i+1, i+1))
	}
	r.run(b, "echo 1 > /proc/sys/net/ipv4/ip_forward")
	return x, y
}

type path struct {
	name       string
	from, to   netns
	dial, bind netip.AddrPort
}

const (
	turn  = 50 * time.Millisecond
	chunk = 128 << 10
)

// measure returns RR/s, CRR/s and Gbit/s of one turn.
func (p path) measure(b *testing.B) [3]float64 {
	b.Helper()
	ready, done := make(chan struct{}), make(chan error, 1)
	go func() { done <- p.to.do(func() error { return serveRaw(p.bind, ready) }) }()
	<-ready
	var out [3]float64
	err := p.from.do(func() (err error) {
		if err = pin(); err != nil {
			return err
		}
		for i, fn := range []func(netip.AddrPort) (float64, error){roundTrips, connections, streaming} {
			if out[i], err = fn(p.dial); err != nil {
				return fmt.Errorf("%s: %w", p.name, err)
			}
		}
		return quit(p.dial)
	})
	if err != nil {
		b.Fatal(err)
	}
	if err := <-done; err != nil {
		b.Fatal(err)
	}
	return out
}

// pin keeps the thread on the first processor, before everything else there.
func pin() error {
	var set unix.CPUSet
	set.Set(0)
	if err := unix.SchedSetaffinity(0, &set); err != nil {
		return err
	}
	attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: unix.SCHED_FIFO, Priority: 10}
	return unix.SchedSetAttr(0, &attr, 0)
}

func sockaddr(a netip.AddrPort) (int, unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// Requests: one byte says what the server is to do.
const (
	reqEcho   = 'e'
	reqStream = 's'
	reqQuit   = 'q'
)

func serveRaw(at netip.AddrPort, ready chan<- struct{}) error {
	if err := pin(); err != nil {
		return err
	}
	family, sa := sockaddr(at)
	l, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(l)                                          //nolint:errcheck // the test is over
	unix.SetsockoptInt(l, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) //nolint:errcheck // bind says it
	if err := unix.Bind(l, sa); err != nil {
		return err
	}
	if err := unix.Listen(l, 128); err != nil {
		return err
	}
	close(ready)
	buf := make([]byte, chunk)
	for {
		c, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if err != nil {
			return err
		}
		quit := serveConn(c, buf)
		if err := unix.Close(c); err != nil || quit {
			return err
		}
	}
}

func serveConn(c int, buf []byte) bool {
	unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) //nolint:errcheck // slower without
	for {
		n, err := unix.Read(c, buf)
		if err != nil || n == 0 {
			return false
		}
		switch buf[0] {
		case reqQuit:
			return true
		case reqEcho:
			if _, err := unix.Write(c, buf[:1]); err != nil {
				return false
			}
		}
	}
}

func connectRaw(to netip.AddrPort) (int, error) {
	family, sa := sockaddr(to)
	c, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, err
	}
	unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) //nolint:errcheck // slower without
	// A reset at the end: closed connections would use all ports up.
	unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) //nolint:errcheck // as above
	return c, unix.Connect(c, sa)
}

func trip(c int) error {
	b := []byte{reqEcho}
	if _, err := unix.Write(c, b); err != nil {
		return err
	}
	_, err := unix.Read(c, b)
	return err
}

// count repeats fn for a turn and returns how often a second it succeeded.
func count(fn func() error) (float64, error) {
	start, n := time.Now(), 0
	for {
		for range 16 {
			if err := fn(); err != nil {
				return 0, err
			}
			n++
		}
		if d := time.Since(start); d > turn {
			return float64(n) / d.Seconds(), nil
		}
	}
}

func roundTrips(to netip.AddrPort) (float64, error) {
	c, err := connectRaw(to)
	if err != nil {
		return 0, err
	}
	defer unix.Close(c) //nolint:errcheck // the turn is over
	return count(func() error { return trip(c) })
}

func connections(to netip.AddrPort) (float64, error) {
	return count(func() error {
		c, err := connectRaw(to)
		if err == nil {
			err = trip(c)
		}
		unix.Close(c) //nolint:errcheck // the next one says it
		return err
	})
}

func streaming(to netip.AddrPort) (float64, error) {
	c, err := connectRaw(to)
	if err != nil {
		return 0, err
	}
	defer unix.Close(c) //nolint:errcheck // the turn is over
	buf := make([]byte, chunk)
	for i := range buf {
		buf[i] = reqStream
	}
	per, err := count(func() error {
		_, err := unix.Write(c, buf)
		return err
	})
	return per * chunk * 8 / 1e9, err
}

func quit(to netip.AddrPort) error {
	c, err := connectRaw(to)
	if err != nil {
		return err
	}
	_, err = unix.Write(c, []byte{reqQuit})
	// Without lingering: the request has to arrive.
	unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{}) //nolint:errcheck // as above
	unix.Close(c)                                                             //nolint:errcheck // as above
	return err
}
