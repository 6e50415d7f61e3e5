/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Writes the tuple that the stages agreed on into the packet. */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "pkt.h"
#include "proto.h"
#include "reason.h"

#define OFF(type, field) __builtin_offsetof(struct type, field)

/* Offset of the transport checksum; 0 when there is none that we know. */
static __always_inline __u32 csum_off(const struct pkt *pkt)
{
	switch (pkt->t.proto) {
	case PROTO_TCP:
		return pkt->l4 + OFF(tcp_hdr, csum);
	case PROTO_UDP:
		return pkt->l4 + OFF(udp_hdr, csum);
	case PROTO_ICMP6:
		return pkt->l4 + OFF(icmp_hdr, csum);
	default:
		return 0;
	}
}

/* UDP without a checksum stays without, and a sum of 0 is written as 0xffff. */
static __always_inline __u64 csum_mangled(const struct pkt *pkt)
{
	return pkt->t.proto == PROTO_UDP ? BPF_F_MARK_MANGLED_0 : 0;
}

static __always_inline int nat_addr4(struct __sk_buff *skb, const struct pkt *pkt)
{
	__be32 from[2] = { addr_to4(&pkt->t.src), addr_to4(&pkt->t.dst) };
	__be32 to[2] = { addr_to4(&pkt->n.src), addr_to4(&pkt->n.dst) };
	__s64 diff;
	__u32 off;

	if (from[0] == to[0] && from[1] == to[1])
		return 0;
	diff = bpf_csum_diff(from, sizeof(from), to, sizeof(to), 0);
	if (bpf_skb_store_bytes(skb, ETH_LEN + OFF(ip4_hdr, src), to, sizeof(to), 0))
		return -DROP_REWRITE;
	if (bpf_l3_csum_replace(skb, ETH_LEN + OFF(ip4_hdr, csum), 0, (__u64)diff, 0))
		return -DROP_REWRITE;
	off = csum_off(pkt);
	if (!off || pkt->frag)
		return 0;
	if (bpf_l4_csum_replace(skb, off, 0, (__u64)diff, BPF_F_PSEUDO_HDR | csum_mangled(pkt)))
		return -DROP_REWRITE;
	return 0;
}

static __always_inline int nat_addr6(struct __sk_buff *skb, const struct pkt *pkt)
{
	__be32 from[8], to[8];
	__s64 diff;
	__u32 off;

	if (addr_eq(&pkt->t.src, &pkt->n.src) && addr_eq(&pkt->t.dst, &pkt->n.dst))
		return 0;
	__builtin_memcpy(from, &pkt->t.src, 16);
	__builtin_memcpy(from + 4, &pkt->t.dst, 16);
	__builtin_memcpy(to, &pkt->n.src, 16);
	__builtin_memcpy(to + 4, &pkt->n.dst, 16);
	diff = bpf_csum_diff(from, sizeof(from), to, sizeof(to), 0);
	if (bpf_skb_store_bytes(skb, ETH_LEN + OFF(ip6_hdr, src), to, sizeof(to), 0))
		return -DROP_REWRITE;
	off = csum_off(pkt);
	if (!off || pkt->frag)
		return 0;
	if (bpf_l4_csum_replace(skb, off, 0, (__u64)diff, BPF_F_PSEUDO_HDR | csum_mangled(pkt)))
		return -DROP_REWRITE;
	return 0;
}

/* Source and destination port are neighbours in TCP, UDP and SCTP alike. */
static __always_inline int nat_ports(struct __sk_buff *skb, const struct pkt *pkt)
{
	__be16 from[2] = { pkt->t.sport, pkt->t.dport };
	__be16 to[2] = { pkt->n.sport, pkt->n.dport };
	__u32 old, new, off;

	if (from[0] == to[0] && from[1] == to[1])
		return 0;
	__builtin_memcpy(&old, from, 4);
	__builtin_memcpy(&new, to, 4);
	off = csum_off(pkt);
	if (off && bpf_l4_csum_replace(skb, off, old, new, 4 | csum_mangled(pkt)))
		return -DROP_REWRITE;
	if (bpf_skb_store_bytes(skb, pkt->l4, to, sizeof(to), 0))
		return -DROP_REWRITE;
	return 0;
}

/* The identifier of echo is the port of the side that asks. */
static __always_inline int nat_echo(struct __sk_buff *skb, const struct pkt *pkt)
{
	__be16 from = pkt->t.sport | pkt->t.dport, to = pkt->n.sport | pkt->n.dport;
	__u32 csum = pkt->l4 + OFF(icmp_hdr, csum);

	if (from == to)
		return 0;
	if (bpf_l4_csum_replace(skb, csum, from, to, 2))
		return -DROP_REWRITE;
	if (bpf_skb_store_bytes(skb, pkt->l4 + OFF(icmp_hdr, id), &to, sizeof(to), 0))
		return -DROP_REWRITE;
	return 0;
}

__noinline int nat(struct __sk_buff *skb, const struct pkt *pkt)
{
	int ret;

	NEED(pkt);
	ret = pkt->v4 ? nat_addr4(skb, pkt) : nat_addr6(skb, pkt);
	if (ret || pkt->frag)
		return ret;
	switch (pkt->t.proto) {
	case PROTO_TCP:
	case PROTO_UDP:
		return nat_ports(skb, pkt);
	case PROTO_ICMP:
	case PROTO_ICMP6:
		return nat_echo(skb, pkt);
	default:
		/* SCTP covers its ports with a CRC that cannot be mended here. */
		return 0;
	}
}

/* One router more has seen it. pkt->ttl is above 1. */
static __always_inline int ttl_less(struct __sk_buff *skb, const struct pkt *pkt)
{
	__u8 ttl = pkt->ttl - 1;

	if (!pkt->v4)
		return bpf_skb_store_bytes(skb, ETH_LEN + OFF(ip6_hdr, hops), &ttl, 1, 0)
			       ? -DROP_REWRITE
			       : 0;
	if (bpf_l3_csum_replace(skb, ETH_LEN + OFF(ip4_hdr, csum), bpf_htons(pkt->ttl << 8),
				bpf_htons(ttl << 8), 2))
		return -DROP_REWRITE;
	if (bpf_skb_store_bytes(skb, ETH_LEN + OFF(ip4_hdr, ttl), &ttl, 1, 0))
		return -DROP_REWRITE;
	return 0;
}

/* The link addresses of a frame. */
static __always_inline int mac_write(struct __sk_buff *skb, const __u8 mac[12])
{
	return bpf_skb_store_bytes(skb, 0, mac, 12, 0) ? -DROP_REWRITE : 0;
}
