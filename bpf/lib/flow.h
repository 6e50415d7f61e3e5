/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * What is recorded of a flow. Fields may come, move and grow: records of earlier
 * programs are carried over by the fields' names (recall.h). What changes its
 * meaning needs another name.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "types.h"

/*
 * The short cut of one direction: from a link of this node, or a node of the
 * overlay, to a link or, with LANE_WAY, by a way to another node (way.h). To is
 * 0 for none.
 */
struct ct_lane {
	__u32 from;
	__u32 to;
};

struct ct_value {
	struct tuple other;	/* translated flows: the other tuple, original direction */
	__u32 flags;		/* enum ct_flags */
	__u32 seen;		/* last packet, in ticks */
	__u32 since;		/* first packet, in ticks */
	__u32 oif;		/* CT_SNAT, CT_OUTSIDE: interface towards the outside */
	__u32 svc;		/* id of the service, 0: none */
	__u32 epoch;		/* when the lanes were right */
	struct ct_lane lane[2]; /* of the original direction, and of replies */
};

_Static_assert(sizeof(struct ct_value) == 80, "ct_value: no padding");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct tuple);
	__type(value, struct ct_value);
	__uint(max_entries, 131072);
} ct SEC(".maps");
