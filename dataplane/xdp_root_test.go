// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/asm"
	"github.com/cilium/ebpf/link"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// newFastLab is a laboratory whose uplinks carry in the driver what passes
// through. A veth's other end has to take frames that XDP sends, and needs a
// program of XDP for that; and what XDP changes needs whole sums, which a veth
// leaves to the receiver unless it is told not to.
func newFastLab(tb testing.TB, mode string) *lab {
	tb.Helper()
	l := newLabWith(tb, 2, func(c *Config) { c.ServiceOptions.XDP, c.ServiceOptions.ExternalMode = XDPNative, mode })
	for i, h := range l.hosts {
		far := fmt.Sprint("to", i)
		l.world.run(tb, "ethtool -K "+far+" tx off >/dev/null")
		h.run(tb, "ethtool -K eth0 tx off >/dev/null")
		if err := l.world.do(func() error { return passXDP(tb, far) }); err != nil {
			tb.Fatal(err)
		}
	}
	return l
}

// passXDP attaches a program that passes everything.
func passXDP(tb testing.TB, name string) error {
	tb.Helper()
	const frags = 1 << 5 // BPF_F_XDP_HAS_FRAGS
	p, err := ebpf.NewProgram(&ebpf.ProgramSpec{
		Type: ebpf.XDP, License: "Apache-2.0", Flags: frags, Instructions: asm.Instructions{asm.Mov.Imm(asm.R0, 2), asm.Return()},
	})
	if err != nil {
		return err
	}
	i, err := net.InterfaceByName(name)
	if err != nil {
		return errors.Join(err, p.Close())
	}
	l, err := link.AttachXDP(link.XDPOptions{Program: p, Interface: i.Index, Flags: link.XDPDriverMode})
	if err != nil {
		return errors.Join(err, p.Close())
	}
	tb.Cleanup(func() {
		if err := errors.Join(l.Close(), p.Close()); err != nil {
			tb.Errorf("take XDP off: %v", err)
		}
	})
	return nil
}

// TestRootXDP asks services from the world through a node that has no backend:
// all but the first packets are carried in the driver, both ways.
func TestRootXDP(t *testing.T) {
	for _, mode := range []string{ExternalSNAT, ExternalDSR} {
		for _, peers := range []string{"auto", "vxlan"} {
			t.Run(mode+"/"+peers, func(t *testing.T) { testXDP(t, mode, peers) })
		}
	}
}

func testXDP(t *testing.T, mode, peers string) {
	t.Helper()
	l := newFastLab(t, mode)
	x, y := l.hosts[0], l.hosts[1]
	b := y.addPod(t, "b")
	l.join(t, peers)
	b.serve(t, "b", 80, b.addrs...)
	y.serve(t, "y", 81, y.node.Addrs...)
	l.serveEverywhere(t,
		external(newService("b", vips(1), 80, b.target()), 30080, balancers, false),
		external(newService("y", vips(2), 81, y.target()), 30081, nil, false))
	l.leadTo(t, x, balancers...)
	for i := range 2 {
		saw := outsiders[i]
		if mode == ExternalSNAT {
			saw = x.node.Addrs[i]
		}
		for name, to := range map[string]netip.AddrPort{
			"b": netip.AddrPortFrom(balancers[i], 80), "y": netip.AddrPortFrom(x.node.Addrs[i], 30081),
		} {
			for _, network := range []string{"tcp", "udp"} {
				for range 3 {
					got, who, err := l.world.ask(network, to)
					if err != nil || got != name || who != saw.String() {
						t.Fatalf("%s/%s: got %s which saw %s, %v; want %s which saw %s", to, network, got, who, err, name, saw)
					}
				}
			}
		}
		before := counted(t, x, "xdp")
		l.streamDirect(t, netip.AddrPortFrom(balancers[i], 80))
		if n := counted(t, x, "xdp") - before; n < 300 {
			t.Errorf("%s: %d packets of a stream were carried in the driver", family(balancers[i]), n)
		}
	}
	var stats []ServiceStat
	if err := x.agent.get("ServiceStats", struct{}{}, &stats); err != nil {
		t.Fatal(err)
	}
	for _, s := range stats {
		if s.Owner == "service default/b" && s.Proto == service.TCP && s.BytesIn < 1<<20 {
			t.Errorf("%s: %d bytes in were counted", s.Family, s.BytesIn)
		}
	}
}

// TestRootXDPStays: the program stays in the driver while the agent is killed
// and starts again, and goes when it is turned off.
func TestRootXDPStays(t *testing.T) {
	l := newFastLab(t, ExternalSNAT)
	x, y := l.hosts[0], l.hosts[1]
	b := y.addPod(t, "b")
	l.join(t, "auto")
	b.serve(t, "b", 80, b.addrs...)
	o := external(newService("b", vips(1), 80, b.target()), 30080, nil, false)
	l.serveEverywhere(t, o)
	to := netip.AddrPortFrom(x.node.Addrs[0], 30080)
	carried := func(what string) {
		t.Helper()
		before := counted(t, x, "xdp")
		l.streamDirect(t, to)
		if counted(t, x, "xdp") == before {
			t.Errorf("%s: nothing was carried in the driver", what)
		}
	}
	attached := func() bool { return strings.Contains(x.run(t, "ip link show eth0"), "xdp") }
	if !attached() {
		t.Fatal("no program in the driver")
	}
	carried("before")
	x.agent.kill(t)
	l.streamDirect(t, to)
	if !attached() {
		t.Error("the program went with its agent")
	}
	x.startAgent(t)
	l.joinOne(t, x, "auto")
	x.agent.must(t, "UpdateServices", []service.Object{o})
	carried("again")
	x.agent.stop(t)
	x.cfg.ServiceOptions.XDP = XDPOff
	x.startAgent(t)
	if attached() {
		t.Error("the program stays though it is turned off")
	}
	l.streamDirect(t, to)

	// A veth is left alone unless it is asked for.
	x.agent.stop(t)
	x.cfg.ServiceOptions.XDP = XDPAuto
	x.startAgent(t)
	var got []Acceleration
	if err := x.agent.get("Accelerations", struct{}{}, &got); err != nil {
		t.Fatal(err)
	}
	if len(got) != 1 || got[0].Native || !strings.Contains(got[0].Why, "a veth") {
		t.Errorf("auto: %+v, want no XDP, because it is a veth", got)
	}
}
