// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"testing"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/dataplane/maps"
)

const (
	roomFlows = 4096
	// roomBurst is as many flows, of two records each, as there is always room for.
	roomBurst = roomFlows / 16
)

// resting is a connection that says nothing until it is asked.
type resting struct {
	net.Conn
	in *bufio.Reader
}

// echo asks whether the connection still carries something.
func (r resting) echo(tb testing.TB) {
	tb.Helper()
	if _, err := fmt.Fprintln(r, "again"); err != nil {
		tb.Fatal(err)
	}
	if line, err := r.in.ReadString('\n'); err != nil || line != "again\n" {
		tb.Fatalf("%v: %q, %v", r.RemoteAddr(), line, err)
	}
}

func (n netns) rest(tb testing.TB, to netip.AddrPort) resting {
	tb.Helper()
	var r resting
	err := n.do(func() (err error) {
		r.Conn, err = dial("tcp", to.String())
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() { r.Close() }) //nolint:errcheck // all is said
	r.in = bufio.NewReader(r)
	if _, err := r.in.ReadString('\n'); err != nil { // the server's first line
		tb.Fatal(err)
	}
	return r
}

// TestRootRoom: connections that rest live through twice as many flows as there
// is room for, none of which is answered; and new ones can begin all the while.
func TestRootRoom(t *testing.T) {
	t.Setenv(labSweep, "1h")
	l := newLabWith(t, 1, func(c *Config) { c.Maps.Conntrack = roomFlows })
	h := l.hosts[0]
	a := h.addPod(t, "a")
	l.world.serve(t, "world", 82, worldAddrs...)
	var resting []resting
	for i := range 64 {
		resting = append(resting, a.rest(t, netip.AddrPortFrom(worldAddrs[i%2], 82)))
	}
	// Nobody at the other end answers datagrams to itself.
	var deaf net.PacketConn
	if err := l.world.do(func() (err error) {
		deaf, err = net.ListenPacket("udp", netip.AddrPortFrom(worldAddrs[0], 83).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer deaf.Close() //nolint:errcheck // nothing was said
	for burst := range 2 * roomFlows / (2 * roomBurst) {
		for range roomBurst {
			a.shout(t, netip.AddrPortFrom(worldAddrs[0], 83))
		}
		eventually(t, fmt.Sprintf("room after burst %d", burst), func() error {
			if n := h.flowsKnown(t); n > roomFlows/4*roomHigh {
				return fmt.Errorf("%d records of %d", n, roomFlows)
			}
			return nil
		})
		if _, _, err := a.ask("tcp", netip.AddrPortFrom(worldAddrs[1], 82)); err != nil {
			t.Fatal(err)
		}
	}
	for _, r := range resting {
		r.echo(t)
	}
}

// shout sends one datagram from a new port.
func (n netns) shout(tb testing.TB, to netip.AddrPort) {
	tb.Helper()
	err := n.do(func() error {
		c, err := net.Dial("udp", to.String())
		if err != nil {
			return err
		}
		defer c.Close() //nolint:errcheck // it was said
		_, err = c.Write([]byte("?"))
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
}

// flowsKnown counts the records of the host's table, as they are now.
func (h *host) flowsKnown(tb testing.TB) (n int) {
	tb.Helper()
	m, err := ebpf.LoadPinnedMap(filepath.Join(h.cfg.BPFFS, "v1", "maps", "ct"), nil)
	if err != nil {
		tb.Fatal(err)
	}
	defer m.Close() //nolint:errcheck // it was read
	err = maps.NewConntrack(m, nil).Each(func(maps.Flow) bool {
		n++
		return true
	})
	if err != nil {
		tb.Fatal(err)
	}
	return n
}
