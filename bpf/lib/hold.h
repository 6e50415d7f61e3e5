/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * A full table takes back what was looked up least lately. Connections that rest
 * would go before a flood of packets that nobody answers, so the agent has them
 * looked up while the table fills.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "conntrack.h"
#include "proto.h"

/* A UDP flow that lasts longer than this is a stream: 2 s, in ticks. */
#define HOLD_STREAM 15

static __always_inline bool hold_ongoing(const struct tuple *key, const struct ct_value *v)
{
	if (!(v->flags & CT_REPLY))
		return false;
	if (key->proto == PROTO_TCP)
		return !(v->flags & CT_CLOSING);
	return key->proto == PROTO_UDP && v->seen - v->since > HOLD_STREAM;
}

static long hold_one(void *map, const struct tuple *key, struct ct_value *v, void *ctx)
{
	(void)map;
	(void)ctx;
	if (hold_ongoing(key, v))
		bpf_map_lookup_elem(&ct, key);
	return 0;
}
