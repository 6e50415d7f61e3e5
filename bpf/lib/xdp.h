/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * The same flows, earlier: what comes from outside for a backend of another node
 * only passes through, so it need not become a packet of the kernel's. The
 * stages decide about a flow's first packet, as they always do, and record it;
 * what follows is translated and sent on here, from the record. All that is not
 * just that goes on to the stages: other flows, options, fragments, ICMP, what is
 * too large, neighbours that are not known.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "config.h"
#include "conntrack.h"
#include "dsr.h"
#include "endpoint.h"
#include "event.h"
#include "mode.h"
#include "nat.h"
#include "proto.h"
#include "route.h"
#include "stat.h"
#include "verifier.h"
#include "xdp_wrap.h"
#include "xdp_write.h"

/* Reads what an ordinary packet's headers say; false: it is none. */
static __always_inline bool xdp_parse(struct xdp_md *ctx, struct xdp_pkt *p)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct eth_hdr *eth = data;
	struct ip4_hdr *ip4 = data + ETH_LEN;
	struct ip6_hdr *ip6 = data + ETH_LEN;
	struct tcp_hdr *tcp;

	if (data + ETH_LEN + IP4_LEN + TCP_LEN > end)
		return false;
	if (eth->proto == ETHERTYPE_IP) {
		if (ip4->ver_ihl != 0x45 || (ip4->frag & (IP4_MF | IP4_OFFSET)) || ip4->ttl <= 1)
			return false;
		addr_from4(&p->t.src, ip4->src);
		addr_from4(&p->t.dst, ip4->dst);
		p->t.proto = ip4->proto;
		p->len = bpf_ntohs(ip4->len);
		p->v4 = true;
		tcp = data + ETH_LEN + IP4_LEN;
	} else if (eth->proto == ETHERTYPE_IPV6) {
		if (data + ETH_LEN + IP6_LEN + TCP_LEN > end || ip6->hops <= 1)
			return false;
		addr_from6(&p->t.src, ip6->src);
		addr_from6(&p->t.dst, ip6->dst);
		if (addr_is4(&p->t.src))
			return false;
		p->t.proto = ip6->next;
		p->len = bpf_ntohs(ip6->len) + IP6_LEN;
		tcp = data + ETH_LEN + IP6_LEN;
	} else {
		return false;
	}
	p->t.sport = tcp->sport;
	p->t.dport = tcp->dport;
	if (p->t.proto == PROTO_TCP)
		p->flags = tcp->flags;
	return p->t.proto == PROTO_UDP || p->t.proto == PROTO_TCP;
}

/* Is it a packet of a flow that passes through, in the direction of its record? */
static __always_inline bool xdp_passes(const struct ct_value *v, bool reply,
				       const struct xdp_pkt *p)
{
	__u32 want = CT_XLAT | CT_OUTSIDE | CT_SERVICE;

	if ((v->flags & want) != want || (v->flags & (CT_RESET | CT_KERNEL | CT_HAIRPIN)))
		return false;
	if (!(v->flags & (CT_SNAT | CT_DSR)) || !!(v->flags & CT_SECONDARY) != reply)
		return false;
	/* What opens a connection may begin another flow. */
	return (p->flags & (TCP_SYN | TCP_ACK)) != TCP_SYN;
}

/* Notes in the record what the stages would. */
static __always_inline void xdp_note(struct ct_value *v, const struct xdp_pkt *p, bool reply)
{
	__u32 flags = ct_flags_of(reply, p->flags);

	if (v->flags & CT_DSR)
		flags |= CT_REPLY;
	if (ct_mark(v, flags))
		ct_tell_other(&v->other, flags);
	stat_bytes(v->svc, reply ? 0 : p->len + ETH_LEN, reply ? p->len + ETH_LEN : 0);
}

/* The way of the translated packet; false: the stages shall find one. */
static __always_inline bool xdp_way(struct xdp_md *ctx, struct xdp_pkt *p, const struct ct_value *v)
{
	struct route *rt = route_find(&p->n.dst);

	if (v->flags & CT_DSR) {
		if (!cfg_dsr || !rt || !rt->dsr)
			return false;
		p->far = rt->far;
		p->vni = cfg_vni ^ DSR_VNI_BIT;
		dsr_write(p->mac, &p->n.dst, p->n.dport);
		p->n = p->t;
		return xdp_wrap_way(ctx, p);
	}
	if (!rt || rt->kind != ROUTE_TUNNEL)
		return xdp_fib(ctx, p, &p->n.src, &p->n.dst, p->len);
	p->far = rt->next;
	p->vni = cfg_vni;
	__builtin_memcpy(p->mac, rt->mac, sizeof(p->mac));
	return xdp_wrap_way(ctx, p);
}

/* Out by the interface of the FIB: back by the one that it came from, or across. */
static __always_inline int xdp_send(struct xdp_md *ctx, const struct xdp_pkt *p)
{
	if (p->oif == ctx->ingress_ifindex)
		return XDP_TX;
	return (int)bpf_redirect(p->oif, 0);
}

/* What was changed cannot be left to the stages any more. */
static __always_inline int xdp_broken(__u8 why)
{
	struct counter *c = counter_of(HOOK_NET, why);

	if (c)
		c->packets++;
	return XDP_DROP;
}

static __always_inline int xdp_pass_through(struct xdp_md *ctx)
{
	struct xdp_pkt p = {};
	struct tuple key;
	struct ct_value *v;
	struct endpoint *ep;
	struct counter *c;
	bool reply;

	if (!cfg_services || !xdp_parse(ctx, &p))
		return XDP_PASS;
	reply = ct_key(&key, &p.t);
	v = bpf_map_lookup_elem(&ct, &key);
	if (!v)
		return XDP_PASS;
	reply = reply != !!(v->flags & CT_SWAPPED);
	if (!xdp_passes(v, reply, &p) || mode_get() != MODE_OURS)
		return XDP_PASS;
	if (reply)
		tuple_turn(&p.n, &v->other);
	else
		p.n = v->other;
	/* The stages know what becomes of sources that lie, and of pods of this node. */
	ep = endpoint_find(&p.t.src);
	if ((ep && !endpoint_is_host(ep)) || endpoint_find(&p.n.dst))
		return XDP_PASS;
	if (!xdp_way(ctx, &p, v))
		return XDP_PASS;
	xdp_note(v, &p, reply);
	if (!xdp_write(ctx, &p) || (p.vni && !xdp_wrap(ctx, &p)))
		return xdp_broken(DROP_REWRITE);
	c = counter_of(HOOK_NET, FWD_XDP);
	if (c) {
		c->packets++;
		c->bytes += p.len + ETH_LEN;
	}
	return xdp_send(ctx, &p);
}
