/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * What earlier programs recorded in another layout. While the agent replaces
 * them, a flow that is not in our table may be in theirs: its record is taken
 * over when it is first asked for, so no flow is ever unknown. The agent takes
 * over the rest, and then loads the programs again without this.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "config.h"
#include <lib/flow.h>
#include "types.h"

#define OLD_KEY_MAX   64
#define OLD_VALUE_MAX 192
#define OLD_NONE      255 /* this byte is nowhere in the other layout */

struct old_key {
	__u8 b[OLD_KEY_MAX];
};

struct old_value {
	__u8 b[OLD_VALUE_MAX];
};

/* Byte i of an old key is byte cfg_old_key[i] of ours. */
volatile const __u8 cfg_old_key[OLD_KEY_MAX] = {};
/* Byte i of our value is byte cfg_old_value[i] of an old one. */
volatile const __u8 cfg_old_value[sizeof(struct ct_value)] = {};

/* A stand-in: the agent puts the table of the earlier programs in its place. */
struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__type(key, struct old_key);
	__type(value, struct old_value);
	__uint(max_entries, 1);
} ct_before SEC(".maps");

struct recall_buf {
	struct old_key old;
	struct tuple key;
	struct ct_value value;
};

/* Not on the stack: this is called from the end of the longest chain of calls. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct recall_buf);
	__uint(max_entries, 1);
} recall_bufs SEC(".maps");

static __always_inline void recall_key(struct old_key *to, const struct tuple *from)
{
	const __u8 *b = (const __u8 *)from;
	__u32 i, at;

	for (i = 0; i < OLD_KEY_MAX; i++) {
		at = cfg_old_key[i];
		to->b[i] = at < sizeof(*from) ? b[at] : 0;
	}
}

static __always_inline void recall_value(struct ct_value *to, const struct old_value *from)
{
	__u8 *b = (__u8 *)to;
	__u32 i, at;

	for (i = 0; i < sizeof(*to); i++) {
		at = cfg_old_value[i];
		b[i] = at < OLD_NONE ? from->b[at] : 0;
	}
}

/* Whether the flow was recorded before; it is in our table then. */
__noinline int recall(const struct tuple *key)
{
	struct recall_buf *buf;
	struct old_value *old;
	__u32 zero = 0;

	if (!key)
		return 0;
	buf = bpf_map_lookup_elem(&recall_bufs, &zero);
	if (!buf)
		return 0;
	buf->key = *key;
	recall_key(&buf->old, key);
	old = bpf_map_lookup_elem(&ct_before, &buf->old);
	if (!old)
		return 0;
	recall_value(&buf->value, old);
	bpf_map_update_elem(&ct, &buf->key, &buf->value, BPF_NOEXIST);
	return 1;
}

static __always_inline int ct_recall(const struct tuple *key)
{
	return cfg_recall ? recall(key) : 0;
}
