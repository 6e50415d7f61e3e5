// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"testing"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// TestRootSharedPort: one port of a client asks a service, its backend and
// another service of that backend, in turns, and each answers as itself.
func TestRootSharedPort(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b := h.addPod(t, "a"), h.addPod(t, "b")
	b.serve(t, "b", 80, b.addrs...)
	h.agent.must(t, "UpdateServices", []service.Object{
		newService("one", vips(1), 80, b.target()), newService("two", vips(2), 80, b.target()),
	})
	for i := range 2 {
		one, two, direct := vips(1)[i], vips(2)[i], b.addrs[i]
		for turn, to := range []netip.Addr{one, direct, one, two, direct, two, one} {
			from := netip.AddrPortFrom(a.addrs[i], 40000)
			if _, err := a.askFrom(from, netip.AddrPortFrom(to, 80)); err != nil {
				t.Errorf("turn %d: %v", turn, err)
			}
		}
	}
}
