// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/cilium/ebpf"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// older holds the same programs with records of another layout (bpf/gen.go).
const older = "../bpf/testdata/older/datapath.o"

// probe asks a thousand times a second over UDP and counts the answers: from one
// socket all the time, or less often from a new one, and so in a new flow.
type probe struct {
	what      string
	sent, got atomic.Int64
	stop      chan struct{}
	done      chan error
}

func (n netns) probe(what string, to netip.AddrPort, fresh bool) *probe {
	p := &probe{what: what, stop: make(chan struct{}), done: make(chan error, 1)}
	go func() { p.done <- p.run(n, to, fresh) }()
	return p
}

func (p *probe) run(n netns, to netip.AddrPort, fresh bool) error {
	return n.do(func() error {
		every := time.Millisecond
		if fresh { // there are no more than 4,535 ports towards the world
			every *= 10
		}
		if testing.Short() { // an emulated machine
			every *= 100
		}
		tick := time.NewTicker(every)
		defer tick.Stop()
		var c net.Conn
		for {
			select {
			case <-p.stop:
				if c != nil {
					return c.Close()
				}
				return nil
			case <-tick.C:
			}
			if c == nil || fresh {
				if c != nil {
					c.Close() //nolint:errcheck // all answers are there
				}
				var err error
				if c, err = net.Dial("udp", to.String()); err != nil {
					return err
				}
			}
			if err := p.ask(c); err != nil {
				return err
			}
		}
	})
}

func (p *probe) ask(c net.Conn) error {
	p.sent.Add(1)
	c.SetDeadline(time.Now().Add(dialTimeout)) //nolint:errcheck // a socket has deadlines
	if _, err := fmt.Fprintln(c, "probe"); err != nil {
		return err
	}
	if _, err := c.Read(make([]byte, 256)); err != nil {
		return fmt.Errorf("question %d: %w", p.sent.Load(), err)
	}
	p.got.Add(1)
	return nil
}

func (p *probe) finish(t *testing.T) {
	t.Helper()
	close(p.stop)
	if err := <-p.done; err != nil {
		t.Errorf("%s: %v", p.what, err)
	}
	if s, g := p.sent.Load(), p.got.Load(); s != g || g < 100 && !testing.Short() {
		t.Errorf("%s: %d questions, %d answers", p.what, s, g)
	}
}

// traffic is everything that has to survive an upgrade: streams and probes on
// the node, to the world, to another node, through a service.
type traffic struct {
	streams []*stream
	probes  []*probe
}

func newTraffic(t *testing.T, a *pod, targets map[string]netip.AddrPort) *traffic {
	t.Helper()
	var tr traffic
	for what, to := range targets {
		tr.streams = append(tr.streams, a.stream(t, to))
		tr.probes = append(tr.probes, a.probe(what, to, false), a.probe(what+", new flows", to, true))
	}
	return &tr
}

func (tr *traffic) progress(t *testing.T) {
	t.Helper()
	for _, s := range tr.streams {
		s.progress(t)
	}
}

func (tr *traffic) finish(t *testing.T) {
	t.Helper()
	for _, s := range tr.streams {
		s.finish(t)
	}
	for _, p := range tr.probes {
		p.finish(t)
	}
}

// TestRootUpgrade starts daemons of one layout over what those of another left,
// forth and back, and kills them before each step: no answer is missing.
func TestRootUpgrade(t *testing.T) {
	l := newLab(t, 2)
	h, far := l.hosts[0], l.hosts[1]
	h.agent.kill(t)
	h.object = older
	h.cfg.Maps.Conntrack = 1 << 16
	h.startAgent(t)
	a, b, c := h.addPod(t, "a"), h.addPod(t, "b"), far.addPod(t, "c")
	l.join(t, "vxlan")
	b.serve(t, "b", 80, b.addrs...)
	c.serve(t, "c", 80, c.addrs...)
	l.world.serve(t, "world", 82, worldAddrs...)
	h.agent.must(t, "UpdateServices", []service.Object{newService("s", vips(1), 80, b.target(), c.target())})
	targets := map[string]netip.AddrPort{}
	for i := range 2 {
		targets["pod/"+family(b.addrs[i])] = netip.AddrPortFrom(b.addrs[i], 80)
		targets["far pod/"+family(b.addrs[i])] = netip.AddrPortFrom(c.addrs[i], 80)
		targets["world/"+family(b.addrs[i])] = netip.AddrPortFrom(worldAddrs[i], 82)
		targets["service/"+family(b.addrs[i])] = netip.AddrPortFrom(vips(1)[i], 80)
	}
	tr := newTraffic(t, a, targets)
	tr.progress(t)
	steps := []string{"", "make maps", "load programs", "put relays on links", "turn relays", "carry over", "move pins"}
	if testing.Short() {
		steps = steps[:2]
	}
	for i, step := range steps {
		if i == 1 {
			h.waitLinks(t, a, b)
		}
		h.agent.kill(t)
		h.object = map[bool]string{true: "", false: older}[h.object == older]
		if h.dieAt = step; step != "" {
			h.startAgent(t)
			tr.progress(t)
		}
		h.dieAt = ""
		h.startAgent(t)
		tr.progress(t)
		h.settled(t, h.object == older)
	}
	tr.finish(t)
}

// settled: the maps are those of the daemon that runs, and nothing else is left.
func (h *host) settled(t *testing.T, older bool) {
	t.Helper()
	dir := filepath.Join(h.cfg.BPFFS, "v1")
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), "next") {
			t.Errorf("%s is left", e.Name())
		}
	}
	ct, err := ebpf.LoadPinnedMap(filepath.Join(dir, "maps", "ct"), nil)
	if err != nil {
		t.Fatal(err)
	}
	defer ct.Close() //nolint:errcheck // only looked at
	if want := map[bool]uint32{true: 104, false: 80}[older]; ct.ValueSize() != want {
		t.Errorf("records have %d bytes, want %d", ct.ValueSize(), want)
	}
}
