// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"sync"
	"syscall"
	"testing"
	"time"
)

const (
	// dialTimeout is how long who has to be answered may wait: machines are slow.
	dialTimeout = 15 * time.Second
	// briefly is how long who must not be answered is listened for.
	briefly = time.Second
)

// serve answers on a port of addresses of the namespace: TCP and UDP begin with
// a line that says who serves whom; TCP then echoes. UDP needs the addresses:
// it would answer from another one otherwise.
func (n netns) serve(tb testing.TB, name string, port uint16, addrs ...netip.Addr) {
	tb.Helper()
	for _, a := range addrs {
		n.serveAt(tb, name, netip.AddrPortFrom(a, port))
	}
}

func (n netns) serveAt(tb testing.TB, name string, at netip.AddrPort) {
	tb.Helper()
	var l net.Listener
	var u net.PacketConn
	err := n.do(func() (err error) {
		if l, err = net.Listen("tcp", at.String()); err != nil {
			return err
		}
		u, err = net.ListenPacket("udp", at.String())
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	var open sync.Map // connections whose client may be gone without a word
	var wg sync.WaitGroup
	tb.Cleanup(func() {
		if err := errors.Join(l.Close(), u.Close()); err != nil {
			tb.Errorf("stop server: %v", err)
		}
		open.Range(func(c, _ any) bool {
			c.(net.Conn).Close() //nolint:errcheck,forcetypeassert // nothing else is stored there, and it ends
			return true
		})
		wg.Wait()
	})
	go func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			open.Store(c, true)
			wg.Go(func() {
				//nolint:errcheck // the client says what is missing
				defer c.Close()
				defer open.Delete(c)
				fmt.Fprintf(c, "%s %s\n", name, plain(c.RemoteAddr())) //nolint:errcheck // as above
				io.Copy(c, c)                                          //nolint:errcheck // as above
			})
		}
	}()
	go func() {
		buf := make([]byte, 65536)
		for {
			_, from, err := u.ReadFrom(buf)
			if err != nil {
				return
			}
			fmt.Fprintf(writerTo{u, from}, "%s %s\n", name, plain(from)) //nolint:errcheck // as above
		}
	}()
}

type writerTo struct {
	net.PacketConn
	to net.Addr
}

func (w writerTo) Write(b []byte) (int, error) { return w.WriteTo(b, w.to) }

// plain is an address without port and zone.
func plain(a net.Addr) string {
	ap, err := netip.ParseAddrPort(a.String())
	if err != nil {
		return a.String()
	}
	return ap.Addr().Unmap().WithZone("").String()
}

// answer is what askAt hears, and the peer that the process believes to have.
type answer struct{ name, saw, peer string }

// askAt asks from a process in a cgroup, where the socket programs are.
func (n netns) askAt(cgroup, network string, to netip.AddrPort) (a answer, err error) {
	exe, err := os.Executable()
	if err != nil {
		return a, err
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		return a, err
	}
	defer dir.Close() //nolint:errcheck // it was only read
	cmd := exec.Command("nsenter", "--net="+n.path, exe, network, to.String())
	cmd.Env = append(os.Environ(), labEnv+"=ask")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return a, fmt.Errorf("%w: %s", err, out)
	}
	_, err = fmt.Sscan(string(out), &a.name, &a.saw, &a.peer)
	return a, err
}

// askMain is the process of askAt.
func askMain() int {
	c, err := net.DialTimeout(os.Args[1], os.Args[2], dialTimeout)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	name, saw, err := hello(c)
	if err != nil {
		fmt.Println(err)
		return 1
	}
	fmt.Println(name, saw, c.RemoteAddr())
	return 0
}

// ask connects from the namespace and returns the server's first line: its
// name, and the address it saw.
func (n netns) ask(network string, to netip.AddrPort) (name, saw string, err error) {
	return n.askWithin(dialTimeout, network, to)
}

// silent asks where nobody shall answer; an error says who did.
func (n netns) silent(network string, to netip.AddrPort) error {
	if name, saw, err := n.askWithin(briefly, network, to); err == nil {
		return fmt.Errorf("%s answers %s at %s", name, saw, to)
	}
	return nil
}

func (n netns) askWithin(timeout time.Duration, network string, to netip.AddrPort) (name, saw string, err error) {
	err = n.do(func() error {
		c, err := net.DialTimeout(network, to.String(), timeout)
		if err != nil {
			return err
		}
		name, saw, err = helloWithin(timeout, c)
		return err
	})
	return name, saw, err
}

// askFrom asks over UDP from an address and port.
func (n netns) askFrom(from, to netip.AddrPort) (name string, err error) {
	err = n.do(func() error {
		d := net.Dialer{Timeout: dialTimeout, LocalAddr: net.UDPAddrFromAddrPort(from)}
		c, err := d.Dial("udp", to.String())
		if err != nil {
			return err
		}
		name, _, err = hello(c)
		return err
	})
	return name, err
}

func dial(network, to string) (net.Conn, error) { return net.DialTimeout(network, to, dialTimeout) }

// hello reads the server's first line.
func hello(c net.Conn) (name, saw string, err error) { return helloWithin(dialTimeout, c) }

func helloWithin(timeout time.Duration, c net.Conn) (name, saw string, err error) {
	defer c.Close()                        //nolint:errcheck // all is said
	c.SetDeadline(time.Now().Add(timeout)) //nolint:errcheck // a socket has deadlines
	if _, err := fmt.Fprintln(c, "hello"); err != nil {
		return "", "", err
	}
	line, err := bufio.NewReader(c).ReadString('\n')
	if err != nil {
		return "", "", err
	}
	_, err = fmt.Sscan(line, &name, &saw)
	return name, saw, err
}
