/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * The short cut: a packet of a flow between two links of this node, or from one
 * to another node, whose first packet the stages have judged, needs one look at
 * the flow's record.
 * Anything out of the ordinary (options, fragments, the SYN of a new
 * connection, an endpoint that came or went since) takes the long way, which
 * also decides whether the next packet may go short.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "config.h"
#include "conntrack.h"
#include "endpoint.h"
#include "proto.h"
#include "types.h"
#include "verifier.h"

#define EXPRESS_HOST (~0U) /* not a link: to the node itself */

/* Where ports and flags are, when the packet at ip is an ordinary one. */
static __always_inline void *express_ip(void *ip, void *end, __be16 proto, struct tuple *t)
{
	struct ip4_hdr *ip4 = ip;
	struct ip6_hdr *ip6 = ip;

	if (proto == ETHERTYPE_IP) {
		if (ip + IP4_LEN + UDP_LEN > end || ip4->ver_ihl != IP4_PLAIN ||
		    (ip4->frag & (IP4_MF | IP4_OFFSET)))
			return NULL;
		addr_from4(&t->src, ip4->src);
		addr_from4(&t->dst, ip4->dst);
		t->proto = ip4->proto;
		return ip + IP4_LEN;
	}
	if (proto != ETHERTYPE_IPV6 || ip + IP6_LEN + UDP_LEN > end)
		return NULL;
	addr_from6(&t->src, ip6->src);
	addr_from6(&t->dst, ip6->dst);
	/* Would be mistaken for IPv4: parse drops it. */
	if (addr_is4(&t->src))
		return NULL;
	t->proto = ip6->next;
	return ip + IP6_LEN;
}

/* Reads ports and flags; what opens a connection has no short cut. */
static __always_inline bool express_l4(struct tuple *t, void *l4, void *end, __u8 *flags)
{
	struct tcp_hdr *tcp = l4;

	t->sport = tcp->sport;
	t->dport = tcp->dport;
	if (t->proto == PROTO_UDP)
		return true;
	if (t->proto != PROTO_TCP || l4 + TCP_LEN > end)
		return false;
	*flags = tcp->flags;
	return (*flags & (TCP_SYN | TCP_ACK)) != TCP_SYN;
}

/*
 * What a lane begins with: the link, or the node that sent it through the
 * overlay; 0 where that has an IPv6 address, which does not fit.
 */
static __always_inline __u32 express_from(struct __sk_buff *skb, __u32 hook)
{
	struct bpf_tunnel_key key = {};

	if (hook != HOOK_TUN)
		return skb->ifindex;
	return bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0) ? 0 : key.remote_ipv4;
}

/* What carries the overlay is for inner.h, or the kernel's. */
static __always_inline bool express_outer(const struct tuple *t, __u32 hook)
{
	return hook == HOOK_NET && t->proto == PROTO_UDP && t->dport == cfg_tun_port &&
	       endpoint_host_at(&t->dst);
}

/* Where the lane of a packet leads, which begins where it came from; 0: nowhere. */
static __always_inline __u32 express_lane(const struct tuple *t, __u8 flags, __u32 from)
{
	struct tuple key;
	struct ct_value *v;
	__u32 dir, to;

	dir = ct_key(&key, t);
	v = bpf_map_lookup_elem(&ct, &key);
	if (!v || v->epoch != epoch)
		return 0;
	dir = opaque(dir ^ (v->flags & CT_SWAPPED)) & 1;
	to = v->lane[dir].to;
	if (!to || v->lane[dir].from != from)
		return 0;
	ct_mark(v, ct_flags_of(dir, flags));
	return to;
}

/*
 * The link that the packet goes to at once, or the way with LANE_WAY; 0: it has
 * to take the long way, which needs the stack that this would hold if it were
 * inlined.
 */
static __noinline __u32 express(struct __sk_buff *skb, __u32 hook)
{
	void *data = (void *)(long)skb->data, *end = (void *)(long)skb->data_end;
	struct tuple t;
	__u8 flags = 0;
	void *l4;

	if (skb->vlan_present)
		return 0;
	__builtin_memset(t.pad, 0, sizeof(t.pad));
	l4 = express_ip(data + ETH_LEN, end, (__be16)skb->protocol, &t);
	if (!l4 || !express_l4(&t, l4, end, &flags))
		return 0;
	if (express_outer(&t, hook))
		return EXPRESS_HOST;
	return express_lane(&t, flags, express_from(skb, hook));
}
