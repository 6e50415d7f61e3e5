/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* What lies behind an address that is not of this node. */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "types.h"

enum route_kind {
	ROUTE_WORLD,  /* nothing known: outside of the cluster */
	ROUTE_LOCAL,  /* pods of this node; one that is not in eps does not exist */
	ROUTE_NATIVE, /* pods of another node, by next and oif */
	ROUTE_TUNNEL, /* pods of another node, by the overlay device oif to next */
	ROUTE_PLAIN,  /* sees the pod's own address; the FIB knows the way */
};

struct route_key {
	__u32 bits;
	struct addr addr;
};

struct route {
	__u32 kind; /* enum route_kind */
	__u32 oif;
	struct addr next; /* native: next hop; tunnel: the other node */
	__u8 mac[6];	  /* tunnel: of the other node's overlay device */
	__u8 smac[6];	  /* tunnel: of ours */
	__u32 dsr;	 /* overlay device by which its node takes flows to answer itself; 0: not */
	struct addr far; /* that node's end of the overlay */
	__u32 way;	 /* the same for the short cut: way.h; 0: none */
};

_Static_assert(sizeof(struct route_key) == 20, "route_key is a map key: no padding");
_Static_assert(sizeof(struct route) == 60, "route: no padding");

struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct route_key);
	__type(value, struct route);
	__uint(max_entries, 65536);
} routes SEC(".maps");

static __always_inline struct route *route_find(const struct addr *a)
{
	struct route_key key = { .bits = 128, .addr = *a };

	return bpf_map_lookup_elem(&routes, &key);
}

enum uplink_flags {
	UPLINK_MASQ = 0x1, /* pods leave with the uplink's address */
	UPLINK_XDP = 0x2,  /* takes frames that XDP sends */
};

/* An interface with a way out, and the addresses that flows leave it with. */
struct uplink {
	struct addr addr4; /* zero: none of this family */
	struct addr addr6;
	__u32 flags; /* enum uplink_flags */
};

_Static_assert(sizeof(struct uplink) == 36, "uplink: no padding");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, __u32); /* interface index */
	__type(value, struct uplink);
	__uint(max_entries, 64);
} uplinks SEC(".maps");
