// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"bytes"
	"crypto/sha256"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// stream is a TCP connection that carries numbered blocks to an echo and checks
// that each comes back, in order and whole.
type stream struct {
	conn net.Conn
	done chan error
	stop chan struct{}
	sent chan int
	// pause between blocks.
	pause time.Duration
}

func (n netns) stream(tb testing.TB, to netip.AddrPort) *stream {
	tb.Helper()
	return n.streamAt(tb, to, 0)
}

// streamAt pauses between blocks: many streams leave time for other things.
func (n netns) streamAt(tb testing.TB, to netip.AddrPort, pause time.Duration) *stream {
	tb.Helper()
	s := &stream{pause: pause, done: make(chan error, 1), stop: make(chan struct{}), sent: make(chan int, 1<<16)}
	err := n.do(func() (err error) {
		s.conn, err = net.DialTimeout("tcp", to.String(), dialTimeout)
		return err
	})
	if err != nil {
		tb.Fatal(err)
	}
	go func() { s.done <- s.run() }()
	return s
}

func (s *stream) run() error {
	defer s.conn.Close() //nolint:errcheck // all is said
	line := make([]byte, 1)
	for line[0] != '\n' { // the server's first line
		if _, err := s.conn.Read(line); err != nil {
			return err
		}
	}
	for i := 0; ; i++ {
		select {
		case <-s.stop:
			return nil
		case <-time.After(s.pause):
		}
		sum := sha256.Sum256(fmt.Append(nil, i))
		block := bytes.Repeat(sum[:], 512)
		s.conn.SetDeadline(time.Now().Add(streamTimeout())) //nolint:errcheck // a socket has deadlines
		if _, err := s.conn.Write(block); err != nil {
			return fmt.Errorf("block %d: %w", i, err)
		}
		back := make([]byte, len(block))
		if _, err := io.ReadFull(s.conn, back); err != nil {
			return fmt.Errorf("block %d: %w", i, err)
		}
		if !bytes.Equal(block, back) {
			return fmt.Errorf("block %d came back different", i)
		}
		select {
		case s.sent <- i:
		default:
		}
	}
}

// streamTimeout is how long a block may take; an emulated machine takes its time.
func streamTimeout() time.Duration {
	if testing.Short() {
		return 10 * dialTimeout
	}
	return dialTimeout
}

// progress waits until the stream has carried more blocks.
func (s *stream) progress(tb testing.TB) {
	tb.Helper()
	for len(s.sent) > 0 {
		<-s.sent
	}
	for range 20 {
		select {
		case <-s.sent:
		case err := <-s.done:
			tb.Fatalf("stream ended: %v", err)
		}
	}
}

func (s *stream) finish(tb testing.TB) {
	tb.Helper()
	close(s.stop)
	if err := <-s.done; err != nil {
		tb.Errorf("stream: %v", err)
	}
}

// TestRootRestart kills the agent under streams, starts it again, and replays
// the desired state as cni and kube do: no stream notices, nothing is written
// twice, and what nobody asks for any more is gone.
func TestRootRestart(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b, gone := h.addPod(t, "a"), h.addPod(t, "b"), h.addPod(t, "gone")
	b.serve(t, "b", 80, b.addrs...)
	h.serve(t, "host", 81, h.node.Addrs...)
	l.world.serve(t, "world", 82, worldAddrs...)
	keep, drop := newService("keep", vips(1), 80, b.target()), newService("drop", vips(2), 80, b.target())
	h.agent.must(t, "UpdateServices", []service.Object{keep, drop})
	var streams []*stream
	for i := range 2 {
		for _, to := range []netip.AddrPort{
			netip.AddrPortFrom(b.addrs[i], 80),
			netip.AddrPortFrom(h.node.Addrs[i], 81),
			netip.AddrPortFrom(worldAddrs[i], 82),
			netip.AddrPortFrom(vips(1)[i], 80),
		} {
			streams = append(streams, a.stream(t, to))
		}
	}
	// The second time the links have their faster attachment already.
	for round := range 2 {
		if round == 1 {
			h.waitLinks(t, a, b)
		}
		h.agent.kill(t)
		for _, s := range streams {
			s.progress(t)
		}
		h.startAgent(t)
		for _, p := range []*pod{a, b} {
			h.agent.must(t, "UpdateEndpoint", p.ep)
		}
		h.agent.must(t, "PruneEndpoints", []string{a.ep.ID, b.ep.ID})
		h.agent.must(t, "UpdateServices", []service.Object{keep})
		h.agent.must(t, "PruneServices", []types.NamespacedName{keep.Name()})
		for _, s := range streams {
			s.progress(t)
		}
	}
	for _, s := range streams {
		s.finish(t)
	}
	if _, _, err := a.ask("tcp", netip.AddrPortFrom(vips(1)[0], 80)); err != nil {
		t.Errorf("the service that was kept: %v", err)
	}
	for _, to := range []netip.Addr{vips(2)[0], gone.addrs[0]} {
		if err := a.silent("tcp", netip.AddrPortFrom(to, 80)); err != nil {
			t.Errorf("nobody wants it: %v", err)
		}
	}
}

// hasTCX says whether the kernel is 6.6 or newer, which brought tcx.
func hasTCX(tb testing.TB) bool {
	tb.Helper()
	release, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		tb.Fatal(err)
	}
	var major, minor int
	if _, err := fmt.Sscanf(string(release), "%d.%d", &major, &minor); err != nil {
		tb.Fatalf("kernel %s: %v", release, err)
	}
	return major > 6 || major == 6 && minor >= 6
}

// waitLinks waits until pods' links have their tcx programs, and the filters
// that these replace are gone. Older kernels keep the filters.
func (h *host) waitLinks(tb testing.TB, pods ...*pod) {
	tb.Helper()
	tcx := hasTCX(tb)
	for _, p := range pods {
		if !tcx {
			if h.run(tb, "tc filter show dev "+p.ep.IfName+" ingress") == "" {
				tb.Fatalf("link of %s has no filter", p.ep.Name)
			}
			continue
		}
		pin := filepath.Join(h.cfg.BPFFS, "v1", "links", fmt.Sprint("pod-", p.ep.IfIndex))
		done := func() bool {
			_, err := os.Stat(pin)
			return err == nil && h.run(tb, "tc filter show dev "+p.ep.IfName+" ingress") == ""
		}
		for deadline := time.Now().Add(30 * time.Second); !done(); h.run(tb, "sleep 0.1") {
			if time.Now().After(deadline) {
				tb.Fatalf("link of %s keeps its filter", p.ep.Name)
			}
		}
	}
}

// TestRootUninstall: nothing is left, also when there is nothing to remove.
func TestRootUninstall(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	h.addPod(t, "a")
	h.agent.stop(t)
	if _, err := os.Stat(filepath.Join(h.cfg.BPFFS, "v1", "maps", "ct")); err != nil {
		t.Errorf("a stopped agent left no pins: %v", err)
	}
	for range 2 {
		if err := h.do(func() error { return Uninstall(h.cfg) }); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := os.Stat(h.cfg.BPFFS); !os.IsNotExist(err) {
		t.Errorf("%s: %v, want it gone", h.cfg.BPFFS, err)
	}
	for _, dir := range []string{"ingress", "egress"} {
		for _, dev := range []string{"eth0", "va"} {
			if out := h.run(t, "tc filter show dev "+dev+" "+dir); out != "" {
				t.Errorf("filters are left at %s: %s", dev, out)
			}
		}
	}
}
