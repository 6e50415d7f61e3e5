// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// TestRootServiceStats: what services carried is counted, per packet and at the
// socket, by the bytes when a connection ends.
func TestRootServiceStats(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b := h.addPod(t, "a"), h.addPod(t, "b")
	b.serve(t, "b", 8080, b.addrs...)
	h.agent.must(t, "UpdateServices", []service.Object{
		newService("b", vips(1), 8080, b.target()), newService("none", vips(2), 8080),
	})
	for _, vip := range vips(1) {
		for range 3 {
			if _, err := a.askAt(h.cgroup, "tcp", netip.AddrPortFrom(vip, 80)); err != nil {
				t.Fatal(err)
			}
			if _, _, err := a.ask("udp", netip.AddrPortFrom(vip, 80)); err != nil {
				t.Fatal(err)
			}
		}
	}
	for _, vip := range vips(2) {
		if err := a.silent("udp", netip.AddrPortFrom(vip, 80)); err != nil {
			t.Errorf("a service without endpoints: %v", err)
		}
	}
	checkStats(t, h)
	// A service that goes takes its counters with it.
	h.agent.must(t, "PruneServices", nil)
	var stats []ServiceStat
	if err := h.agent.get("ServiceStats", nil, &stats); err != nil || len(stats) != 1 {
		t.Errorf("%d counters are left, %v; want those of all others only", len(stats), err)
	}
}

func checkStats(t *testing.T, h *host) {
	t.Helper()
	var stats []ServiceStat
	if err := h.agent.get("ServiceStats", nil, &stats); err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, s := range stats {
		switch {
		case s.Owner == "service default/b":
			seen++
			if s.Connections != 3 || s.Refused != 0 || s.BytesIn == 0 || s.BytesOut == 0 {
				t.Errorf("%s/%s/%s: %+v, want 3 connections and bytes both ways", s.Port, protoName(s.Proto), s.Family, s.Stat)
			}
		case s.Owner == "service default/none" && s.Proto == service.UDP:
			seen++
			if s.Connections != 0 || s.Refused == 0 {
				t.Errorf("no endpoints: %+v, want it refused", s.Stat)
			}
		}
	}
	if seen != 6 {
		t.Errorf("%d ports counted, want 6: %+v", seen, stats)
	}
}

// TestRootTrace compares what a trace says with what happens.
func TestRootTrace(t *testing.T) {
	l := newLab(t, 2)
	h := l.hosts[0]
	a, b := h.addPod(t, "a"), h.addPod(t, "b")
	far := l.hosts[1].addPod(t, "far")
	l.join(t, "auto")
	for _, p := range []*pod{a, b, far} {
		p.serve(t, p.ep.Name, 8080, p.addrs...)
	}
	maglev := newService("maglev", vips(2), 8080, b.target(), far.target())
	maglev.Service.Annotations = map[string]string{service.LoadBalancing: "maglev"}
	sticky := newService("sticky", vips(3), 8080, b.target(), far.target())
	sticky.Service.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	unready := b.target()
	unready.ready = false
	h.agent.must(t, "UpdateServices", []service.Object{
		newService("b", vips(1), 8080, b.target()), maglev, sticky,
		newService("none", vips(4), 8080, unready),
		external(newService("local", vips(5), 8080, far.target()), 30085, nil, true),
	})
	for i := range 2 {
		world := worldAddrs[i]
		for _, c := range []struct {
			what     string
			src      netip.AddrPort
			dst      netip.AddrPort
			proto    uint8
			outcome  string
			backends int
			why      string
		}{
			{"one", netip.AddrPortFrom(a.addrs[i], 0), netip.AddrPortFrom(vips(1)[i], 80), service.UDP, OutcomeBackend, 1, "the only backend"},
			{"none ready", netip.AddrPortFrom(a.addrs[i], 0), netip.AddrPortFrom(vips(4)[i], 80), service.TCP, OutcomeReject, 0, "no endpoint may be used: 1 not ready"},
			{"policy", netip.AddrPortFrom(world, 0), netip.AddrPortFrom(h.node.Addrs[i], 30085), service.TCP, OutcomeDrop, 0, "no endpoint on this node, but there are some on others"},
			{"policy from within", netip.AddrPortFrom(a.addrs[i], 0), netip.AddrPortFrom(h.node.Addrs[i], 30085), service.TCP, OutcomeBackend, 1, "the only backend"},
			{"no service", netip.AddrPortFrom(a.addrs[i], 0), netip.AddrPortFrom(b.addrs[i], 80), service.TCP, OutcomeNone, 0, "no service has this address, port and protocol: it goes to the pod of b/eth0"},
		} {
			t.Run(c.what+"/"+family(c.dst.Addr()), func(t *testing.T) {
				got := h.trace(t, TraceRequest{c.src, c.dst, c.proto})
				if got.Outcome != c.outcome || len(got.Backends) != c.backends || got.Reason != c.why {
					t.Errorf("got %s to %v because %q, want %s because %q", got.Outcome, got.Backends, got.Reason, c.outcome, c.why)
				}
			})
		}
		t.Run("affinity/"+family(vips(3)[i]), func(t *testing.T) {
			to := netip.AddrPortFrom(vips(3)[i], 80)
			name, _, err := a.ask("udp", to)
			if err != nil {
				t.Fatal(err)
			}
			want := netip.AddrPortFrom(h.pods["b"].addrs[i], 8080)
			if name == "far" {
				want = netip.AddrPortFrom(far.addrs[i], 8080)
			}
			got := h.trace(t, TraceRequest{netip.AddrPortFrom(a.addrs[i], 0), to, service.UDP})
			if len(got.Backends) != 1 || got.Backends[0] != want {
				t.Errorf("got %v because %q; %s answered", got.Backends, got.Reason, name)
			}
		})
		t.Run("maglev/"+family(vips(2)[i]), func(t *testing.T) {
			for port := uint16(42000); port < 42016; port++ {
				src, to := netip.AddrPortFrom(a.addrs[i], port), netip.AddrPortFrom(vips(2)[i], 80)
				got := h.trace(t, TraceRequest{src, to, service.UDP})
				name, err := a.askFrom(src, to)
				if err != nil || len(got.Backends) != 1 || (got.Backends[0].Addr() == b.addrs[i]) != (name == "b") {
					t.Errorf("port %d: %s answers, %v; the trace says %v: %s", port, name, err, got.Backends, got.Reason)
				}
			}
		})
	}
}

func (h *host) trace(tb testing.TB, req TraceRequest) Trace {
	tb.Helper()
	var all []Trace
	if err := h.agent.get("Trace", req, &all); err != nil || len(all) != 1 {
		tb.Fatalf("%d traces, %v; want one", len(all), err)
	}
	return all[0]
}

// TestRootAffinityRestart: a client keeps its backend over a restart of the
// daemon, and loses it after the timeout.
func TestRootAffinityRestart(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b, c := h.addPod(t, "a"), h.addPod(t, "b"), h.addPod(t, "c")
	b.serve(t, "b", 8080, b.addrs...)
	c.serve(t, "c", 8080, c.addrs...)
	o := newService("s", vips(1), 8080, b.target(), c.target())
	o.Service.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	timeout := int32(2)
	short := newService("short", vips(2), 8080, b.target(), c.target())
	short.Service.Spec.SessionAffinity = corev1.ServiceAffinityClientIP
	short.Service.Spec.SessionAffinityConfig = &corev1.SessionAffinityConfig{ClientIP: &corev1.ClientIPConfig{TimeoutSeconds: &timeout}}
	h.agent.must(t, "UpdateServices", []service.Object{o, short})
	ask := func(vip netip.Addr) string {
		t.Helper()
		name, _, err := a.ask("udp", netip.AddrPortFrom(vip, 80))
		if err != nil {
			t.Fatal(err)
		}
		return name
	}
	first := []string{ask(vips(1)[0]), ask(vips(1)[1])}
	for range 2 {
		for i, want := range first {
			for range 8 {
				if got := ask(vips(1)[i]); got != want {
					t.Errorf("%s answers, %s did before", got, want)
				}
			}
		}
		h.agent.kill(t)
		h.startAgent(t)
		for _, p := range []*pod{a, b, c} {
			h.agent.must(t, "UpdateEndpoint", p.ep)
		}
		h.agent.must(t, "UpdateServices", []service.Object{o, short})
	}
	// Asking keeps it; so this looks without asking.
	want := ask(vips(2)[0])
	req := TraceRequest{netip.AddrPortFrom(a.addrs[0], 0), netip.AddrPortFrom(vips(2)[0], 80), service.UDP}
	if got := h.trace(t, req); len(got.Backends) != 1 {
		t.Errorf("%s was given, and now it may be any: %s", want, got.Reason)
	}
	eventually(t, "the client keeps its backend past the timeout", func() error {
		if got := h.trace(t, req); len(got.Backends) != 2 {
			return errors.New(got.Reason)
		}
		return nil
	})
}
