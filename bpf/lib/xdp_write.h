/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* A packet that XDP carries: what is known of it, and what is written to it. */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "proto.h"
#include "route.h"
#include "types.h"

struct xdp_pkt {
	struct tuple t;	 /* as on the wire */
	struct tuple n;	 /* as it shall be on the wire, or in the overlay */
	struct addr far; /* the overlay's other end */
	__u32 oif;	 /* interface to leave by */
	__u32 vni;	 /* identifier of the overlay; 0: goes as it is */
	__u16 len;	 /* from the IP header on */
	__u8 dmac[6];	 /* link addresses to leave with */
	__u8 smac[6];
	__u8 mac[12]; /* and those inside of the overlay */
	__u8 flags;   /* of TCP */
	bool v4;
};

static __always_inline __sum16 xdp_fold(__u64 sum)
{
	sum = (sum & 0xffff) + ((sum >> 16) & 0xffff) + (sum >> 32);
	sum = (sum & 0xffff) + (sum >> 16);
	sum = (sum & 0xffff) + (sum >> 16);
	return (__sum16)sum;
}

/* A sum after words that it covers changed by diff. */
static __always_inline __sum16 xdp_sum(__sum16 old, __u64 diff)
{
	return (__sum16)~xdp_fold((__u64)(__u16)~old + diff);
}

/* The transport header: ports, and a sum that covers addresses too. */
static __always_inline bool xdp_write_l4(struct xdp_md *ctx, struct xdp_pkt *p, __u32 off,
					 __u64 diff)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__be16 from[2] = { p->t.sport, p->t.dport }, to[2] = { p->n.sport, p->n.dport };
	struct tcp_hdr *tcp = data + off;
	struct udp_hdr *udp = data + off;

	if ((void *)(tcp + 1) > end)
		return false;
	diff = (__u32)bpf_csum_diff((__be32 *)from, 4, (__be32 *)to, 4, (__wsum)diff);
	tcp->sport = to[0];
	tcp->dport = to[1];
	if (p->t.proto == PROTO_TCP) {
		tcp->csum = xdp_sum(tcp->csum, diff);
		return true;
	}
	/* Without a sum it stays without; one of 0 is written as its complement. */
	if (!udp->csum)
		return true;
	udp->csum = xdp_sum(udp->csum, diff);
	if (!udp->csum)
		udp->csum = 0xffff;
	return true;
}

static __always_inline bool xdp_write4(struct xdp_md *ctx, struct xdp_pkt *p)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	__be32 from[2] = { addr_to4(&p->t.src), addr_to4(&p->t.dst) };
	__be32 to[2] = { addr_to4(&p->n.src), addr_to4(&p->n.dst) };
	struct ip4_hdr *ip = data + ETH_LEN;
	__u64 diff;

	if ((void *)(ip + 1) > end)
		return false;
	diff = (__u32)bpf_csum_diff(from, 8, to, 8, 0);
	ip->src = to[0];
	ip->dst = to[1];
	/* One router more: the TTL is the high byte of its word. */
	ip->ttl--;
	ip->csum = xdp_sum(ip->csum, diff + bpf_htons(0xfeff));
	return xdp_write_l4(ctx, p, ETH_LEN + IP4_LEN, diff);
}

static __always_inline bool xdp_write6(struct xdp_md *ctx, struct xdp_pkt *p)
{
	void *data = (void *)(long)ctx->data, *end = (void *)(long)ctx->data_end;
	struct ip6_hdr *ip = data + ETH_LEN;
	__u64 diff;

	if ((void *)(ip + 1) > end)
		return false;
	diff = (__u32)bpf_csum_diff((__be32 *)&p->t.src, 32, (__be32 *)&p->n.src, 32, 0);
	__builtin_memcpy(ip->src, &p->n.src, 16);
	__builtin_memcpy(ip->dst, &p->n.dst, 16);
	ip->hops--;
	return xdp_write_l4(ctx, p, ETH_LEN + IP6_LEN, diff);
}

/* Writes addresses and ports, one hop less, and the link addresses to leave with. */
static __always_inline bool xdp_write(struct xdp_md *ctx, struct xdp_pkt *p)
{
	void *data;
	bool ok = p->v4 ? xdp_write4(ctx, p) : xdp_write6(ctx, p);

	data = (void *)(long)ctx->data;
	if (!ok || data + 12 > (void *)(long)ctx->data_end)
		return false;
	if (p->vni) {
		__builtin_memcpy(data, p->mac, 12);
		return true;
	}
	__builtin_memcpy(data, p->dmac, 6);
	__builtin_memcpy(data + 6, p->smac, 6);
	return true;
}
