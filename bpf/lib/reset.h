/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Answers a TCP packet with a RST, in the packet itself. Unlike an ICMP error,
 * which may come too early for a connect() or be ignored by a connection, both
 * families and every state of a connection take it for what it is.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "pkt.h"
#include "proto.h"
#include "reason.h"
#include "reject.h"

#define TCP_PLAIN 0x50 /* a header without options */

/* Where the packet ends for IP: short frames are padded. */
static __always_inline __u32 reset_end(struct __sk_buff *skb, const struct pkt *pkt)
{
	__be16 len = 0;

	if (pkt->v4) {
		bpf_skb_load_bytes(skb, ETH_LEN + OFF(ip4_hdr, len), &len, sizeof(len));
		return ETH_LEN + bpf_ntohs(len);
	}
	bpf_skb_load_bytes(skb, ETH_LEN + OFF(ip6_hdr, len), &len, sizeof(len));
	return ETH_LEN + IP6_LEN + bpf_ntohs(len);
}

/* The header that ends the connection of in, RFC 9293, 3.10.7. */
static __always_inline void reset_tcp(struct tcp_hdr *out, const struct tcp_hdr *in, __u32 len)
{
	out->sport = in->dport;
	out->dport = in->sport;
	out->off = TCP_PLAIN;
	out->flags = TCP_RST;
	if (in->flags & TCP_ACK) {
		out->seq = in->ack;
		return;
	}
	if (in->flags & TCP_SYN)
		len++;
	if (in->flags & TCP_FIN)
		len++;
	out->flags |= TCP_ACK;
	out->ack = bpf_htonl(bpf_ntohl(in->seq) + len);
}

static __always_inline int reset_write4(struct __sk_buff *skb, const struct pkt *pkt,
					const struct tcp_hdr *tcp)
{
	struct ip4_hdr ip = { .ver_ihl = 0x45, .ttl = REJECT_TTL, .proto = PROTO_TCP };
	__s64 sum;

	ip.len = bpf_htons(IP4_LEN + TCP_LEN);
	ip.src = addr_to4(&pkt->t.dst);
	ip.dst = addr_to4(&pkt->t.src);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)&ip, sizeof(ip), 0);
	ip.csum = csum_fold((__u64)sum);
	if (bpf_skb_store_bytes(skb, ETH_LEN, &ip, sizeof(ip), 0))
		return -DROP_NO_REJECT;
	return bpf_skb_store_bytes(skb, ETH_LEN + IP4_LEN, tcp, sizeof(*tcp), 0) ? -DROP_NO_REJECT
										 : 0;
}

static __always_inline int reset_write6(struct __sk_buff *skb, const struct pkt *pkt,
					const struct tcp_hdr *tcp)
{
	struct ip6_hdr ip = { .next = PROTO_TCP, .hops = REJECT_TTL };

	ip.flow = bpf_htonl(6U << 28);
	ip.len = bpf_htons(TCP_LEN);
	__builtin_memcpy(ip.src, &pkt->t.dst, 16);
	__builtin_memcpy(ip.dst, &pkt->t.src, 16);
	if (bpf_skb_store_bytes(skb, ETH_LEN, &ip, sizeof(ip), 0))
		return -DROP_NO_REJECT;
	return bpf_skb_store_bytes(skb, ETH_LEN + IP6_LEN, tcp, sizeof(*tcp), 0) ? -DROP_NO_REJECT
										 : 0;
}

/* The sum over addresses, length, protocol and header. */
static __always_inline __sum16 reset_csum(const struct pkt *pkt, const struct tcp_hdr *tcp)
{
	__be32 pseudo[9] = {};
	__s64 sum;

	if (pkt->v4) {
		pseudo[0] = addr_to4(&pkt->t.src);
		pseudo[1] = addr_to4(&pkt->t.dst);
	} else {
		__builtin_memcpy(pseudo, &pkt->t.src, 16);
		__builtin_memcpy(pseudo + 4, &pkt->t.dst, 16);
	}
	pseudo[8] = bpf_htonl(PROTO_TCP + TCP_LEN);
	sum = bpf_csum_diff(NULL, 0, pseudo, sizeof(pseudo), 0);
	sum = bpf_csum_diff(NULL, 0, (__be32 *)tcp, sizeof(*tcp), (__u32)sum);
	return csum_fold((__u64)sum);
}

/* Turns the frame round; the caller sends it back. */
__noinline int reset(struct __sk_buff *skb, const struct pkt *pkt)
{
	struct tcp_hdr in, out = {};
	__u32 end, begin;
	int ret;

	NEED(pkt);
	if (bpf_skb_load_bytes(skb, pkt->l4, &in, sizeof(in)))
		return -DROP_NO_REJECT;
	if (in.flags & TCP_RST)
		return -DROP_BACKEND;
	end = reset_end(skb, pkt);
	begin = pkt->l4 + (in.off >> 4) * 4;
	reset_tcp(&out, &in, end > begin ? end - begin : 0);
	out.csum = reset_csum(pkt, &out);
	if (bpf_skb_change_tail(skb, ETH_LEN + (pkt->v4 ? IP4_LEN : IP6_LEN) + TCP_LEN, 0))
		return -DROP_NO_REJECT;
	ret = pkt->v4 ? reset_write4(skb, pkt, &out) : reset_write6(skb, pkt, &out);
	return ret ? ret : mac_turn(skb);
}
