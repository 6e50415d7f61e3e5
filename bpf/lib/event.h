/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* What people want to see: counters of every reason, events of the rare ones. */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "clock.h"
#include "config.h"
#include "pkt.h"
#include "reason.h"

#define COUNTERS 512 /* HOOK_MAX * REASON_MAX */

struct counter {
	__u64 packets;
	__u64 bytes;
};

/* Index: hook * REASON_MAX + reason. */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, struct counter);
	__uint(max_entries, COUNTERS);
} counters SEC(".maps");

_Static_assert((int)HOOK_MAX *(int)REASON_MAX <= COUNTERS, "a counter for every hook and reason");

struct event {
	struct tuple t; /* as received */
	struct tuple n; /* as it goes on */
	__u64 time;	/* CLOCK_MONOTONIC, ns */
	__u32 ifindex;
	__u32 svc;
	__u32 len;
	__u8 hook;   /* enum hook */
	__u8 reason; /* enum reason */
	__u8 tcp_flags;
	__u8 pad;
};

_Static_assert(sizeof(struct event) == 104, "event: no padding");

struct {
	__uint(type, BPF_MAP_TYPE_RINGBUF);
	__uint(max_entries, 1 << 20);
} events SEC(".maps");

/* Somebody looks at new flows: their first packets are events, too. */
volatile __u32 watched = 0;

static __always_inline struct counter *counter_of(__u8 hook, __u8 reason)
{
	__u32 idx = (__u32)hook * REASON_MAX + reason;

	return bpf_map_lookup_elem(&counters, &idx);
}

static __always_inline void count(struct __sk_buff *skb, __u8 hook, __u8 reason)
{
	struct counter *c = counter_of(hook, reason);

	if (!c)
		return;
	c->packets++;
	c->bytes += skb->len;
}

__noinline int emit(struct __sk_buff *skb, const struct pkt *pkt, __u32 reason)
{
	struct event *e;

	NEED(pkt);
	e = bpf_ringbuf_reserve(&events, sizeof(*e), 0);
	if (!e)
		return 0;
	e->t = pkt->t;
	e->n = pkt->n;
	e->time = bpf_ktime_get_ns();
	e->ifindex = skb->ifindex;
	e->svc = pkt->svc;
	e->len = skb->len;
	e->hook = pkt->hook;
	e->reason = (__u8)reason;
	e->tcp_flags = pkt->tcp_flags;
	e->pad = 0;
	bpf_ringbuf_submit(e, 0);
	return 0;
}
