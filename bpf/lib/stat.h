/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * What each service carried. The map is small next to that of services: it
 * holds those with traffic, up to its size; the others share the entry of
 * STAT_OTHERS. So the number of metrics is bounded.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "config.h"

#define STAT_OTHERS 0

struct svc_stat {
	__u64 connections; /* new flows that got a backend */
	__u64 refused;	   /* new flows that got none: no endpoints, or not admitted */
	__u64 bytes_in;	   /* from clients to backends */
	__u64 bytes_out;   /* and back */
};

struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, __u32); /* id of the service's port */
	__type(value, struct svc_stat);
	__uint(max_entries, 4096);
} svc_stats SEC(".maps");

/* The entry of a service; its own is made when there is room. */
static __noinline struct svc_stat *stat_new(__u32 svc)
{
	struct svc_stat zero = {};
	struct svc_stat *s;
	__u32 others = STAT_OTHERS;

	bpf_map_update_elem(&svc_stats, &svc, &zero, BPF_NOEXIST);
	s = bpf_map_lookup_elem(&svc_stats, &svc);
	return s ? s : bpf_map_lookup_elem(&svc_stats, &others);
}

static __always_inline struct svc_stat *stat_of(__u32 svc)
{
	struct svc_stat *s;

	if (!cfg_svc_stats)
		return NULL;
	s = bpf_map_lookup_elem(&svc_stats, &svc);
	return s ? s : stat_new(svc);
}

static __always_inline void stat_connection(__u32 svc)
{
	struct svc_stat *s = stat_of(svc);

	if (s)
		s->connections++;
}

static __always_inline void stat_refused(__u32 svc)
{
	struct svc_stat *s = stat_of(svc);

	if (s)
		s->refused++;
}

static __always_inline void stat_bytes(__u32 svc, __u64 in, __u64 out)
{
	struct svc_stat *s = stat_of(svc);

	if (!s)
		return;
	s->bytes_in += in;
	s->bytes_out += out;
}
