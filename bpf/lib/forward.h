/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Stage 6: where does a packet go from here? Nothing is written to it yet. */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "conntrack.h"
#include "dsr.h"
#include "endpoint.h"
#include "pkt.h"
#include "proto.h"
#include "reason.h"
#include "route.h"
#include "send.h"
#include "snat.h"

static __always_inline bool translated(const struct pkt *pkt)
{
	return !addr_eq(&pkt->t.dst, &pkt->n.dst) || !addr_eq(&pkt->t.src, &pkt->n.src) ||
	       pkt->t.dport != pkt->n.dport || pkt->t.sport != pkt->n.sport;
}

/*
 * The interface by which the kernel would send it; 0 when it would not. Not
 * inlined: forward's own frame is on the longest chain of calls.
 */
static __noinline __u32 fib_way(struct __sk_buff *skb, const struct addr *src,
				const struct addr *dst, __u32 proto)
{
	struct bpf_fib_lookup fib = { .ifindex = skb->ifindex };
	long ret;

	fib.l4_protocol = (__u8)proto;
	if (addr_is4(dst)) {
		fib.family = FAMILY_INET;
		fib.ipv4_src = addr_to4(src);
		fib.ipv4_dst = addr_to4(dst);
	} else {
		fib.family = FAMILY_INET6;
		__builtin_memcpy(fib.ipv6_src, src, 16);
		__builtin_memcpy(fib.ipv6_dst, dst, 16);
	}
	ret = bpf_fib_lookup(skb, &fib, sizeof(fib), 0);
	if (ret == BPF_FIB_LKUP_RET_SUCCESS || ret == BPF_FIB_LKUP_RET_NO_NEIGH)
		return fib.ifindex;
	return 0;
}

static __always_inline __u32 fib_oif(struct __sk_buff *skb, const struct pkt *pkt)
{
	return fib_way(skb, &pkt->n.src, &pkt->n.dst, pkt->n.proto);
}

/* Our address on an interface, in the packet's family; NULL when there is none. */
static __always_inline struct addr *uplink_addr(struct uplink *up, const struct pkt *pkt)
{
	struct addr *a = pkt->v4 ? &up->addr4 : &up->addr6;

	return addr_zero(a) ? NULL : a;
}

/*
 * A flow whose source is an address of the node's must not meet the kernel's
 * routing again: it would take it for a martian.
 */
static __always_inline bool forward_as_node(const struct pkt *pkt)
{
	return pkt->reply ? pkt->ct_flags & CT_OUTSIDE : pkt->ct_flags & CT_SNAT;
}

/*
 * Out by the FIB. Of flows that pods began, and of replies to those that began
 * outside, the record knows the interface; what comes in by one uplink and
 * leaves for a backend elsewhere has to look.
 */
static __always_inline int forward_world_known(struct __sk_buff *skb, struct pkt *pkt)
{
	if (!forward_as_node(pkt))
		return PASS_ROUTE;
	if (!pkt->reply && (pkt->ct_flags & CT_OUTSIDE))
		pkt->oif = fib_oif(skb, pkt);
	return pkt->oif ? FWD_WORLD : PASS_ROUTE;
}

/* A new flow from a pod that leaves the cluster: does it need our address? */
static __always_inline int forward_world(struct __sk_buff *skb, struct pkt *pkt)
{
	struct uplink *up;
	struct addr *from;
	__u32 oif;

	/* About no flow that we know: nobody out there can have a use for it. */
	if (pkt->related)
		return -DROP_RELATED;
	oif = fib_oif(skb, pkt);
	up = bpf_map_lookup_elem(&uplinks, &oif);
	if (!up || !(up->flags & UPLINK_MASQ))
		return PASS_ROUTE;
	from = uplink_addr(up, pkt);
	if (!from)
		return PASS_ROUTE;
	pkt->oif = oif;
	pkt->snat = *from;
	return FWD_WORLD;
}

/*
 * A new flow from outside to a backend that is not a pod of ours: the answer
 * has to come back through us, so it leaves with our address, that of the
 * uplink it came in by. The record remembers that uplink.
 */
static __always_inline int forward_outside(struct __sk_buff *skb, struct pkt *pkt, int act)
{
	__u32 in = skb->ifindex;
	struct uplink *up = bpf_map_lookup_elem(&uplinks, &in);
	struct addr *from = up ? uplink_addr(up, pkt) : NULL;

	pkt->ct_flags &= ~(__u32)CT_DSR;
	/* A far pod asked a port of ours, through the overlay. */
	if (pkt->hook == HOOK_TUN && endpoint_host_at(&pkt->t.dst))
		from = &pkt->t.dst;
	if (!from)
		return PASS_UNKNOWN;
	pkt->snat = *from;
	if (act != PASS_ROUTE)
		return act;
	pkt->n.src = *from;
	pkt->oif = fib_oif(skb, pkt);
	return pkt->oif ? FWD_WORLD : PASS_ROUTE;
}

static __always_inline int forward_route(struct pkt *pkt, const struct route *rt)
{
	if (rt->kind != ROUTE_NATIVE && rt->kind != ROUTE_TUNNEL)
		return PASS_ROUTE;
	pkt->oif = rt->oif;
	pkt->next = rt->next;
	pkt->way = rt->way;
	if (rt->kind == ROUTE_NATIVE)
		return FWD_NATIVE;
	__builtin_memcpy(pkt->mac, rt->mac, sizeof(pkt->mac));
	return FWD_TUNNEL;
}

/* A flow that another node answers goes there as long as that takes it. */
static __always_inline bool forward_led(const struct pkt *pkt)
{
	return cfg_dsr && (pkt->ct_flags & CT_DSR) && !pkt->reply;
}

static __always_inline int forward_to(struct __sk_buff *skb, struct pkt *pkt)
{
	struct endpoint *ep;
	struct route *rt;
	int act = PASS_ROUTE;

	ep = endpoint_find(&pkt->n.dst);
	if (ep) {
		pkt->host = endpoint_is_host(ep);
		if (pkt->host)
			return PASS_HOST;
		if (pkt->kernel)
			return PASS_ROUTE;
		pkt->dst_if = ep->ifindex;
		pkt->dst_rate = ep->rate;
		return FWD_LOCAL;
	}
	/* We are nobody's router for what comes from outside. */
	if (pkt->hook != HOOK_POD && !pkt->known && !pkt->svc)
		return PASS_UNKNOWN;
	if (pkt->kernel)
		return PASS_ROUTE;
	rt = route_find(&pkt->n.dst);
	if (pkt->known ? forward_led(pkt) : dsr_allowed(pkt, rt))
		return rt && rt->dsr ? dsr_forward(pkt, rt) : -DROP_BACKEND;
	if (rt)
		act = forward_route(pkt, rt);
	if (pkt->hook != HOOK_POD && !pkt->known)
		return forward_outside(skb, pkt, act);
	if (act != PASS_ROUTE)
		return act;
	if (pkt->known)
		return forward_world_known(skb, pkt);
	return rt ? PASS_ROUTE : forward_world(skb, pkt);
}

/*
 * Who is told that a packet is too big: we say it about what must not be
 * fragmented. The kernel would not know where a translated packet is going to.
 */
static __always_inline int forward_narrow(struct pkt *pkt, __u32 mtu)
{
	bool plain = !pkt->v4 || pkt->l4 == ETH_LEN + IP4_LEN;

	/* The overlay's device has the outer packet cut. */
	if (pkt->act == FWD_DSR && !pkt->df)
		return 0;
	if (!pkt->df || !plain || pkt->related || pkt->frag)
		return -PASS_TOO_BIG;
	pkt->mtu = (__u16)mtu;
	return -FWD_TOO_BIG;
}

/*
 * Of what we take past the kernel it still says that its time is up. What is to
 * be cut into segments has to fit when it is cut.
 */
static __always_inline int forward_fits(struct __sk_buff *skb, struct pkt *pkt)
{
	__u32 mtu = 0;

	if (pkt->act < FWD_NATIVE || pkt->act > FWD_DSR)
		return 0;
	if (pkt->ttl <= 1)
		return -PASS_TTL;
	if (skb->len <= ETH_LEN + MTU_MIN)
		return 0;
	return bpf_check_mtu(skb, pkt->oif, &mtu, 0, BPF_MTU_CHK_SEGS) > 0
		       ? forward_narrow(pkt, mtu)
		       : 0;
}

/* May the rest of the flow take the short cut? */
static __always_inline bool forward_short(const struct pkt *pkt)
{
	if (!pkt->from || translated(pkt) || pkt->src_rate || pkt->dst_rate)
		return false;
	return pkt->act == FWD_LOCAL || (pkt->way && pkt->hook == HOOK_POD);
}

/*
 * A client may use one port for a service and for its backend, or for two
 * services of one backend: the flow that comes second gets another port.
 */
static __always_inline int forward_translated(struct pkt *pkt)
{
	if (!ct_create_secondary(pkt))
		return 0;
	pkt->snat = pkt->n.src;
	return snat(pkt);
}

/* Replies of what the kernel carries come without a record of ours, and would be judged. */
static __always_inline bool forward_guarded(const struct pkt *pkt)
{
	return pkt->guarded && pkt->act == PASS_ROUTE;
}

/*
 * A pod begins a flow that the kernel carries. Wherever kube-proxy sends it, the
 * pod's link shall know the answers.
 */
static __always_inline int forward_waits(struct pkt *pkt)
{
	if (pkt->hook != HOOK_POD)
		return 0;
	pkt->ct_flags |= CT_KERNEL | CT_WAITS;
	return ct_create_plain(pkt, 0);
}

/* The records of a new flow. What the kernel carries as it is needs none, but for policies. */
static __always_inline int forward_record(struct pkt *pkt)
{
	int ret = 0;

	if (pkt->related || pkt->frag)
		return 0;
	if (pkt->known && !pkt->lanes && forward_short(pkt))
		return ct_settle(pkt);
	if (pkt->known)
		return 0;
	if (pkt->kernel)
		return forward_waits(pkt);
	if (pkt->act == FWD_DSR)
		return ct_create_primary(pkt);
	if (!addr_zero(&pkt->snat))
		ret = snat(pkt);
	else if (translated(pkt))
		ret = forward_translated(pkt);
	else
		return pkt->act < PASS_NOT_IP || forward_guarded(pkt)
			       ? ct_create_plain(pkt, forward_short(pkt))
			       : 0;
	return ret ? ret : ct_create_primary(pkt);
}

__noinline int forward(struct __sk_buff *skb, struct pkt *pkt)
{
	int ret;

	NEED(pkt);
	pkt->way = 0;
	ret = forward_to(skb, pkt);
	if (ret < 0)
		return ret;
	pkt->act = (__u8)ret;
	pkt->back = pkt->oif;
	ret = forward_fits(skb, pkt);
	if (ret)
		return ret;
	if (pkt->hook != HOOK_POD && !pkt->known) {
		pkt->ct_flags |= CT_OUTSIDE;
		pkt->back = pkt->dsr ? fib_way(skb, &pkt->t.dst, &pkt->t.src, pkt->t.proto)
				     : skb->ifindex;
	}
	/* Its own backend: it hears from the service's address, so that it answers there. */
	if (!pkt->known && pkt->dst_if && pkt->src_if == pkt->dst_if) {
		pkt->ct_flags |= CT_HAIRPIN;
		pkt->n.src = pkt->t.dst;
	}
	return forward_record(pkt);
}
