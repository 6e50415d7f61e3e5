/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Direct server return: what comes from outside for a backend of another node
 * is led there as it is, and that node answers the client by itself.
 *
 * The packet goes through the overlay, untouched, under a network identifier of
 * its own. Its inner link addresses, which nobody reads there, name the backend:
 * the one that the first node chose, so both agree whatever each would choose.
 * The second node records the flow as if the client had asked it, and nothing
 * but this first step is different from then on.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "config.h"
#include "conntrack.h"
#include "endpoint.h"
#include "pkt.h"
#include "reason.h"
#include "route.h"

#define DSR_VNI_BIT   0x800000 /* turned over in the overlay's identifier */
#define DSR_MAC_FIRST 2	       /* of both link addresses: one, and locally administered */

/* Link addresses, destination first: the backend's port and number. */
struct dsr_mac {
	__u8 dst_first;
	__u8 pad;
	__be16 port;
	__u8 id_high[2];
	__u8 src_first;
	__u8 id_low[5];
};

_Static_assert(sizeof(struct dsr_mac) == 12, "dsr_mac: two link addresses");

/*
 * Addresses of this node's endpoints and of the node by their numbers: an IPv6
 * address and a port do not fit in two link addresses.
 */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u64);
	__type(value, struct addr);
	__uint(max_entries, 4096);
} dsr_ids SEC(".maps");

/* The number of an address, 56 bits, the same at every node. */
static __always_inline __u64 dsr_id(const struct addr *a)
{
	const __be32 *w = addr_cwords(a);
	__u64 h = 0xcbf29ce484222325;
	int i;

	for (i = 0; i < 4; i++) {
		h = (h ^ w[i]) * 0x9e3779b97f4a7c15;
		h ^= h >> 32;
	}
	return h >> 8;
}

static __always_inline void dsr_write(__u8 mac[12], const struct addr *a, __be16 port)
{
	struct dsr_mac m = { .dst_first = DSR_MAC_FIRST, .src_first = DSR_MAC_FIRST, .port = port };
	__u64 id = dsr_id(a);

	__builtin_memcpy(m.id_low, &id, 5);
	m.id_high[0] = (__u8)(id >> 40);
	m.id_high[1] = (__u8)(id >> 48);
	__builtin_memcpy(mac, &m, sizeof(m));
}

static __always_inline __u64 dsr_read(const struct dsr_mac *m)
{
	__u64 id = 0;

	__builtin_memcpy(&id, m->id_low, 5);
	return id | (__u64)m->id_high[0] << 40 | (__u64)m->id_high[1] << 48;
}

/* A packet that the node at from leads here: which backend does it name? */
__noinline int dsr_enter(struct __sk_buff *skb, struct pkt *pkt, const struct addr *from)
{
	struct dsr_mac m;
	struct endpoint *ep;
	struct route *rt;
	struct addr *to;
	__u64 id;

	if (!pkt || !from)
		return -DROP_MALFORMED;
	rt = route_find(from);
	if (!rt || !rt->dsr || !addr_eq(&rt->far, from))
		return -DROP_TUNNEL;
	ep = endpoint_find(pkt->related ? &pkt->osrc : &pkt->t.src);
	if (ep && !endpoint_is_host(ep))
		return -DROP_SPOOFED;
	if (bpf_skb_load_bytes(skb, 0, &m, sizeof(m)))
		return -DROP_TRUNCATED;
	id = dsr_read(&m);
	to = bpf_map_lookup_elem(&dsr_ids, &id);
	if (!to || addr_is4(to) != pkt->v4)
		return -DROP_BACKEND;
	pkt->n.dst = *to;
	if (pkt->t.dport)
		pkt->n.dport = m.port;
	pkt->dsr = true;
	pkt->ct_flags = CT_DSR;
	/* The kernel would take it for somebody else's: it may be the node's own. */
	bpf_skb_change_type(skb, 0);
	return 0;
}

/* May a new flow from outside be answered by the backend's node itself? */
static __always_inline bool dsr_allowed(const struct pkt *pkt, const struct route *rt)
{
	struct route *from;

	if (!cfg_dsr || !(pkt->ct_flags & CT_DSR) || !rt || !rt->dsr || pkt->hook != HOOK_NET)
		return false;
	/*
	 * Pods of other nodes take answers only from where they asked; and a node
	 * takes nothing from outside that claims to come from itself.
	 */
	from = route_find(&pkt->t.src);
	return !from || (!from->dsr && from->kind != ROUTE_NATIVE && from->kind != ROUTE_TUNNEL);
}

static __always_inline int dsr_forward(struct pkt *pkt, const struct route *rt)
{
	pkt->oif = rt->dsr;
	pkt->next = rt->far;
	dsr_write(pkt->mac, &pkt->n.dst, pkt->n.dport);
	return FWD_DSR;
}
