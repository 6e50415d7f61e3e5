// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"net/netip"
	"testing"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// BenchmarkRootExternal compares the ways from outside to a NodePort in turns:
// at the backend's own node ("near"), and at another one that asks in its own
// name ("snat") or leads the client there ("dsr"). Mode "xdp" is the same in
// drivers, where veth sends no large packets: so it has a "near" of its own.
func BenchmarkRootExternal(b *testing.B) {
	for _, xdp := range []bool{false, true} {
		name := map[bool]string{false: "stages", true: "xdp"}[xdp]
		b.Run(name, func(b *testing.B) {
			var l *lab
			if xdp {
				l = newFastLab(b, ExternalAnnotated)
			} else {
				l = newLabWith(b, 2, direct(ExternalAnnotated))
			}
			x, y := l.hosts[0], l.hosts[1]
			p := y.addPod(b, "p")
			l.join(b, "auto")
			led := external(newService("led", vips(2), 5000, p.target()), 30081, nil, false)
			led.Service.Annotations = map[string]string{service.ExternalMode: service.ModeDSR}
			l.serveEverywhere(b, external(newService("asked", vips(1), 5000, p.target()), 30080, nil, false), led)
			y.waitLinks(b, p)
			at := netip.AddrPortFrom(p.addrs[0], 5000)
			compare(b, []path{
				{"near", l.world, p.netns, netip.AddrPortFrom(y.node.Addrs[0], 30080), at},
				{"snat", l.world, p.netns, netip.AddrPortFrom(x.node.Addrs[0], 30080), at},
				{"dsr", l.world, p.netns, netip.AddrPortFrom(x.node.Addrs[0], 30081), at},
			})
		})
	}
}
