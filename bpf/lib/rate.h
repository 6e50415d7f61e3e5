/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Stage 7: pods with a limit get no more than it, in each direction. A bucket
 * of tokens, one a byte: what does not fit is dropped, and TCP slows down. Flows
 * of such pods never take the short cut.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "endpoint.h"
#include "pkt.h"
#include "reason.h"

#define NSEC_PER_SEC 1000000000ULL

struct bucket {
	struct bpf_spin_lock lock;
	__u32 pad;
	__u64 bytes; /* a second; 0: unlimited */
	__u64 burst; /* how much the bucket holds */
	__u64 tokens;
	__u64 last; /* CLOCK_MONOTONIC, ns */
};

_Static_assert(sizeof(struct bucket) == 40, "bucket: no padding");

/* Two buckets an endpoint: what it sends at its slot, what it gets after that. */
struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct bucket);
	__uint(max_entries, 8192);
} rates SEC(".maps");

static __always_inline int rate_take(__u32 slot, __u32 len)
{
	struct bucket *r = bpf_map_lookup_elem(&rates, &slot);
	__u64 now, past;
	int ret = 0;

	if (!r || !r->bytes)
		return 0;
	now = bpf_ktime_get_ns();
	bpf_spin_lock(&r->lock);
	past = now - r->last;
	if (past > NSEC_PER_SEC)
		past = NSEC_PER_SEC;
	r->tokens += past * r->bytes / NSEC_PER_SEC;
	if (r->tokens > r->burst)
		r->tokens = r->burst;
	r->last = now;
	if (r->tokens >= len)
		r->tokens -= len;
	else
		ret = -DROP_RATE;
	bpf_spin_unlock(&r->lock);
	return ret;
}

__noinline int rate(struct __sk_buff *skb, const struct pkt *pkt)
{
	int ret = 0;

	NEED(pkt);
	if (pkt->src_rate)
		ret = rate_take(pkt->src_rate, skb->len);
	if (!ret && pkt->dst_rate)
		ret = rate_take(pkt->dst_rate + 1, skb->len);
	return ret;
}

/* What this node's kernel sends to a pod has not been looked up yet. */
static __always_inline int rate_to_pod(struct __sk_buff *skb, struct pkt *pkt)
{
	struct endpoint *ep = endpoint_find(&pkt->t.dst);

	if (!ep || !ep->rate)
		return 0;
	pkt->dst_rate = ep->rate;
	return rate(skb, pkt);
}
