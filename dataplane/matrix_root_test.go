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
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// probeMain asks again and again, each time with a new connection, until its
// input ends, and says how often it was answered, and what went wrong.
func probeMain() int {
	stop := make(chan struct{})
	go func() {
		io.Copy(io.Discard, os.Stdin) //nolint:errcheck // its end is all that matters
		close(stop)
	}()
	asked := 0
	var faults []string
	for {
		select {
		case <-stop:
			fmt.Println(asked, strings.Join(faults, "; "))
			return 0
		case <-time.After(20 * time.Millisecond):
		}
		name := ""
		c, err := dial(os.Args[1], os.Args[2])
		if err == nil {
			name, _, err = hello(c)
		}
		if err == nil && name != os.Args[3] {
			err = errors.New(name + " answers")
		}
		if err != nil && len(faults) < 3 {
			faults = append(faults, err.Error())
		}
		asked++
		if asked == 1 {
			fmt.Println("began")
		}
	}
}

// asker is a probeMain under way.
type asker struct {
	way
	in  io.WriteCloser
	out *bufio.Reader
	cmd *exec.Cmd
}

func startAsker(tb testing.TB, w way) *asker {
	tb.Helper()
	exe, err := os.Executable()
	if err != nil {
		tb.Fatal(err)
	}
	dir, err := os.Open(w.cgroup)
	if err != nil {
		tb.Fatal(err)
	}
	defer dir.Close() //nolint:errcheck // it was only read
	cmd := exec.Command("nsenter", "--net="+w.from.path, exe, w.network, w.to.String(), w.name)
	cmd.Env = append(os.Environ(), labEnv+"=probe")
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
	p := &asker{w, in, bufio.NewReader(out), cmd}
	if _, err := p.out.ReadString('\n'); err != nil {
		tb.Fatalf("%s: %v", w.what, err)
	}
	return p
}

func (p *asker) finish(tb testing.TB) {
	tb.Helper()
	p.in.Close() //nolint:errcheck // it ends the process
	line, err := p.out.ReadString('\n')
	p.cmd.Wait() //nolint:errcheck // it has said what there is to say
	if count, faults, _ := strings.Cut(strings.TrimSpace(line), " "); err != nil || faults != "" {
		tb.Errorf("%s: %s requests, %v, and %s", p.what, count, err, faults)
	}
}

// way is who asks, how, and who has to answer.
type way struct {
	what    string
	from    netns
	cgroup  string // where the socket programs are, or are not
	network string
	to      netip.AddrPort
	name    string
}

// matrixFlows is more than all requests together: a full table forgets flows,
// those under way among them, and what is asked about here is the restarts.
const matrixFlows = 1 << 17

// matrix is two nodes with a service of each kind.
type matrix struct {
	*lab
	services []service.Object
	ways     []way
}

func newMatrix(t *testing.T, mode string) *matrix {
	t.Helper()
	m := &matrix{lab: newLabWith(t, 2, func(c *Config) { c.Maps.Conntrack = matrixFlows })}
	x, y := m.hosts[0], m.hosts[1]
	a, b, far := x.addPod(t, "a"), x.addPod(t, "b"), y.addPod(t, "far")
	m.join(t, mode)
	for _, p := range []*pod{a, b, far} {
		p.serve(t, p.ep.Name, 8080, p.addrs...)
	}
	for _, h := range m.hosts {
		h.serve(t, h.name, 8080, h.node.Addrs...) // a pod in the host's network
	}
	lb := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:cafe::1")}
	here := newService("here", vips(6), 8080, b.target(), far.target())
	here.Service.Spec.InternalTrafficPolicy = new(corev1.ServiceInternalTrafficPolicyLocal)
	m.services = []service.Object{
		external(newService("b", vips(1), 8080, b.target()), 30081, nil, false),
		external(newService("far", vips(2), 8080, far.target()), 30082, lb, false),
		newService("self", vips(3), 8080, a.target()),
		external(newService("host0", vips(4), 8080, x.target()), 30084, nil, false),
		external(newService("host1", vips(5), 8080, y.target()), 30085, nil, false),
		here,
		external(newService("local", vips(7), 8080, b.target(), far.target()), 30087, nil, true),
	}
	names := []string{"b", "far", "a", "host0", "host1", "b", ""}
	none := newCgroup(t, "none")
	for i := range 2 {
		m.world.run(t, fmt.Sprintf("ip route replace %s via %s", lb[i], x.node.Addrs[i]))
		for n, name := range names {
			vip := netip.AddrPortFrom(vips(byte(n + 1))[i], 80)
			if name == "" {
				continue
			}
			m.add("pod, per packet", a.netns, none, vip, name)
			m.add("pod, at the socket", a.netns, x.cgroup, vip, name)
			m.add("host-network pod", x.netns, x.cgroup, vip, name)
		}
		for port, name := range map[uint16]string{30081: "b", 30082: "far", 30084: "host0", 30085: "host1", 30087: "b"} {
			m.add("world, node port", m.world, none, netip.AddrPortFrom(x.node.Addrs[i], port), name)
			if port != 30087 {
				m.add("pod, node port of another node", far.netns, none, netip.AddrPortFrom(x.node.Addrs[i], port), name)
				m.add("world, node port of another node", m.world, none, netip.AddrPortFrom(y.node.Addrs[i], port), name)
			}
		}
		m.add("world, balancer", m.world, none, netip.AddrPortFrom(lb[i], 80), "far")
	}
	return m
}

func (m *matrix) add(what string, from netns, cgroup string, to netip.AddrPort, name string) {
	for _, network := range []string{"tcp", "udp"} {
		m.ways = append(m.ways, way{fmt.Sprintf("%s/%s/%s", what, to, network), from, cgroup, network, to, name})
	}
}

// replay tells the agents of both hosts what they have to know, as at a start.
func (m *matrix) replay(t *testing.T, mode string) {
	t.Helper()
	names := []types.NamespacedName{}
	for _, o := range m.services {
		names = append(names, o.Name())
	}
	for _, h := range m.hosts {
		ids := []string{}
		for _, p := range h.pods {
			h.agent.must(t, "UpdateEndpoint", p.ep)
			ids = append(ids, p.ep.ID)
		}
		h.agent.must(t, "PruneEndpoints", ids)
		m.joinOne(t, h, mode)
		h.agent.must(t, "UpdateServices", m.services)
		h.agent.must(t, "PruneServices", names)
	}
}

// TestRootMatrix asks services of every kind in every way, natively and through
// the overlay, and goes on asking while the agents are killed and start again:
// not one request may fail.
func TestRootMatrix(t *testing.T) {
	for _, mode := range []string{"auto", "vxlan"} {
		t.Run(mode, func(t *testing.T) {
			m := newMatrix(t, mode)
			m.replay(t, mode)
			for _, w := range m.ways {
				got, err := w.from.askAt(w.cgroup, w.network, w.to)
				if err != nil || got.name != w.name {
					t.Errorf("%s: %s answers, %v; want %s", w.what, got.name, err, w.name)
				}
			}
			if t.Failed() {
				return
			}
			var probes []*asker
			for i, w := range m.ways {
				if i%4 == 0 || i%4 == 3 { // half of them, of both protocols
					probes = append(probes, startAsker(t, w))
				}
			}
			for range 2 {
				for _, h := range m.hosts {
					h.agent.kill(t)
					h.startAgent(t)
				}
				m.replay(t, mode)
			}
			for _, p := range probes {
				p.finish(t)
			}
		})
	}
}
