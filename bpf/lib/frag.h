/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Only the first fragment of a packet has ports: the others ask what it had.
 * One that overtakes its first fragment finds nothing, and goes on without
 * ports: to a pod that was addressed directly it gets through.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "pkt.h"
#include "reason.h"
#include "types.h"

struct frag_key {
	struct addr src;
	struct addr dst;
	__be32 id;
	__u8 proto;
	__u8 pad[3];
};

struct frag_value {
	__be16 sport;
	__be16 dport;
};

_Static_assert(sizeof(struct frag_key) == 40, "frag_key is a map key: no padding");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct frag_key);
	__type(value, struct frag_value);
	__uint(max_entries, 8192);
} frags SEC(".maps");

__noinline int fragment(struct pkt *pkt)
{
	struct frag_key key = {};
	struct frag_value first, *v;

	NEED(pkt);
	key.src = pkt->t.src;
	key.dst = pkt->t.dst;
	key.id = pkt->id;
	key.proto = pkt->t.proto;
	if (pkt->first) {
		first.sport = pkt->t.sport;
		first.dport = pkt->t.dport;
		bpf_map_update_elem(&frags, &key, &first, BPF_ANY);
		return 0;
	}
	v = bpf_map_lookup_elem(&frags, &key);
	if (v) {
		pkt->t.sport = v->sport;
		pkt->t.dport = v->dport;
	}
	return 0;
}
