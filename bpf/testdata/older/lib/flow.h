/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Stands in for lib/flow.h in an object for the tests of upgrades: the same
 * fields in another order, of other sizes, and one that is gone by now.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include <lib/types.h>

/* The way of one direction between two links of this node; to is 0 for none. */
struct ct_lane {
	__u32 from;
	__u32 to;
};

struct ct_value {
	__u64 packets;
	struct ct_lane lane[2];
	__u32 flags;
	__u32 oif;
	__u64 seen;
	__u64 since;
	__u16 svc;
	__u16 pad[3];
	__u32 epoch;
	struct tuple other;
	__u32 pad2;
};

_Static_assert(sizeof(struct ct_value) == 104, "ct_value: no padding");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct tuple);
	__type(value, struct ct_value);
	__uint(max_entries, 131072);
} ct SEC(".maps");
