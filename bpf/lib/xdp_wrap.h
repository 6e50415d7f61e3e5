/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* How a packet of XDP leaves: by the FIB, and inside of the overlay's headers. */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "config.h"
#include "forward.h"
#include "proto.h"
#include "route.h"
#include "service.h"
#include "xdp_write.h"

/* Our end of the overlay; zero: there is none. The agent sets it. */
struct addr underlay = {};

struct wrap4 {
	struct eth_hdr eth;
	struct ip4_hdr ip;
	struct udp_hdr udp;
	struct vxlan_hdr vxlan;
} __attribute__((packed));

struct wrap6 {
	struct eth_hdr eth;
	struct ip6_hdr ip;
	struct udp_hdr udp;
	struct vxlan_hdr vxlan;
} __attribute__((packed));

_Static_assert(sizeof(struct wrap4) == 50 && sizeof(struct wrap6) == 70, "no padding");

/*
 * The interface, link addresses, and whether it fits. What leaves by another
 * interface than it came by needs that to take frames of XDP: those of ours do.
 */
static __always_inline bool xdp_fib(struct xdp_md *ctx, struct xdp_pkt *p, const struct addr *src,
				    const struct addr *dst, __u16 len)
{
	struct bpf_fib_lookup fib = { .ifindex = ctx->ingress_ifindex, .tot_len = len };
	struct uplink *up;

	fib.l4_protocol = p->t.proto;
	if (addr_is4(dst)) {
		fib.family = FAMILY_INET;
		fib.ipv4_src = addr_to4(src);
		fib.ipv4_dst = addr_to4(dst);
	} else {
		fib.family = FAMILY_INET6;
		__builtin_memcpy(fib.ipv6_src, src, 16);
		__builtin_memcpy(fib.ipv6_dst, dst, 16);
	}
	if (bpf_fib_lookup(ctx, &fib, sizeof(fib), 0) != BPF_FIB_LKUP_RET_SUCCESS)
		return false;
	p->oif = fib.ifindex;
	__builtin_memcpy(p->dmac, fib.dmac, 6);
	__builtin_memcpy(p->smac, fib.smac, 6);
	up = bpf_map_lookup_elem(&uplinks, &p->oif);
	return up && up->flags & UPLINK_XDP;
}

/* The way to the overlay's other end, with room for its headers. */
static __always_inline bool xdp_wrap_way(struct xdp_md *ctx, struct xdp_pkt *p)
{
	struct addr from = underlay;
	__u16 more = addr_is4(&p->far) ? sizeof(struct wrap4) : sizeof(struct wrap6);

	if (addr_zero(&from) || addr_is4(&from) != addr_is4(&p->far))
		return false;
	return xdp_fib(ctx, p, &from, &p->far, (__u16)(p->len + more));
}

/* Of the flow, so that each takes one way through the fabric. */
static __always_inline __be16 xdp_wrap_port(const struct xdp_pkt *p)
{
	return bpf_htons((__u16)(0xc000 | (tuple_hash(&p->t) & 0x3fff)));
}

static __always_inline bool xdp_wrap4(struct xdp_md *ctx, const struct xdp_pkt *p)
{
	struct ip4_hdr ip = { .ttl = 64, .proto = PROTO_UDP };
	struct wrap4 *w = (void *)(long)ctx->data;
	__u16 len = (__u16)(p->len + sizeof(*w)); /* with the inner link header, without the outer */

	if ((void *)(w + 1) > (void *)(long)ctx->data_end)
		return false;
	__builtin_memset(w, 0, sizeof(*w));
	__builtin_memcpy(w->eth.dst, p->dmac, 6);
	__builtin_memcpy(w->eth.src, p->smac, 6);
	w->eth.proto = ETHERTYPE_IP;
	ip.ver_ihl = 0x45;
	ip.len = bpf_htons(len);
	ip.src = addr_to4(&underlay);
	ip.dst = addr_to4(&p->far);
	ip.csum = (__sum16)~xdp_fold((__u64)bpf_csum_diff(NULL, 0, (__be32 *)&ip, IP4_LEN, 0));
	__builtin_memcpy(&w->ip, &ip, sizeof(ip));
	w->udp.sport = xdp_wrap_port(p);
	w->udp.dport = cfg_tun_port;
	w->udp.len = bpf_htons((__u16)(len - IP4_LEN));
	w->vxlan.flags = VXLAN_HAS_VNI;
	w->vxlan.vni = bpf_htonl(p->vni << 8);
	return true;
}

static __always_inline bool xdp_wrap6(struct xdp_md *ctx, const struct xdp_pkt *p)
{
	struct wrap6 *w = (void *)(long)ctx->data;
	__u16 len = (__u16)(p->len + sizeof(*w) - IP6_LEN);

	if ((void *)(w + 1) > (void *)(long)ctx->data_end)
		return false;
	__builtin_memset(w, 0, sizeof(*w));
	__builtin_memcpy(w->eth.dst, p->dmac, 6);
	__builtin_memcpy(w->eth.src, p->smac, 6);
	w->eth.proto = ETHERTYPE_IPV6;
	w->ip.flow = bpf_htonl(6U << 28);
	w->ip.len = bpf_htons(len);
	w->ip.next = PROTO_UDP;
	w->ip.hops = 64;
	__builtin_memcpy(w->ip.src, &underlay, 16);
	__builtin_memcpy(w->ip.dst, &p->far, 16);
	w->udp.sport = xdp_wrap_port(p);
	w->udp.dport = cfg_tun_port;
	w->udp.len = bpf_htons(len);
	w->vxlan.flags = VXLAN_HAS_VNI;
	w->vxlan.vni = bpf_htonl(p->vni << 8);
	return true;
}

/* Puts the overlay's headers in front; without sums, as the overlay's device does. */
static __always_inline bool xdp_wrap(struct xdp_md *ctx, const struct xdp_pkt *p)
{
	bool v4 = addr_is4(&p->far);

	if (bpf_xdp_adjust_head(ctx, v4 ? -(int)sizeof(struct wrap4) : -(int)sizeof(struct wrap6)))
		return false;
	return v4 ? xdp_wrap4(ctx, p) : xdp_wrap6(ctx, p);
}
