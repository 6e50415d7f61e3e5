/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* What C and Go share. Go's side is generated from here. */

#include <linux/bpf.h>

/* An address: IPv6, or IPv4 in its mapped form ::ffff:a.b.c.d. */
struct addr {
	__u8 b[16];
} __attribute__((aligned(4)));

/*
 * One direction of a flow. ICMP echo has its identifier in the port of the
 * side that asks, and 0 in the other; protocols without ports have 0 in both.
 */
struct tuple {
	struct addr src;
	struct addr dst;
	__be16 sport;
	__be16 dport;
	__u8 proto;
	__u8 pad[3];
};

_Static_assert(sizeof(struct tuple) == 40, "tuple is a map key: no padding");

/* Set where a short cut leads to another node: the rest is the number of the way. */
#define LANE_WAY (1U << 31)

/* Where a packet meets the data path. */
enum hook {
	HOOK_POD,   /* from a pod */
	HOOK_NET,   /* from an uplink */
	HOOK_TUN,   /* from the overlay */
	HOOK_TOPOD, /* from this node's kernel to a pod */
	HOOK_TONET, /* from this node's kernel to an uplink */
	HOOK_MAX,
};
