/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Answers a packet with "port unreachable" or "too big", in the packet itself:
 * what it was becomes the quotation behind a new IP and ICMP header, and it goes
 * back to where it came from. A send() to a service without endpoints fails at
 * once with ECONNREFUSED. TCP hears a RST instead (reset.h).
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "csum.h"
#include "nat.h"
#include "pkt.h"
#include "proto.h"
#include "reason.h"
#include "verifier.h"

#define REJECT_TTL    64
#define REJECT_QUOTE4 (IP4_LEN + TCP_LEN)
#define REJECT_QUOTE6 (IP6_LEN + TCP_LEN)

struct reject4 {
	struct ip4_hdr ip;
	struct icmp_hdr icmp;
};

struct reject6 {
	struct ip6_hdr ip;
	struct icmp_hdr icmp;
};

/* How much is quoted: up to the whole TCP header, in words. */
static __always_inline __u32 reject_quote(const struct __sk_buff *skb, __u32 most)
{
	__u32 len = skb->len - ETH_LEN;

	return opaque((len > most ? most : len) & ~3U);
}

/* Room for the new headers, and no more quotation than is wanted. */
static __always_inline int reject_room(struct __sk_buff *skb, __u32 room, __u32 quote)
{
	if (bpf_skb_change_tail(skb, ETH_LEN + quote, 0))
		return -DROP_NO_REJECT;
	return bpf_skb_adjust_room(skb, (__s32)room, BPF_ADJ_ROOM_MAC, 0) ? -DROP_NO_REJECT : 0;
}

static __always_inline int reject_ip4(struct __sk_buff *skb, const struct pkt *pkt)
{
	struct reject4 h = {};
	__u8 quote[REJECT_QUOTE4] = {};
	__u32 len = reject_quote(skb, REJECT_QUOTE4);
	__s64 sum;

	if (pkt->l4 != ETH_LEN + IP4_LEN || len < IP4_LEN + UDP_LEN)
		return -DROP_NO_REJECT;
	len = opaque(len);
	if (len > REJECT_QUOTE4)
		return -DROP_NO_REJECT;
	if (reject_room(skb, sizeof(h), len))
		return -DROP_NO_REJECT;
	if (bpf_skb_load_bytes(skb, ETH_LEN + sizeof(h), quote, len))
		return -DROP_NO_REJECT;
	h.ip.ver_ihl = 0x45;
	h.ip.len = bpf_htons((__u16)(sizeof(h) + len));
	h.ip.ttl = REJECT_TTL;
	h.ip.proto = PROTO_ICMP;
	h.ip.src = addr_to4(&pkt->t.dst);
	h.ip.dst = addr_to4(&pkt->t.src);
	h.icmp.type = ICMP_UNREACH;
	h.icmp.code = pkt->mtu ? ICMP_FRAG_NEEDED : ICMP_PORT_UNREACH;
	h.icmp.seq = bpf_htons(pkt->mtu);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&h.icmp, sizeof(h.icmp), 0);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)quote, sizeof(quote), (__u32)sum);
	h.icmp.csum = csum_fold((__u64)sum);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&h.ip, sizeof(h.ip), 0);
	h.ip.csum = csum_fold((__u64)sum);
	return bpf_skb_store_bytes(skb, ETH_LEN, &h, sizeof(h), 0) ? -DROP_NO_REJECT : 0;
}

static __always_inline int reject_ip6(struct __sk_buff *skb, const struct pkt *pkt)
{
	struct reject6 h = {};
	__u8 quote[REJECT_QUOTE6] = {};
	__u32 len = reject_quote(skb, REJECT_QUOTE6);
	__be32 pseudo[2];
	__s64 sum;

	if (len < IP6_LEN + UDP_LEN)
		return -DROP_NO_REJECT;
	len = opaque(len);
	if (len > REJECT_QUOTE6)
		return -DROP_NO_REJECT;
	if (reject_room(skb, sizeof(h), len))
		return -DROP_NO_REJECT;
	if (bpf_skb_load_bytes(skb, ETH_LEN + sizeof(h), quote, len))
		return -DROP_NO_REJECT;
	h.ip.flow = bpf_htonl(6U << 28);
	h.ip.len = bpf_htons((__u16)(sizeof(h.icmp) + len));
	h.ip.next = PROTO_ICMP6;
	h.ip.hops = REJECT_TTL;
	__builtin_memcpy(h.ip.src, &pkt->t.dst, 16);
	__builtin_memcpy(h.ip.dst, &pkt->t.src, 16);
	h.icmp.type = pkt->mtu ? ICMP6_TOO_BIG : ICMP6_UNREACH;
	h.icmp.code = pkt->mtu ? 0 : ICMP6_PORT_UNREACH;
	h.icmp.seq = bpf_htons(pkt->mtu);
	pseudo[0] = bpf_htonl(sizeof(h.icmp) + len);
	pseudo[1] = bpf_htonl(PROTO_ICMP6);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)h.ip.src, 32, 0);
	sum = bpf_csum_diff(NULL, 0, pseudo, sizeof(pseudo), (__u32)sum);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&h.icmp, sizeof(h.icmp), (__u32)sum);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)quote, sizeof(quote), (__u32)sum);
	h.icmp.csum = csum_fold((__u64)sum);
	return bpf_skb_store_bytes(skb, ETH_LEN, &h, sizeof(h), 0) ? -DROP_NO_REJECT : 0;
}

/* The frame goes back to where it came from. */
static __always_inline int mac_turn(struct __sk_buff *skb)
{
	__u8 mac[18];

	/* Twice the first half: what was the source is then followed by what was the target. */
	if (bpf_skb_load_bytes(skb, 0, mac, 12) || bpf_skb_load_bytes(skb, 0, mac + 12, 6))
		return -DROP_NO_REJECT;
	return mac_write(skb, mac + 6);
}

/* Turns the frame round; the caller sends it back. */
__noinline int reject(struct __sk_buff *skb, const struct pkt *pkt)
{
	int ret;

	NEED(pkt);
	ret = pkt->v4 ? reject_ip4(skb, pkt) : reject_ip6(skb, pkt);
	return ret ? ret : mac_turn(skb);
}
