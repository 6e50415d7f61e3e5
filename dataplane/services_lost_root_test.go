// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"syscall"
	"testing"
	"time"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// talk is a process in a cgroup with one connected socket: for each line it
// says what the other side answers.
type talk struct {
	in  io.WriteCloser
	out *bufio.Reader
	cmd *exec.Cmd
}

func (n netns) talk(tb testing.TB, cgroup, network string, to netip.AddrPort) *talk {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	dir, err := os.Open(cgroup)
	if err != nil {
		tb.Fatal(err)
	}
	defer dir.Close() //nolint:errcheck // it was only read
	cmd := exec.Command("nsenter", "--net="+n.path, exe, network, to.String())
	cmd.Env = append(os.Environ(), labEnv+"=talk")
	cmd.SysProcAttr = &syscall.SysProcAttr{UseCgroupFD: true, CgroupFD: int(dir.Fd())}
	in, err := cmd.StdinPipe()
	if err != nil {
		tb.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		tb.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		tb.Fatal(err)
	}
	tb.Cleanup(func() {
		in.Close() //nolint:errcheck // it ends the process
		cmd.Wait() //nolint:errcheck // its socket may be broken: that is what is tested
	})
	return &talk{in, bufio.NewReader(out), cmd}
}

// say returns the first word of the answer, or "error: ...".
func (k *talk) say(tb testing.TB) string {
	tb.Helper()
	if _, err := fmt.Fprintln(k.in, "hello"); err != nil {
		tb.Fatal(err)
	}
	line, err := k.out.ReadString('\n')
	if err != nil {
		tb.Fatal(err)
	}
	return line[:len(line)-1]
}

func talkMain() int {
	c, err := dial(os.Args[1], os.Args[2])
	if err != nil {
		fmt.Println(err)
		return 1
	}
	lines := bufio.NewScanner(os.Stdin)
	buf := make([]byte, 256)
	for lines.Scan() {
		_, err := c.Write([]byte("hello\n"))
		n := 0
		if err == nil {
			err = c.SetReadDeadline(time.Now().Add(time.Second / 2))
		}
		if err == nil {
			n, err = c.Read(buf)
		}
		switch {
		case errors.Is(err, os.ErrDeadlineExceeded):
			fmt.Println("silence")
		case err != nil:
			fmt.Println("error:", err)
			// A program that hears an error connects again.
			if again, err := dial(os.Args[1], os.Args[2]); err == nil {
				c.Close() //nolint:errcheck // it is broken
				c = again
			}
		default:
			var name string
			fmt.Sscan(string(buf[:n]), &name) //nolint:errcheck // empty then
			fmt.Println(name)
		}
	}
	return 0
}

// until says it again and again until what comes back is one of want.
func (k *talk) until(tb testing.TB, want ...string) {
	tb.Helper()
	var got string
	for deadline := time.Now().Add(time.Minute); time.Now().Before(deadline); {
		if got = k.say(tb); slices.Contains(want, got) {
			return
		}
	}
	tb.Fatalf("heard %q at last, want %q", got, want)
}

// TestRootHostUDPLeaves: a connected UDP socket of the node, whose packets
// nobody translates, leaves a backend that is removed.
func TestRootHostUDPLeaves(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	b, c := h.addPod(t, "b"), h.addPod(t, "c")
	b.serve(t, "b", 8080, b.addrs...)
	c.serve(t, "c", 8080, c.addrs...)
	h.agent.must(t, "UpdateServices", []service.Object{newService("s", vips(1), 8080, b.target())})
	var talks []*talk
	for _, vip := range vips(1) {
		k := h.talk(t, h.cgroup, "udp", netip.AddrPortFrom(vip, 80))
		k.until(t, "b")
		talks = append(talks, k)
	}
	direct := h.talk(t, h.cgroup, "udp", netip.AddrPortFrom(b.addrs[0], 8080))
	direct.until(t, "b")
	h.agent.must(t, "UpdateServices", []service.Object{newService("s", vips(1), 8080, c.target())})
	for _, k := range talks {
		k.until(t, "c")
	}
	if got := direct.say(t); got != "b" {
		t.Errorf("a socket that asked for the pod itself hears %q, want b", got)
	}
}

// TestRootReset: with resets, connections to a backend that is gone for good
// end, per packet, at the socket and from the node; those to one that
// terminates do not.
func TestRootReset(t *testing.T) {
	l := newLabWith(t, 1, func(c *Config) { c.ServiceOptions.ResetConnections = true })
	h := l.hosts[0]
	a, b, c := h.addPod(t, "a"), h.addPod(t, "b"), h.addPod(t, "c")
	b.serve(t, "b", 8080, b.addrs...)
	c.serve(t, "c", 8080, c.addrs...)
	h.agent.must(t, "UpdateServices", []service.Object{newService("s", vips(1), 8080, b.target())})
	other := newCgroup(t, "none")
	talks := map[string]*talk{}
	for i, vip := range vips(1) {
		to := netip.AddrPortFrom(vip, 80)
		talks["per packet/"+family(vip)] = a.talk(t, other, "tcp", to)
		talks["at the socket/"+family(vip)] = a.talk(t, h.cgroup, "tcp", to)
		talks["from the node/"+family(vip)] = h.talk(t, h.cgroup, "tcp", to)
		talks["direct/"+family(vip)] = a.talk(t, h.cgroup, "tcp", netip.AddrPortFrom(b.addrs[i], 8080))
	}
	for _, k := range talks {
		k.until(t, "b")
		k.until(t, "hello") // the echo
	}
	ending := newService("s", vips(1), 8080, b.target(), c.target())
	for _, s := range ending.Slices {
		s.Endpoints[0].Conditions.Ready = new(false)
		s.Endpoints[0].Conditions.Serving = new(true)
		s.Endpoints[0].Conditions.Terminating = new(true)
	}
	h.agent.must(t, "UpdateServices", []service.Object{ending})
	time.Sleep(3 * hostSettle) //nolint:forbidigo // nothing happens: there is nothing to wait for
	for what, k := range talks {
		if got := k.say(t); got != "hello" {
			t.Errorf("%s: while its backend terminates it hears %q", what, got)
		}
	}
	h.agent.must(t, "UpdateServices", []service.Object{newService("s", vips(1), 8080, c.target())})
	for what, k := range talks {
		t.Run(what, func(t *testing.T) {
			if what[:6] == "direct" {
				if got := k.say(t); got != "hello" {
					t.Errorf("heard %q, want its echo", got)
				}
				return
			}
			k.until(t, "c")
		})
	}
}
