/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Between the programs of one layout and those of the next: links are replaced
 * one by one, and no packet may meet the old table at one link and the new one
 * at the next. So relays are put on all links, which lead to the old programs;
 * then one write leads all of them to the new ones.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "types.h"
#include "verdict.h"

/* At 0: whether the relays lead to the new programs. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} stage SEC(".maps");

/* The old program of each hook, then the new ones. */
struct {
	__uint(type, BPF_MAP_TYPE_PROG_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 2 * HOOK_MAX);
} relays SEC(".maps");

static __always_inline int relay(struct __sk_buff *skb, __u32 hook)
{
	__u32 zero = 0, *done;

	done = bpf_map_lookup_elem(&stage, &zero);
	if (done && !*done)
		bpf_tail_call(skb, &relays, hook);
	/* Here also when the hook had no program before. */
	bpf_tail_call(skb, &relays, HOOK_MAX + hook);
	return ACT_OK;
}
