// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"fmt"
	"net/netip"
	"testing"

	corev1 "k8s.io/api/core/v1"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// join makes the hosts of a laboratory peers of each other.
func (l *lab) join(tb testing.TB, mode string) {
	tb.Helper()
	for _, h := range l.hosts {
		l.joinOne(tb, h, mode)
	}
}

// joinOne makes the other hosts peers of one.
func (l *lab) joinOne(tb testing.TB, h *host, mode string) {
	tb.Helper()
	var peers []Peer
	for _, p := range l.hosts {
		if p != h {
			peers = append(peers, Peer{Name: p.name, Addrs: p.node.Addrs, PodCIDRs: p.node.PodCIDRs, Mode: mode, DSR: p.cfg.DSR()})
		}
	}
	h.agent.must(tb, "UpdatePeers", peers)
}

// TestRootReachTwoNodes asks everybody from everywhere on two nodes, by routes
// and through the overlay.
func TestRootReachTwoNodes(t *testing.T) {
	for _, mode := range []string{"auto", "vxlan"} {
		t.Run(mode, func(t *testing.T) {
			l := newLab(t, 2)
			x, y := l.hosts[0], l.hosts[1]
			a, b := x.addPod(t, "a"), y.addPod(t, "b")
			l.join(t, mode)
			a.serve(t, "a", 80, a.addrs...)
			b.serve(t, "b", 80, b.addrs...)
			y.serve(t, "y", 81, y.node.Addrs...)
			l.world.serve(t, "world", 82, worldAddrs...)
			x.agent.must(t, "UpdateServices", []service.Object{
				newService("b", vips(1), 80, b.target()), newService("y", vips(2), 81, y.target()),
			})
			for i := range 2 {
				for _, c := range []struct {
					what string
					from netns
					to   netip.AddrPort
					name string
					saw  netip.Addr
				}{
					{"pod to far pod", a.netns, netip.AddrPortFrom(b.addrs[i], 80), "b", a.addrs[i]},
					{"and back", b.netns, netip.AddrPortFrom(a.addrs[i], 80), "a", b.addrs[i]},
					{"pod to far node", a.netns, netip.AddrPortFrom(y.node.Addrs[i], 81), "y", a.addrs[i]},
					{"node to far pod", x.netns, netip.AddrPortFrom(b.addrs[i], 80), "b", x.node.Addrs[i]},
					{"node to far node", x.netns, netip.AddrPortFrom(y.node.Addrs[i], 81), "y", x.node.Addrs[i]},
					{"pod to world", b.netns, netip.AddrPortFrom(worldAddrs[i], 82), "world", y.node.Addrs[i]},
					{"pod to service of far pod", a.netns, netip.AddrPortFrom(vips(1)[i], 80), "b", a.addrs[i]},
					{"pod to service of far node", a.netns, netip.AddrPortFrom(vips(2)[i], 80), "y", a.addrs[i]},
				} {
					for _, network := range []string{"tcp", "udp"} {
						t.Run(c.what+"/"+family(c.to.Addr())+"/"+network, func(t *testing.T) {
							name, saw, err := c.from.ask(network, c.to)
							if err != nil || name != c.name || saw != c.saw.String() {
								t.Errorf("got %s which saw %s, %v; want %s which saw %s", name, saw, err, c.name, c.saw)
							}
						})
					}
				}
			}
		})
	}
}

// external makes a service reachable from outside, by port of the node and by
// the addresses.
func external(o service.Object, nodePort int32, ips []netip.Addr, local bool) service.Object {
	o.Service.Spec.Type = corev1.ServiceTypeLoadBalancer
	if local {
		o.Service.Spec.ExternalTrafficPolicy = corev1.ServiceExternalTrafficPolicyLocal
	}
	for i := range o.Service.Spec.Ports {
		o.Service.Spec.Ports[i].NodePort = nodePort
	}
	for _, ip := range ips {
		o.Service.Status.LoadBalancer.Ingress = append(o.Service.Status.LoadBalancer.Ingress,
			corev1.LoadBalancerIngress{IP: ip.String()})
	}
	return o
}

// TestRootExternal asks services from the world, through a node that has the
// backend and through one that has not.
func TestRootExternal(t *testing.T) { //nolint:cyclop // one table and its loop
	for _, mode := range []string{"auto", "vxlan"} {
		t.Run(mode, func(t *testing.T) {
			l := newLab(t, 2)
			x, y := l.hosts[0], l.hosts[1]
			x.addPod(t, "a")
			b := y.addPod(t, "b")
			l.join(t, mode)
			b.serve(t, "b", 80, b.addrs...)
			y.serve(t, "y", 81, y.node.Addrs...)
			lb := []netip.Addr{netip.MustParseAddr("203.0.113.1"), netip.MustParseAddr("2001:db8:cafe::1")}
			lbLocal := []netip.Addr{netip.MustParseAddr("203.0.113.2"), netip.MustParseAddr("2001:db8:cafe::2")}
			for _, h := range l.hosts {
				h.agent.must(t, "UpdateServices", []service.Object{
					external(newService("b", vips(1), 80, b.target()), 30080, lb, false),
					external(newService("local", vips(2), 80, b.target()), 30081, lbLocal, true),
					external(newService("y", vips(3), 81, y.target()), 30082, nil, false),
				})
			}
			// The world reaches the balancers' addresses by one node or the other.
			via := func(h *host) {
				for i, ip := range append(append([]netip.Addr{}, lb...), lbLocal...) {
					l.world.run(t, fmt.Sprintf("ip route replace %s via %s", ip, h.node.Addrs[i%2]))
				}
			}
			world := []netip.Addr{netip.MustParseAddr("192.0.2.254"), netip.MustParseAddr("2001:db8:1::fe")}
			for i := range 2 {
				for _, c := range []struct {
					what string
					via  *host
					to   netip.AddrPort
					name string
					saw  netip.Addr // invalid: nobody answers
				}{
					{"node port of the backend's node", y, netip.AddrPortFrom(y.node.Addrs[i], 30080), "b", world[i]},
					{"node port of another node", x, netip.AddrPortFrom(x.node.Addrs[i], 30080), "b", x.node.Addrs[i]},
					{"balancer, backend's node", y, netip.AddrPortFrom(lb[i], 80), "b", world[i]},
					{"balancer, another node", x, netip.AddrPortFrom(lb[i], 80), "b", x.node.Addrs[i]},
					{"local, backend's node", y, netip.AddrPortFrom(y.node.Addrs[i], 30081), "b", world[i]},
					{"local, another node", x, netip.AddrPortFrom(x.node.Addrs[i], 30081), "", netip.Addr{}},
					{"local balancer, backend's node", y, netip.AddrPortFrom(lbLocal[i], 80), "b", world[i]},
					{"local balancer, another node", x, netip.AddrPortFrom(lbLocal[i], 80), "", netip.Addr{}},
					{"node port to the node itself", y, netip.AddrPortFrom(y.node.Addrs[i], 30082), "y", world[i]},
					{"node port to another node itself", x, netip.AddrPortFrom(x.node.Addrs[i], 30082), "y", x.node.Addrs[i]},
				} {
					for _, network := range []string{"tcp", "udp"} {
						if network == "udp" && !c.saw.IsValid() {
							continue // the same, and slow
						}
						t.Run(c.what+"/"+family(c.to.Addr())+"/"+network, func(t *testing.T) {
							via(c.via)
							if !c.saw.IsValid() {
								if err := l.world.silent(network, c.to); err != nil {
									t.Error(err)
								}
								return
							}
							name, saw, err := l.world.ask(network, c.to)
							if err != nil || name != c.name || saw != c.saw.String() {
								t.Errorf("got %s which saw %s, %v; want %s which saw %s", name, saw, err, c.name, c.saw)
							}
						})
					}
				}
				// From inside, the node's port leads to every endpoint, policy or not.
				for _, to := range []netip.AddrPort{
					netip.AddrPortFrom(x.node.Addrs[i], 30080), netip.AddrPortFrom(x.node.Addrs[i], 30081),
					netip.AddrPortFrom(lb[i], 80), netip.AddrPortFrom(lbLocal[i], 80),
				} {
					t.Run("from a pod to "+to.String(), func(t *testing.T) {
						if name, _, err := x.pods["a"].ask("tcp", to); err != nil || name != "b" {
							t.Errorf("got %s, %v; want b", name, err)
						}
					})
					t.Run("from the node to "+to.String(), func(t *testing.T) {
						if got, err := x.askAt(x.cgroup, "tcp", to); err != nil || got.name != "b" {
							t.Errorf("got %v, %v; want b", got, err)
						}
					})
				}
			}
			for _, c := range []netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:30080"), netip.MustParseAddrPort("[::1]:30080")} {
				t.Run("from the node's loopback "+c.String(), func(t *testing.T) {
					if got, err := x.askAt(x.cgroup, "tcp", c); err != nil || got.name != "b" {
						t.Errorf("got %v, %v; want b", got, err)
					}
				})
			}
		})
	}
}
