/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Stage 5: may a new flow be? Judged are its ends as they shall be on the wire
 * to the receiver: the sender that began it, and the backend that a service
 * stands for. What is allowed has a record from then on, and its packets and
 * replies are not judged again.
 *
 * An isolated endpoint has a profile for each direction; profiles allow
 * identities, which is what an address is to all rules, at protocols and ports.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "conntrack.h"
#include "endpoint.h"
#include "mode.h"
#include "pkt.h"
#include "reason.h"
#include "route.h"

/*
 * Whether any endpoint is isolated. A map, because it is pinned: programs that
 * take the place of others know it from their first packet on.
 */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} guard SEC(".maps");

/* The rules of an endpoint; 0: it is not isolated in that direction. */
struct profile {
	__u32 ingress;
	__u32 egress;
};

_Static_assert(sizeof(struct profile) == 8, "profile: no padding");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct addr);
	__type(value, struct profile);
	__uint(max_entries, 4096);
} profiles SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct route_key);
	__type(value, __u32);
	__uint(max_entries, 65536);
} identities SEC(".maps");

/* What a profile allows: any match will do, so a prefix stands for all below it. */
struct pol_key {
	__u32 bits;
	__u32 profile;
	__u32 identity; /* 0: everybody */
	__u8 proto;
	__u8 pad;
	__be16 port;
};

_Static_assert(sizeof(struct pol_key) == 16, "pol_key is a map key: no padding");

#define POL_BITS 96 /* all that follows bits */

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct pol_key);
	__type(value, __u32);
	__uint(max_entries, 65536);
} rules SEC(".maps");

static __always_inline bool guarded(void)
{
	__u32 key = 0, *on = bpf_map_lookup_elem(&guard, &key);

	return on && *on;
}

static __always_inline struct profile *profile_find(const struct addr *a)
{
	struct addr key = *a;

	return bpf_map_lookup_elem(&profiles, &key);
}

/* What an address is to the rules. */
static __always_inline __u32 identity_of(const struct addr *a)
{
	struct route_key key = { .bits = 128, .addr = *a };
	__u32 *id = bpf_map_lookup_elem(&identities, &key);

	return id ? *id : 0;
}

static __always_inline bool policy_allows(__u32 profile, const struct addr *peer,
					  const struct pkt *pkt)
{
	struct pol_key key = {
		.bits = POL_BITS,
		.profile = profile,
		.identity = identity_of(peer),
		.proto = pkt->n.proto,
		.port = pkt->n.dport,
	};

	if (bpf_map_lookup_elem(&rules, &key))
		return true;
	if (!key.identity)
		return false;
	key.identity = 0;
	return bpf_map_lookup_elem(&rules, &key);
}

/* The address that stands for a link's pod when its packets have the node's. */
static __always_inline void link_addr(struct addr *a, __u32 ifindex, bool v4)
{
	__be32 *w = addr_words(a);

	w[0] = bpf_htonl(0x01000000); /* 100::/64 leads nowhere (RFC 6666) */
	w[1] = 0;
	w[2] = bpf_htonl(v4 ? 4 : 6);
	w[3] = bpf_htonl(ifindex);
}

/*
 * Who sent a packet that the kernel forwards: kube-proxy gives some the address
 * of the node, and then it is the pod of the link that they came in by.
 */
static __always_inline void policy_sender(struct pkt *pkt, __u32 ifindex)
{
	struct addr link;

	pkt->osrc = pkt->t.src;
	if (!endpoint_host_at(&pkt->t.src))
		return;
	link_addr(&link, ifindex, pkt->v4);
	if (profile_find(&link))
		pkt->osrc = link;
}

__noinline int policy(struct pkt *pkt)
{
	struct addr *src;
	struct profile *p;
	__u32 id;

	NEED(pkt);
	/* Where the kernel sends it is seen when it comes out of it. */
	if (pkt->known || !guarded() || (pkt->kernel && pkt->hook < HOOK_TOPOD))
		return 0;
	src = pkt->hook < HOOK_TOPOD ? &pkt->t.src : &pkt->osrc;
	if (addr_eq(src, &pkt->n.dst))
		return 0;
	p = profile_find(src);
	if (p) {
		pkt->guarded = true;
		id = p->egress;
		if (id && !policy_allows(id, &pkt->n.dst, pkt) && !endpoint_host_at(&pkt->n.dst))
			return -DROP_EGRESS;
	}
	p = profile_find(&pkt->n.dst);
	if (p) {
		pkt->guarded = true;
		id = p->ingress;
		if (id && !policy_allows(id, src, pkt))
			return -DROP_INGRESS;
	}
	return 0;
}
