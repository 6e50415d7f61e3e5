// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// What a driver measures.
const (
	// RR is round trips of one byte a second on one TCP connection.
	RR = "rr"
	// CRR is TCP connections a second, each with one round trip.
	CRR = "crr"
	// Stream is Gbit/s of one TCP connection.
	Stream = "stream"
	// UDPRR is round trips of one byte a second over UDP.
	UDPRR = "udprr"
	// Reach is the milliseconds until a TCP connection is made; it is tried
	// again and again until then, for as long as the time given.
	Reach = "reach"
)

const chunk = 128 << 10

// Requests: the first byte says what the server is to do.
const (
	reqEcho   = 'e'
	reqStream = 's'
)

func sockaddr(a netip.AddrPort) (int, unix.Sockaddr) {
	if a.Addr().Is4() {
		return unix.AF_INET, &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
	}
	return unix.AF_INET6, &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
}

// serve answers TCP and UDP on an address, in two threads, until its input ends.
func serve(addr string) error {
	at, err := netip.ParseAddrPort(addr)
	if err != nil {
		return fmt.Errorf("address to serve: %w", err)
	}
	l, err := bind(at, unix.SOCK_STREAM)
	if err != nil {
		return err
	}
	if err := unix.Listen(l, 1024); err != nil {
		return fmt.Errorf("listen: %w", err)
	}
	u, err := bind(at, unix.SOCK_DGRAM)
	if err != nil {
		return err
	}
	if _, err := fmt.Println("ready"); err != nil {
		return err
	}
	failed := make(chan error, 3)
	for _, f := range []func() error{func() error { return accept(l) }, func() error { return echo(u) }} {
		go func() {
			runtime.LockOSThread()
			if err := pin(); err != nil {
				failed <- err
				return
			}
			failed <- f()
		}()
	}
	go func() {
		_, err := os.Stdin.Read(make([]byte, 1))
		_ = err // its end is the sign, however it comes
		failed <- nil
	}()
	return <-failed
}

func bind(at netip.AddrPort, kind int) (int, error) {
	family, sa := sockaddr(at)
	s, err := unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	unix.SetsockoptInt(s, unix.SOL_SOCKET, unix.SO_REUSEADDR, 1) //nolint:errcheck // bind says it
	if err := unix.Bind(s, sa); err != nil {
		return 0, fmt.Errorf("bind %s: %w", at, err)
	}
	return s, nil
}

func accept(l int) error {
	buf := make([]byte, chunk)
	for {
		c, _, err := unix.Accept4(l, unix.SOCK_CLOEXEC)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNABORTED) {
			continue
		}
		if err != nil {
			return fmt.Errorf("accept: %w", err)
		}
		answer(c, buf)
	}
}

// answer serves one connection until it ends.
func answer(c int, buf []byte) {
	defer unix.Close(c)                                          //nolint:errcheck // the client is gone
	unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1) //nolint:errcheck // slower without
	for {
		n, err := unix.Read(c, buf)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil || n == 0 {
			return
		}
		if buf[0] == reqEcho {
			if _, err := unix.Write(c, buf[:1]); err != nil {
				return
			}
		}
	}
}

func echo(u int) error {
	buf := make([]byte, 2048)
	for {
		n, from, err := unix.Recvfrom(u, buf, 0)
		if errors.Is(err, unix.EINTR) || errors.Is(err, unix.ECONNREFUSED) {
			continue
		}
		if err != nil {
			return fmt.Errorf("receive: %w", err)
		}
		if err := unix.Sendto(u, buf[:n], 0, from); err != nil && !errors.Is(err, unix.ECONNREFUSED) {
			return fmt.Errorf("answer: %w", err)
		}
	}
}

// connect opens a connection that a reset will end: ended in order, its port
// would rest for a minute, and a turn needs thousands.
func connect(to netip.AddrPort) (int, error) {
	family, sa := sockaddr(to)
	c, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return -1, fmt.Errorf("open socket: %w", err)
	}
	unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_NODELAY, 1)                      //nolint:errcheck // slower without
	unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) //nolint:errcheck // as above
	unix.SetsockoptInt(c, unix.IPPROTO_TCP, unix.TCP_SYNCNT, 2)                       //nolint:errcheck // gives up later without
	if err := unix.Connect(c, sa); err != nil {
		unix.Close(c) //nolint:errcheck // never connected
		return -1, fmt.Errorf("connect to %s: %w", to, err)
	}
	return c, nil
}

func trip(c int) error {
	b := []byte{reqEcho}
	if _, err := unix.Write(c, b); err != nil {
		return fmt.Errorf("write: %w", err)
	}
	for {
		_, err := unix.Read(c, b)
		if err == nil {
			return nil
		}
		if !errors.Is(err, unix.EINTR) { // a wait with a limit is not restarted
			return fmt.Errorf("read: %w", err)
		}
	}
}

// count repeats fn for a while and returns how often a second it succeeded.
func count(d time.Duration, fn func() error) (float64, error) {
	start, n := time.Now(), 0
	for {
		for range 16 {
			if err := fn(); err != nil {
				return 0, err
			}
			n++
		}
		if took := time.Since(start); took > d {
			return float64(n) / took.Seconds(), nil
		}
	}
}

func roundTrips(to netip.AddrPort, d time.Duration) (float64, error) {
	c, err := connect(to)
	if err != nil {
		return 0, err
	}
	defer unix.Close(c) //nolint:errcheck // the turn is over
	return count(d, func() error { return trip(c) })
}

func connections(to netip.AddrPort, d time.Duration) (float64, error) {
	return count(d, func() error {
		c, err := connect(to)
		if err != nil {
			return err
		}
		err = trip(c)
		unix.Close(c) //nolint:errcheck // the next one says it
		return err
	})
}

func streaming(to netip.AddrPort, d time.Duration) (float64, error) {
	c, err := connect(to)
	if err != nil {
		return 0, err
	}
	defer unix.Close(c) //nolint:errcheck // the turn is over
	buf := make([]byte, chunk)
	for i := range buf {
		buf[i] = reqStream
	}
	per, err := count(d, func() error {
		_, err := unix.Write(c, buf)
		return err
	})
	return per * chunk * 8 / 1e9, err
}

func datagrams(to netip.AddrPort, d time.Duration) (float64, error) {
	family, sa := sockaddr(to)
	c, err := unix.Socket(family, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return 0, fmt.Errorf("open socket: %w", err)
	}
	defer unix.Close(c) //nolint:errcheck // the turn is over
	patience := unix.Timeval{Sec: 3}
	unix.SetsockoptTimeval(c, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &patience) //nolint:errcheck // waits for ever without
	if err := unix.Connect(c, sa); err != nil {
		return 0, fmt.Errorf("connect to %s: %w", to, err)
	}
	return count(d, func() error { return trip(c) })
}

func since(t time.Time) float64 { return float64(time.Since(t)) / float64(time.Millisecond) }
