// SPDX-License-Identifier: Apache-2.0

package traffic

import (
	"errors"
	"fmt"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"
)

// Tries of reach come from these ports, one after the other: what a conntrack
// remembers of tries that came too early must not meet connections that are
// measured, which come from ephemeral ports.
const reachFirst, reachPorts = 10000, 20000

// reacher counts the tries of a process.
type reacher struct{ tries int }

// reach starts connections until one is made: a lost first packet is not what
// shall be waited for. The pause between them is a hundredth of the time waited
// so far, 1 ms at least.
func (n *reacher) reach(to netip.AddrPort, limit time.Duration) (float64, error) {
	begin := time.Now()
	var tries []unix.PollFd
	defer func() {
		for _, t := range tries {
			unix.Close(int(t.Fd)) //nolint:errcheck // a try
		}
	}()
	for {
		c, err := n.try(to)
		if err != nil {
			return 0, err
		}
		tries = append(tries, unix.PollFd{Fd: int32(c), Events: unix.POLLOUT}) //nolint:gosec // a descriptor
		waited := time.Since(begin)
		if waited > limit {
			return 0, fmt.Errorf("%s cannot be reached within %s", to, limit)
		}
		pause := min(max(1, int(waited.Milliseconds()/100)), 100)
		if _, err := unix.Poll(tries, pause); err != nil && !errors.Is(err, unix.EINTR) {
			return 0, fmt.Errorf("poll: %w", err)
		}
		var made bool
		if tries, made = sift(tries); made {
			return since(begin), nil
		}
	}
}

// try starts one connection from a port of its own.
func (n *reacher) try(to netip.AddrPort) (int, error) {
	family, sa := sockaddr(to)
	any4or6 := netip.IPv4Unspecified()
	if family == unix.AF_INET6 {
		any4or6 = netip.IPv6Unspecified()
	}
	for {
		c, err := unix.Socket(family, unix.SOCK_STREAM|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
		if err != nil {
			return -1, fmt.Errorf("open socket: %w", err)
		}
		unix.SetsockoptLinger(c, unix.SOL_SOCKET, unix.SO_LINGER, &unix.Linger{Onoff: 1}) //nolint:errcheck // only tidier with
		n.tries++
		_, from := sockaddr(netip.AddrPortFrom(any4or6, uint16(reachFirst+n.tries%reachPorts))) //nolint:gosec // a port
		err = unix.Bind(c, from)
		if err == nil {
			_ = unix.Connect(c, sa) // in progress, or refused: poll says it
			return c, nil
		}
		unix.Close(c) //nolint:errcheck // never used
		if !errors.Is(err, unix.EADDRINUSE) {
			return -1, fmt.Errorf("bind: %w", err)
		}
	}
}

// maxTries is how many connections are waited for at once.
const maxTries = 500

// sift drops tries that failed, and the oldest when there are too many; made
// says that one succeeded.
func sift(tries []unix.PollFd) (kept []unix.PollFd, made bool) {
	excess := len(tries) - maxTries
	kept = tries[:0]
	for i, t := range tries {
		failed := t.Revents&(unix.POLLERR|unix.POLLHUP) != 0
		if !failed && t.Revents&unix.POLLOUT != 0 {
			made = true
		}
		if failed || i < excess {
			unix.Close(int(t.Fd)) //nolint:errcheck // it failed, or nobody answers any more
			continue
		}
		kept = append(kept, t)
	}
	return kept, made
}
