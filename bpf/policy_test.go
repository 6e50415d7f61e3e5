// SPDX-License-Identifier: Apache-2.0

package bpf

import (
	"net/netip"
	"testing"

	"github.com/cilium/ebpf"
)

const (
	isolatedIn  = 7 // profiles of the tests
	isolatedOut = 8
	friends     = 100 // identities
	range198    = 101
)

// isolate gives an address profiles and lets the stage be asked.
func (n *netLab) isolate(a netip.Addr, ingress, egress uint32) {
	n.Helper()
	n.put(n.objs.Profiles, key(a), DatapathProfile{Ingress: ingress, Egress: egress})
	n.put(n.objs.Guard, uint32(0), uint32(1))
}

func (n *netLab) identity(p netip.Prefix, id uint32) {
	n.Helper()
	bits := uint32(p.Bits())
	if p.Addr().Is4() {
		bits += 96
	}
	n.put(n.objs.Identities, DatapathRouteKey{Bits: bits, Addr: key(p.Addr())}, id)
}

// rule allows a protocol at the ports of a prefix; protocol 0: everything.
func (n *netLab) rule(profile, identity uint32, proto uint8, port uint16, bits uint32) {
	n.Helper()
	k := DatapathPolKey{Bits: 64, Profile: profile, Identity: identity, Proto: proto, Port: swap(port)}
	if proto != 0 {
		k.Bits += 16 + bits
	}
	n.put(n.objs.Rules, k, uint32(0))
}

func host(a netip.Addr) netip.Prefix { return netip.PrefixFrom(a, a.BitLen()) }

// TestRootPolicyIngress: who reaches an isolated pod, at which ports.
func TestRootPolicyIngress(t *testing.T) {
	n := newNetLab(t)
	fromPod, fromNet := n.objs.FromPod, n.objs.FromNet
	n.rule(isolatedIn, friends, tcp, 80, 16)
	n.rule(isolatedIn, friends, udp, 0x8000, 1)
	n.rule(isolatedIn, range198, 0, 0, 0)
	for f := range 2 {
		n.isolate(podB.at(f), isolatedIn, 0)
		all, allowed := []uint8{icmp, icmp6}[f], packet(podA.at(f), podB.at(f), tcp, 80)
		late := packet(podA.at(f), podB.at(f), tcp, 80)
		late.sport++
		drop := func(what string, prog *ebpf.Program, hook DatapathHook, in uint32, p wire) step {
			return step{what, prog, hook, in, p, actShot, DatapathReasonDROP_INGRESS, nil}
		}
		pass := func(what string, prog *ebpf.Program, hook DatapathHook, in uint32, p wire) step {
			return step{what, prog, hook, in, p, actRedirect, DatapathReasonFWD_LOCAL, nil}
		}
		pod, net := DatapathHookHOOK_POD, DatapathHookHOOK_NET
		n.steps([]step{drop("a stranger", fromPod, pod, n.podA, allowed)})
		n.identity(host(podA.at(f)), friends)
		n.steps([]step{
			pass("a friend", fromPod, pod, n.podA, allowed),
			pass("the answer", fromPod, pod, n.podB, allowed.turned()),
			drop("at another port", fromPod, pod, n.podA, packet(podA.at(f), podB.at(f), tcp, 81)),
			drop("another protocol", fromPod, pod, n.podA, packet(podA.at(f), podB.at(f), udp, 80)),
			drop("below the range", fromPod, pod, n.podA, packet(podA.at(f), podB.at(f), udp, 0x7fff)),
			pass("first of the range", fromPod, pod, n.podA, packet(podA.at(f), podB.at(f), udp, 0x8000)),
			pass("last of the range", fromPod, pod, n.podA, packet(podA.at(f), podB.at(f), udp, 0xffff)),
			drop("an echo", fromPod, pod, n.podA, packet(podA.at(f), podB.at(f), all, 0)),
			drop("from outside", fromNet, net, n.up, packet(world.at(f), podB.at(f), tcp, 80)),
			pass("out of an isolated pod", fromPod, pod, n.podB, packet(podB.at(f), podA.at(f), udp, 53)),
			pass("an answer to that", fromPod, pod, n.podA, packet(podB.at(f), podA.at(f), udp, 53).turned()),
		})
		bits := []int{24, 48}[f]
		n.identity(netip.PrefixFrom(world.at(f), bits).Masked(), range198)
		n.steps([]step{
			pass("from an allowed range", fromNet, net, n.up, packet(world.at(f), podB.at(f), tcp, 80)),
			pass("with any protocol", fromNet, net, n.up, packet(world.at(f), podB.at(f), all, 0)),
		})
		// What is allowed no more goes on until it ends; the next does not begin.
		if err := n.objs.Identities.Delete(DatapathRouteKey{Bits: 128, Addr: key(podA.at(f))}); err != nil {
			t.Fatal(err)
		}
		mid := allowed
		mid.flags = 0x10
		n.steps([]step{pass("an old flow", fromPod, pod, n.podA, mid), drop("a new flow", fromPod, pod, n.podA, late)})
	}
}

// TestRootPolicyEgress: whom an isolated pod reaches, and that a service counts
// as what stands behind it.
func TestRootPolicyEgress(t *testing.T) {
	n := newNetLab(t)
	n.rule(isolatedOut, friends, tcp, 8080, 16)
	n.rule(isolatedOut, 0, udp, 53, 16)
	pod := DatapathHookHOOK_POD
	for f := range 2 {
		n.isolate(podA.at(f), 0, isolatedOut)
		n.service(uint32(f)+1, vip.at(f), netip.AddrPortFrom(podB.at(f), 8080))
		p := packet(podA.at(f), vip.at(f), tcp, 80)
		to := p
		to.dst, to.dport = podB.at(f), 8080
		n.steps([]step{{"a service of strangers", n.objs.FromPod, pod, n.podA, p, actShot, DatapathReasonDROP_EGRESS, nil}})
		n.identity(host(podB.at(f)), friends)
		n.steps([]step{
			{"a service of friends", n.objs.FromPod, pod, n.podA, p, actRedirect, DatapathReasonFWD_LOCAL, &to},
			{"past the service", n.objs.FromPod, pod, n.podA, packet(podA.at(f), podB.at(f), tcp, 80), actShot, DatapathReasonDROP_EGRESS, nil},
			{"to everybody at one port", n.objs.FromPod, pod, n.podA, packet(podA.at(f), podB.at(f), udp, 53), actRedirect, DatapathReasonFWD_LOCAL, nil},
			{"to the world", n.objs.FromPod, pod, n.podA, packet(podA.at(f), world.at(f), tcp, 443), actShot, DatapathReasonDROP_EGRESS, nil},
			{"to its node", n.objs.FromPod, pod, n.podA, packet(podA.at(f), node.at(f), tcp, 10250), actOK, DatapathReasonPASS_HOST, nil},
			{"to itself", n.objs.FromPod, pod, n.podA, packet(podA.at(f), podA.at(f), tcp, 1), actRedirect, DatapathReasonFWD_LOCAL, nil},
			{"into an isolated pod", n.objs.FromPod, pod, n.podB, packet(podB.at(f), podA.at(f), tcp, 80), actRedirect, DatapathReasonFWD_LOCAL, nil},
			{"its answer", n.objs.FromPod, pod, n.podA, packet(podB.at(f), podA.at(f), tcp, 80).turned(), actRedirect, DatapathReasonFWD_LOCAL, nil},
		})
	}
}

// TestRootPolicyNode: the node speaks to its pods, others through it do not.
func TestRootPolicyNode(t *testing.T) {
	n := newNetLab(t)
	for f := range 2 {
		n.isolate(podB.at(f), isolatedIn, isolatedOut)
		probe := packet(node.at(f), podB.at(f), tcp, 80)
		routed := packet(world.at(f), podB.at(f), tcp, 80)
		topod := DatapathHookHOOK_TOPOD
		n.steps([]step{
			{"a probe", n.objs.ToPod, topod, n.podB, probe, actOK, DatapathReasonPASS_HOST, nil},
			{"its answer", n.objs.FromPod, DatapathHookHOOK_POD, n.podB, probe.turned(), actOK, DatapathReasonPASS_HOST, nil},
		})
		run := func(p wire) uint32 {
			ret, err := n.objs.ToPod.Run(&ebpf.RunOptions{Data: p.bytes(), DataOut: make([]byte, 512), Context: skb{Ifindex: n.podB, Ingress: n.up}})
			if err != nil {
				t.Fatal(err)
			}
			return ret
		}
		if got := run(routed); got != actShot {
			t.Errorf("routed by the node: verdict %d", got)
		}
		n.identity(host(world.at(f)), range198)
		n.rule(isolatedIn, range198, tcp, 80, 16)
		if got := run(routed); got != actOK {
			t.Errorf("routed by the node, and allowed: verdict %d", got)
		}
		verdict, _ := n.run(n.objs.FromPod, n.podB, routed.turned().bytes())
		if verdict == actShot {
			t.Error("the answer to what the node routed was dropped")
		}
	}
}
