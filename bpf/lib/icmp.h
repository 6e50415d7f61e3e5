/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * ICMP errors belong to the flow that they quote. The tuple of such a packet is
 * that of the quoted one, turned round: it travels as a reply would. Where the
 * flow is translated, the quotation is translated back too, or the socket that
 * it is for would not know it.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "nat.h"
#include "pkt.h"
#include "proto.h"
#include "reason.h"

static __always_inline bool icmp_is_error(const struct pkt *pkt)
{
	__u8 type = pkt->icmp_type;

	if (pkt->v4)
		return type == ICMP_UNREACH || type == ICMP_TIME || type == ICMP_PARAM;
	return type >= ICMP6_UNREACH && type <= ICMP6_PARAM;
}

/* The quoted IP header; inner becomes the offset of what follows it. */
static __always_inline int icmp_quoted_ip(struct __sk_buff *skb, struct pkt *pkt, struct tuple *in)
{
	__u32 off = pkt->l4 + ICMP_LEN;
	struct ip6_hdr ip6;
	struct ip4_hdr ip4;

	pkt->inner = (__u16)off;
	if (!pkt->v4) {
		if (bpf_skb_load_bytes(skb, off, &ip6, sizeof(ip6)))
			return -DROP_TRUNCATED;
		addr_from6(&in->src, ip6.src);
		addr_from6(&in->dst, ip6.dst);
		in->proto = ip6.next;
		pkt->inner_l4 = (__u16)(off + IP6_LEN);
		return 0;
	}
	if (bpf_skb_load_bytes(skb, off, &ip4, sizeof(ip4)))
		return -DROP_TRUNCATED;
	if (ip4.ver_ihl >> 4 != 4 || (ip4.ver_ihl & 0x0f) * 4 < IP4_LEN)
		return -DROP_MALFORMED;
	addr_from4(&in->src, ip4.src);
	addr_from4(&in->dst, ip4.dst);
	in->proto = ip4.proto;
	pkt->inner_l4 = (__u16)(off + (ip4.ver_ihl & 0x0f) * 4U);
	return 0;
}

/* An error may be about an echo: its identifier is the port of who asked. */
static __always_inline int icmp_quoted_l4(struct __sk_buff *skb, struct pkt *pkt, struct tuple *in)
{
	struct icmp_hdr icmp;

	switch (in->proto) {
	case PROTO_TCP:
	case PROTO_UDP:
	case PROTO_SCTP:
		if (bpf_skb_load_bytes(skb, pkt->inner_l4, &in->sport, PORTS_LEN))
			return -DROP_TRUNCATED;
		return 0;
	case PROTO_ICMP:
	case PROTO_ICMP6:
		if (bpf_skb_load_bytes(skb, pkt->inner_l4, &icmp, sizeof(icmp)))
			return -DROP_TRUNCATED;
		if (icmp.type == (pkt->v4 ? ICMP_ECHO : ICMP6_ECHO))
			in->sport = icmp.id;
		else if (icmp.type == (pkt->v4 ? ICMP_ECHO_REPLY : ICMP6_ECHO_REPLY))
			in->dport = icmp.id;
		return 0;
	default:
		return 0;
	}
}

__noinline int icmp_related(struct __sk_buff *skb, struct pkt *pkt)
{
	struct tuple in = {};
	int ret;

	NEED(pkt);
	ret = icmp_quoted_ip(skb, pkt, &in);
	if (!ret)
		ret = icmp_quoted_l4(skb, pkt, &in);
	if (ret)
		return ret;
	pkt->osrc = pkt->t.src;
	/* What it quotes was sent by whom it is for, or it is a lie. */
	if (!addr_eq(&pkt->t.dst, &in.src))
		return -DROP_MALFORMED;
	pkt->t.src = in.dst;
	pkt->t.sport = in.dport;
	pkt->t.dport = in.sport;
	pkt->t.proto = in.proto;
	pkt->related = true;
	return 0;
}

/* Who says it: the flow's other end, if it said it itself, or a router between. */
static __always_inline const struct addr *icmp_source(const struct pkt *pkt)
{
	return addr_eq(&pkt->osrc, &pkt->t.src) ? &pkt->n.src : &pkt->osrc;
}

/* Sums: an inner IPv4 header is mended by its own, so the outer one stays right. */
static __always_inline int icmp_addr4(struct __sk_buff *skb, const struct pkt *pkt)
{
	__be32 from[2] = { addr_to4(&pkt->osrc), addr_to4(&pkt->t.dst) };
	__be32 to[2] = { addr_to4(icmp_source(pkt)), addr_to4(&pkt->n.dst) };
	__be32 qfrom[2] = { addr_to4(&pkt->t.dst), addr_to4(&pkt->t.src) };
	__be32 qto[2] = { addr_to4(&pkt->n.dst), addr_to4(&pkt->n.src) };
	__s64 diff;

	diff = bpf_csum_diff(from, sizeof(from), to, sizeof(to), 0);
	if (bpf_skb_store_bytes(skb, ETH_LEN + OFF(ip4_hdr, src), to, sizeof(to), 0) ||
	    bpf_l3_csum_replace(skb, ETH_LEN + OFF(ip4_hdr, csum), 0, (__u64)diff, 0))
		return -DROP_REWRITE;
	diff = bpf_csum_diff(qfrom, sizeof(qfrom), qto, sizeof(qto), 0);
	if (bpf_skb_store_bytes(skb, pkt->inner + OFF(ip4_hdr, src), qto, sizeof(qto), 0) ||
	    bpf_l3_csum_replace(skb, pkt->inner + OFF(ip4_hdr, csum), 0, (__u64)diff, 0))
		return -DROP_REWRITE;
	return 0;
}

/* IPv6 has no sum of its own: ICMPv6 covers both headers. */
static __always_inline int icmp_addr6(struct __sk_buff *skb, const struct pkt *pkt)
{
	__u32 csum = pkt->l4 + OFF(icmp_hdr, csum);
	struct addr from[2], to[2];
	__s64 diff;

	from[0] = pkt->osrc;
	from[1] = pkt->t.dst;
	to[0] = *icmp_source(pkt);
	to[1] = pkt->n.dst;
	diff = bpf_csum_diff((__be32 *)from, sizeof(from), (__be32 *)to, sizeof(to), 0);
	if (bpf_skb_store_bytes(skb, ETH_LEN + OFF(ip6_hdr, src), to, sizeof(to), 0) ||
	    bpf_l4_csum_replace(skb, csum, 0, (__u64)diff, BPF_F_PSEUDO_HDR))
		return -DROP_REWRITE;
	from[0] = pkt->t.dst;
	from[1] = pkt->t.src;
	to[0] = pkt->n.dst;
	to[1] = pkt->n.src;
	diff = bpf_csum_diff((__be32 *)from, sizeof(from), (__be32 *)to, sizeof(to), 0);
	if (bpf_skb_store_bytes(skb, pkt->inner + OFF(ip6_hdr, src), to, sizeof(to), 0) ||
	    bpf_l4_csum_replace(skb, csum, 0, (__u64)diff, 0))
		return -DROP_REWRITE;
	return 0;
}

/* The quoted ports. The quoted transport sum is left: nobody can check it. */
static __always_inline int icmp_ports(struct __sk_buff *skb, const struct pkt *pkt)
{
	__be16 from[2] = { pkt->t.dport, pkt->t.sport };
	__be16 to[2] = { pkt->n.dport, pkt->n.sport };
	__u32 csum = pkt->l4 + OFF(icmp_hdr, csum), at = pkt->inner_l4, old, new;

	if (pkt->t.proto == PROTO_ICMP || pkt->t.proto == PROTO_ICMP6) {
		from[0] |= from[1];
		to[0] |= to[1];
		from[1] = 0;
		to[1] = 0;
		at += OFF(icmp_hdr, id);
	} else if (pkt->t.proto != PROTO_TCP && pkt->t.proto != PROTO_UDP) {
		return 0;
	}
	__builtin_memcpy(&old, from, 4);
	__builtin_memcpy(&new, to, 4);
	if (old == new)
		return 0;
	if (bpf_l4_csum_replace(skb, csum, old, new, 4))
		return -DROP_REWRITE;
	return bpf_skb_store_bytes(skb, at, to, from[1] || to[1] ? 4 : 2, 0) ? -DROP_REWRITE : 0;
}

__noinline int icmp_nat(struct __sk_buff *skb, const struct pkt *pkt)
{
	int ret;

	NEED(pkt);
	ret = pkt->v4 ? icmp_addr4(skb, pkt) : icmp_addr6(skb, pkt);
	return ret ? ret : icmp_ports(skb, pkt);
}
