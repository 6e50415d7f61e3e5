/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Who carries flows that have no record: we do, or the kernel does, because
 * kube-proxy translates there. Its flows must pass its rules and the kernel's
 * connection tracking in both directions, so then nothing is redirected past
 * them. A map, so that it outlives the daemon.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "config.h"
#include "pkt.h"
#include "proto.h"

enum mode {
	MODE_OURS,   /* nobody else translates */
	MODE_SWITCH, /* ours from now on: what began before is still the kernel's */
	MODE_KERNEL, /* kube-proxy serves */
};

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, __u32);
	__uint(max_entries, 1);
} modes SEC(".maps");

static __always_inline __u32 mode_get(void)
{
	__u32 zero = 0;
	__u32 *m = bpf_map_lookup_elem(&modes, &zero);

	return m ? *m : MODE_OURS;
}

/* The first packet of a TCP connection. */
static __always_inline bool mode_begins(const struct pkt *pkt)
{
	return pkt->t.proto == PROTO_TCP && (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/* Is a packet the kernel's? Of a flow that has a record, this says so. */
static __always_inline void mode_carry(struct pkt *pkt)
{
	__u32 m = mode_get();

	if (!pkt->known && !pkt->svc)
		pkt->kernel = m == MODE_KERNEL || (m == MODE_SWITCH && !mode_begins(pkt));
}
