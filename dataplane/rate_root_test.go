// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"testing"
	"time"
)

// TestRootBandwidth: a pod with limits gets about what it may, in both
// directions, and all it wants once the limit is gone.
func TestRootBandwidth(t *testing.T) {
	const limit = 2 << 20 // bytes a second, which the slowest machine does without a limit
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b := h.addPod(t, "a"), h.addPod(t, "b")
	b.serve(t, "b", 80, b.addrs...)
	measure := func() float64 {
		s := a.stream(t, netip.AddrPortFrom(b.addrs[0], 80))
		s.progress(t) // past the burst
		start, blocks := time.Now(), 0
		for time.Since(start) < time.Second {
			select {
			case <-s.sent:
				blocks++
			case err := <-s.done:
				t.Fatalf("stream ended: %v", err)
			}
		}
		s.finish(t)
		return float64(blocks) * 16384 / time.Since(start).Seconds()
	}
	for what, limited := range map[string]Endpoint{
		"egress":  {EgressRate: limit},
		"ingress": {IngressRate: limit},
	} {
		ep := a.ep
		ep.EgressRate, ep.IngressRate = limited.EgressRate, limited.IngressRate
		h.agent.must(t, "UpdateEndpoint", ep)
		// Blocks go back and forth: the limited direction carries each once.
		if got := measure(); got > 1.3*limit {
			t.Errorf("%s: %.0f bytes a second, the limit is %d", what, got, limit)
		}
	}
	h.agent.must(t, "UpdateEndpoint", a.ep)
	if got := measure(); got < 2*limit {
		t.Errorf("%.0f bytes a second without a limit", got)
	}
}
