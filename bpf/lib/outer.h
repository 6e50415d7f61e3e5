/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * The overlay's outer headers over IPv4, put on and taken off without its
 * device: that saves one pass through the kernel's UDP and routing code, and one
 * more turn of its packet queue, on each side. On the wire nothing differs, so
 * each side may leave any packet to its kernel, and does where the ends or the
 * headers are out of the ordinary.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "config.h"
#include "conntrack.h"
#include "csum.h"
#include "express.h"
#include "proto.h"

#define OUTER_TTL	 64
#define OUTER_PORT_MIN	 49152	     /* RFC 7348, 5: the source port is a hash in this range */
#define OUTER_DECAP_IPV6 (1ULL << 8) /* BPF_F_ADJ_ROOM_DECAP_L3_IPV6 of Linux 6.3 */
#define ECN_MASK	 3
#define ECN_CE		 3
#define ECN_ECT0	 2

struct outer {
	struct ip4_hdr ip;
	struct udp_hdr udp;
	struct vxlan_hdr vxlan;
	struct eth_hdr eth;
};

#define OUTER_LEN (sizeof(struct outer) - 2) /* without what the compiler adds */

_Static_assert(__builtin_offsetof(struct outer, eth) + ETH_LEN == OUTER_LEN,
	       "outer: as on the wire");

/* What the outer header says of congestion when the inner one says tos, RFC 6040. */
static __always_inline __u8 outer_ecn(struct __sk_buff *skb)
{
	__be16 first = 0;
	__u8 ecn;

	bpf_skb_load_bytes(skb, ETH_LEN, &first, sizeof(first));
	ecn = (__u8)(skb->protocol == ETHERTYPE_IP ? bpf_ntohs(first) : bpf_ntohs(first) >> 4) &
	      ECN_MASK;
	return ecn == ECN_CE ? ECN_ECT0 : ecn;
}

static __always_inline void outer_ip(struct ip4_hdr *ip, __u32 len)
{
	__s64 sum;

	ip->ver_ihl = IP4_PLAIN;
	ip->len = bpf_htons((__u16)len);
	ip->id = (__be16)bpf_get_prandom_u32();
	ip->ttl = OUTER_TTL;
	ip->proto = PROTO_UDP;
	sum = bpf_csum_diff(NULL, 0, (__be32 *)ip, sizeof(*ip), 0);
	ip->csum = csum_fold((__u64)sum);
}

/* Puts the outer headers on; not 0: nothing was changed. */
static __always_inline int outer_put(struct __sk_buff *skb, const __u8 mac[12], __be32 src,
				     __be32 dst)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_ENCAP_L3_IPV4 |
		      BPF_F_ADJ_ROOM_ENCAP_L4_UDP | BPF_F_ADJ_ROOM_ENCAP_L2_ETH |
		      BPF_F_ADJ_ROOM_ENCAP_L2(ETH_LEN);
	__u32 len = skb->len - ETH_LEN + OUTER_LEN;
	struct outer o = { .ip.src = src, .ip.dst = dst, .eth.proto = (__be16)skb->protocol };

	if (len > 0xffff)
		return -1;
	o.ip.tos = outer_ecn(skb);
	outer_ip(&o.ip, len);
	o.udp.sport = bpf_htons((__u16)(OUTER_PORT_MIN | bpf_get_hash_recalc(skb)));
	o.udp.dport = cfg_tun_port;
	o.udp.len = bpf_htons((__u16)(len - IP4_LEN));
	o.vxlan.flags = VXLAN_HAS_VNI;
	o.vxlan.vni = bpf_htonl(cfg_vni << 8);
	__builtin_memcpy(&o.eth, mac, 12);
	if (bpf_skb_adjust_room(skb, OUTER_LEN, BPF_ADJ_ROOM_MAC, flags))
		return -1;
	return (int)bpf_skb_store_bytes(skb, ETH_LEN, &o, OUTER_LEN, BPF_F_RECOMPUTE_CSUM);
}

/* The headers, when all of them and the inner ones are in linear memory. */
static __always_inline struct outer *outer_head(struct __sk_buff *skb)
{
	__u32 most = ETH_LEN + OUTER_LEN + IP6_LEN + TCP_LEN;
	__u32 want = skb->len < most ? skb->len : most;
	void *data = (void *)(long)skb->data;

	if (data + want > (void *)(long)skb->data_end && bpf_skb_pull_data(skb, want))
		return NULL;
	data = (void *)(long)skb->data;
	if (data + ETH_LEN + OUTER_LEN > (void *)(long)skb->data_end)
		return NULL;
	return data + ETH_LEN;
}

/* Does the device have to look at it? */
static __always_inline bool outer_odd(const struct outer *o)
{
	/* ECT(1) and CE are for the inner header to hear of. */
	return o->ip.tos & 1 || o->vxlan.flags != VXLAN_HAS_VNI ||
	       o->vxlan.vni != bpf_htonl(cfg_vni << 8);
}

/* Takes the outer headers off; not 0: nothing was changed. */
static __always_inline int outer_drop(struct __sk_buff *skb, __be16 inner)
{
	__u64 flags = BPF_F_ADJ_ROOM_FIXED_GSO | BPF_F_ADJ_ROOM_NO_CSUM_RESET;

	/* Linux before 6.3 cannot, and says so. */
	if (inner == ETHERTYPE_IPV6)
		flags |= OUTER_DECAP_IPV6;
	if (bpf_skb_adjust_room(skb, -(__s32)OUTER_LEN, BPF_ADJ_ROOM_MAC, flags))
		return -1;
	/* What the device found right was the outer sum. */
	bpf_csum_level(skb, BPF_CSUM_LEVEL_DEC);
	return 0;
}

/*
 * A packet of the overlay for this node, whose flow has the short cut: the link
 * that what is in it goes to, and it is taken out; 0: it is as it was.
 */
static __noinline __u32 outer_express(struct __sk_buff *skb)
{
	struct outer *o = outer_head(skb);
	void *end = (void *)(long)skb->data_end;
	struct tuple t;
	__u8 flags = 0;
	__be16 inner;
	__u32 to;
	void *l4;

	if (!o || outer_odd(o))
		return 0;
	inner = o->eth.proto;
	__builtin_memset(t.pad, 0, sizeof(t.pad));
	l4 = express_ip((void *)o + OUTER_LEN, end, inner, &t);
	if (!l4 || !express_l4(&t, l4, end, &flags))
		return 0;
	to = express_lane(&t, flags, bpf_ntohl(o->ip.src));
	if (!to || to & LANE_WAY || outer_drop(skb, inner))
		return 0;
	return to;
}
