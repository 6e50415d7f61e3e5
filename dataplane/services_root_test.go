// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"strings"
	"syscall"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// target is an endpoint of a service in the laboratory.
type target struct {
	addrs []netip.Addr
	node  string
	ready bool
}

func (p *pod) target() target { return target{addrs: p.addrs, node: p.host.name, ready: true} }
func (h *host) target() target {
	return target{addrs: h.node.Addrs, node: h.name, ready: true}
}

// newService is a dual stack service on port 80, TCP and UDP, that leads to
// port of the targets.
func newService(name string, ips []netip.Addr, port int32, targets ...target) service.Object {
	svc := &corev1.Service{
		ObjectMeta: metav1.ObjectMeta{Namespace: "default", Name: name},
		Spec:       corev1.ServiceSpec{Type: corev1.ServiceTypeClusterIP},
	}
	o := service.Object{Service: svc}
	for _, ip := range ips {
		svc.Spec.ClusterIPs = append(svc.Spec.ClusterIPs, ip.String())
	}
	svc.Spec.ClusterIP = svc.Spec.ClusterIPs[0]
	ports := map[string]corev1.Protocol{"tcp": corev1.ProtocolTCP, "udp": corev1.ProtocolUDP}
	for name, proto := range ports {
		svc.Spec.Ports = append(svc.Spec.Ports, corev1.ServicePort{Name: name, Port: 80, Protocol: proto})
	}
	for i, typ := range []discoveryv1.AddressType{discoveryv1.AddressTypeIPv4, discoveryv1.AddressTypeIPv6} {
		s := &discoveryv1.EndpointSlice{
			ObjectMeta:  metav1.ObjectMeta{Namespace: "default", Name: name + string(typ)},
			AddressType: typ,
		}
		for name, proto := range ports {
			s.Ports = append(s.Ports, discoveryv1.EndpointPort{Name: &name, Port: &port, Protocol: &proto})
		}
		for _, t := range targets {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
				Addresses:  []string{t.addrs[i].String()},
				Conditions: discoveryv1.EndpointConditions{Ready: &t.ready},
				NodeName:   &t.node,
			})
		}
		o.Slices = append(o.Slices, s)
	}
	return o
}

func vips(n byte) []netip.Addr {
	v6 := netip.MustParseAddr("fd00:96::").As16()
	v6[15] = n
	return []netip.Addr{netip.AddrFrom4([4]byte{10, 96, 0, n}), netip.AddrFrom16(v6)}
}

// TestRootClusterIP asks services from pods and from the node, per packet and
// at the socket.
func TestRootClusterIP(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b := h.addPod(t, "a"), h.addPod(t, "b")
	a.serve(t, "a", 8080, a.addrs...)
	b.serve(t, "b", 8080, b.addrs...)
	h.serve(t, "host", 8080, h.node.Addrs...)
	l.world.serve(t, "world", 8080, worldAddrs...)
	h.agent.must(t, "UpdateServices", []service.Object{
		newService("b", vips(1), 8080, b.target()),
		newService("self", vips(2), 8080, a.target()),
		newService("host", vips(3), 8080, h.target()),
		newService("world", vips(4), 8080, target{worldAddrs, "", true}),
	})
	for i := range 2 {
		for _, c := range []struct {
			what string
			vip  netip.Addr
			name string
			// saw at the socket, and per packet.
			sock, packet netip.Addr
		}{
			{"to a pod", vips(1)[i], "b", a.addrs[i], a.addrs[i]},
			{"to itself", vips(2)[i], "a", a.addrs[i], vips(2)[i]},
			{"to the node", vips(3)[i], "host", a.addrs[i], a.addrs[i]},
			{"to the world", vips(4)[i], "world", h.node.Addrs[i], h.node.Addrs[i]},
		} {
			for _, network := range []string{"tcp", "udp"} {
				to := netip.AddrPortFrom(c.vip, 80)
				t.Run(c.what+"/"+family(c.vip)+"/"+network+"/packet", func(t *testing.T) {
					name, saw, err := a.ask(network, to)
					if err != nil || name != c.name || saw != c.packet.String() {
						t.Errorf("got %s which saw %s, %v; want %s which saw %s", name, saw, err, c.name, c.packet)
					}
				})
				t.Run(c.what+"/"+family(c.vip)+"/"+network+"/socket", func(t *testing.T) {
					want := c.sock
					if network == "udp" {
						want = c.packet // pods' UDP is translated per packet only
					}
					got, err := a.askAt(h.cgroup, network, to)
					if err != nil || got != (answer{c.name, want.String(), to.String()}) {
						t.Errorf("got %v, %v; want %s which saw %s, from %s", got, err, c.name, want, to)
					}
				})
				t.Run(c.what+" from the node/"+family(c.vip)+"/"+network, func(t *testing.T) {
					got, err := h.askAt(h.cgroup, network, to)
					if err != nil || got.name != c.name || got.peer != to.String() {
						t.Errorf("got %v, %v; want %s from %s", got, err, c.name, to)
					}
				})
			}
		}
	}
}

// TestRootNoEndpoints: a service without endpoints refuses, it does not hang.
func TestRootNoEndpoints(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a := h.addPod(t, "a")
	h.agent.must(t, "UpdateServices", []service.Object{newService("none", vips(1), 80)})
	for _, vip := range vips(1) {
		for _, network := range []string{"tcp", "udp"} {
			to := netip.AddrPortFrom(vip, 80)
			t.Run(family(vip)+"/"+network+"/packet", func(t *testing.T) {
				start := time.Now()
				_, _, err := a.ask(network, to)
				if !errors.Is(err, syscall.ECONNREFUSED) {
					t.Errorf("after %s: %v, want connection refused", time.Since(start), err)
				}
			})
			t.Run(family(vip)+"/"+network+"/socket", func(t *testing.T) {
				_, err := a.askAt(h.cgroup, network, to)
				if err == nil || !strings.Contains(err.Error(), "connection refused") {
					t.Errorf("got %v, want connection refused", err)
				}
			})
		}
	}
}

// TestRootServiceFollows: new flows follow a service as it changes.
func TestRootServiceFollows(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b, c := h.addPod(t, "a"), h.addPod(t, "b"), h.addPod(t, "c")
	b.serve(t, "b", 8080, b.addrs...)
	c.serve(t, "c", 8080, c.addrs...)
	ask := func(want ...string) {
		t.Helper()
		seen := map[string]int{}
		for range 24 {
			name, _, err := a.ask("tcp", netip.AddrPortFrom(vips(1)[0], 80))
			if err != nil {
				t.Fatal(err)
			}
			seen[name]++
		}
		if len(seen) != len(want) {
			t.Fatalf("answers came from %v, want %v", seen, want)
		}
		for _, w := range want {
			if seen[w] == 0 {
				t.Fatalf("answers came from %v, want %v", seen, want)
			}
		}
	}
	update := func(targets ...target) {
		h.agent.must(t, "UpdateServices", []service.Object{newService("s", vips(1), 8080, targets...)})
	}
	update(b.target())
	ask("b")
	update(b.target(), c.target())
	ask("b", "c")
	update(c.target())
	ask("c")
	h.agent.must(t, "DeleteServices", []types.NamespacedName{{Namespace: "default", Name: "s"}})
	if err := a.silent("tcp", netip.AddrPortFrom(vips(1)[0], 80)); err != nil {
		t.Errorf("a deleted service: %v", err)
	}
}

// TestRootUDPLeaves: a UDP flow of one socket goes on with another backend when
// its own is taken out of the service.
func TestRootUDPLeaves(t *testing.T) {
	l := newLab(t, 1)
	h := l.hosts[0]
	a, b, c := h.addPod(t, "a"), h.addPod(t, "b"), h.addPod(t, "c")
	b.serve(t, "b", 8080, b.addrs...)
	c.serve(t, "c", 8080, c.addrs...)
	h.agent.must(t, "UpdateServices", []service.Object{newService("s", vips(1), 8080, b.target())})
	var conn net.Conn
	err := a.do(func() (err error) {
		conn, err = net.Dial("udp", netip.AddrPortFrom(vips(1)[0], 80).String())
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close() //nolint:errcheck // the test is over
	// An answer that is under way when its flow is forgotten is lost, as UDP may
	// be: who asks has to ask again.
	ask := func() string {
		t.Helper()
		var name string
		conn.SetDeadline(time.Now().Add(time.Second / 2)) //nolint:errcheck // a socket has deadlines
		if _, err := conn.Write([]byte("hello")); err != nil {
			t.Fatal(err)
		}
		buf := make([]byte, 256)
		n, err := conn.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return ""
		}
		if err != nil {
			t.Fatal(err)
		}
		if _, err := fmt.Sscan(string(buf[:n]), &name); err != nil {
			t.Fatal(err)
		}
		return name
	}
	if got := ask(); got != "b" {
		t.Fatalf("%s answers, want b", got)
	}
	h.agent.must(t, "UpdateServices", []service.Object{newService("s", vips(1), 8080, c.target())})
	for deadline := time.Now().Add(time.Minute); ask() != "c"; {
		if time.Now().After(deadline) {
			t.Fatal("the flow stays with the backend that was removed")
		}
	}
}
