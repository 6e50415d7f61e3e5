/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Who owns an address of this node: one of its pods, or the node itself. */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "types.h"

enum ep_flags {
	EP_HOST = 1, /* an address of the node: the kernel takes it */
};

struct endpoint {
	__u32 ifindex; /* host side of the pod's link */
	__u32 flags;   /* enum ep_flags */
	__u8 mac[6];   /* inside the pod */
	__u8 hmac[6];  /* at the host side */
	__u32 rate;    /* slot in the bandwidth map, 0: unlimited */
};

_Static_assert(sizeof(struct endpoint) == 24, "endpoint: no padding");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct addr);
	__type(value, struct endpoint);
	__uint(max_entries, 4096);
} eps SEC(".maps");

/* The key is a copy: memory of a global function's argument may be one only since Linux 6.2. */
static __always_inline struct endpoint *endpoint_find(const struct addr *a)
{
	struct addr key = *a;

	return bpf_map_lookup_elem(&eps, &key);
}

static __always_inline bool endpoint_is_host(const struct endpoint *ep)
{
	return ep->flags & EP_HOST;
}

static __always_inline bool endpoint_host_at(const struct addr *a)
{
	struct endpoint *ep = endpoint_find(a);

	return ep && endpoint_is_host(ep);
}
