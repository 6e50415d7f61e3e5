/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * The short cut to another node. What a route says (route.h) is found by its
 * number, which the flow's record holds: no search by address, and nothing that
 * the stages would have to find out again. Numbers are reused only when the
 * epoch has changed since.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "config.h"
#include "outer.h"
#include "proto.h"
#include "route.h"
#include "send.h"

struct way {
	__u32 kind;	  /* enum route_kind: native or tunnel */
	__u32 oif;	  /* the link; tunnel: the overlay's device */
	struct addr next; /* the next hop; tunnel: the other node */
	__u8 mac[12];	  /* tunnel: link addresses, destination first */
	__u32 under;	  /* tunnel: the uplink below; 0: the device knows */
	__be32 hop;	  /* and the next hop there */
	__be32 src;	  /* and our address */
};

_Static_assert(sizeof(struct way) == 48, "way: no padding");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct way);
	__uint(max_entries, 4096);
} ways SEC(".maps");

/* One hop less, in one write; false: it has none left, and the kernel says so. */
static __always_inline bool way_hop(struct __sk_buff *skb)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct ip4_hdr *ip4 = data + ETH_LEN;
	struct ip6_hdr *ip6 = data + ETH_LEN;
	struct {
		__u8 ttl;
		__u8 proto;
		__sum16 csum;
	} less;
	__u32 sum;
	__u8 hops;

	if (skb->protocol == ETHERTYPE_IP) {
		if (data + ETH_LEN + IP4_LEN > end || ip4->ttl <= 1)
			return false;
		sum = ip4->csum + (__u32)bpf_htons(0x0100);
		less.ttl = ip4->ttl - 1;
		less.proto = ip4->proto;
		less.csum = (__sum16)(sum + (sum >= 0xffff));
		return !bpf_skb_store_bytes(skb, ETH_LEN + OFF(ip4_hdr, ttl), &less, sizeof(less),
					    0);
	}
	if (data + ETH_LEN + IP6_LEN > end || ip6->hops <= 1)
		return false;
	hops = ip6->hops - 1;
	return !bpf_skb_store_bytes(skb, ETH_LEN + OFF(ip6_hdr, hops), &hops, 1, 0);
}

/* As forward_fits: what does not fit takes the long way, and is answered. */
static __always_inline bool way_fits(struct __sk_buff *skb, __u32 oif)
{
	__u32 mtu = 0;

	return skb->len <= ETH_LEN + MTU_MIN || !bpf_check_mtu(skb, oif, &mtu, 0, BPF_MTU_CHK_SEGS);
}

static __always_inline long way_tunnel(struct __sk_buff *skb, const struct way *w)
{
	if (cfg_tun_direct && w->under && !outer_put(skb, w->mac, w->src, addr_to4(&w->next)))
		return send_next4(w->under, w->hop);
	return send_tunnel(skb, w->oif, &w->next, w->mac, cfg_vni);
}

/* Sends by a way: 0 when it has to take the long way, as it is, else as send.h. */
static __noinline int way_send(struct __sk_buff *skb, __u32 idx)
{
	struct way *w = bpf_map_lookup_elem(&ways, &idx);

	if (!w || !way_fits(skb, w->oif) || !way_hop(skb))
		return 0;
	if (w->kind == ROUTE_TUNNEL) {
		count(skb, HOOK_POD, FWD_TUNNEL);
		return (int)way_tunnel(skb, w);
	}
	count(skb, HOOK_POD, FWD_NATIVE);
	return (int)send_native(w->oif, &w->next);
}
