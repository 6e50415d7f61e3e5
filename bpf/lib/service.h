/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Stage 4: a new flow to a service is given a backend. */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "clock.h"
#include "config.h"
#include "conntrack.h"
#include "endpoint.h"
#include "pkt.h"
#include "reason.h"
#include "stat.h"

/* Who asks: traffic policies and source ranges tell the two apart. */
enum scope {
	SCOPE_CLUSTER,
	SCOPE_OUTSIDE,
};

enum svc_flags {
	SVC_AFFINITY = 0x1, /* a client keeps its backend */
	SVC_RANGES = 0x2,   /* only sources in the ranges map may enter */
	SVC_DROP = 0x4,	    /* without a backend: drop, do not reject */
	SVC_SNAT = 0x8,	    /* backends may be on other nodes: the node asks for the client */
	SVC_DSR = 0x20,	    /* the backend's node answers clients from outside itself */
	SVC_MAGLEV = 0x10,  /* the slice is a table: its row is chosen by the connection */
};

/*
 * The unspecified address of a family stands for every address of the node in
 * that family: NodePorts and hostPorts.
 */
struct svc_key {
	struct addr addr;
	__be16 port;
	__u8 proto;
	__u8 scope; /* enum scope */
};

struct svc_value {
	__u32 id;
	__u32 base;  /* first backend of the slice */
	__u32 count; /* length of the slice; 0: no endpoints */
	__u16 flags; /* enum svc_flags */
	__u16 pad;
	__u32 affinity; /* SVC_AFFINITY: timeout in ticks */
};

_Static_assert(sizeof(struct svc_key) == 20, "svc_key is a map key: no padding");
_Static_assert(sizeof(struct svc_value) == 20, "svc_value: no padding");

enum be_flags {
	BE_LOCAL = 0x1, /* on this node */
};

struct backend {
	struct addr addr;
	__be16 port;
	__u8 proto; /* 0: the slot is free */
	__u8 flags; /* enum be_flags */
	__u32 pad;
};

_Static_assert(sizeof(struct backend) == 24, "backend: no padding");

struct {
	__uint(type, BPF_MAP_TYPE_HASH);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct svc_key);
	__type(value, struct svc_value);
	__uint(max_entries, 65536);
} svc SEC(".maps");

struct {
	__uint(type, BPF_MAP_TYPE_ARRAY);
	__type(key, __u32);
	__type(value, struct backend);
	__uint(max_entries, 262144);
} be SEC(".maps");

struct aff_key {
	__u32 svc;
	struct addr client;
};

struct aff_value {
	struct addr addr;
	__be16 port;
	__u16 pad;
	__u32 seen; /* in ticks */
};

_Static_assert(sizeof(struct aff_value) == 24, "aff_value: no padding");

struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct aff_key);
	__type(value, struct aff_value);
	__uint(max_entries, 16384);
} aff SEC(".maps");

struct range_key {
	__u32 bits; /* of what follows */
	__u32 svc;
	struct addr addr;
};

/* Sources that may enter services with SVC_RANGES. */
struct {
	__uint(type, BPF_MAP_TYPE_LPM_TRIE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, struct range_key);
	__type(value, __u32);
	__uint(max_entries, 1 << 20); /* a limit only: entries are allocated one by one */
} ranges SEC(".maps");

static __always_inline struct svc_value *svc_at(const struct addr *a, __be16 port, __u8 proto,
						__u8 scope)
{
	struct svc_key key = { .addr = *a, .port = port, .proto = proto, .scope = scope };

	return bpf_map_lookup_elem(&svc, &key);
}

/* The same port at every address of the node. */
static __always_inline struct svc_value *svc_at_node(const struct addr *a, __be16 port, __u8 proto,
						     __u8 scope)
{
	struct addr any = {};

	if (addr_is4(a))
		addr_from4(&any, 0);
	return svc_at(&any, port, proto, scope);
}

struct affinity_scan {
	const struct svc_value *svc;
	const struct aff_value *old;
	struct backend *to;
	bool found;
};

static long affinity_match(__u32 i, struct affinity_scan *scan)
{
	__u32 idx = scan->svc->base + i;
	struct backend *b = bpf_map_lookup_elem(&be, &idx);

	if (!b || b->port != scan->old->port || !addr_eq(&b->addr, &scan->old->addr))
		return 0;
	*scan->to = *b;
	scan->found = true;
	return 1;
}

/* The backend that a client was given before, when the slice still has it. */
static __noinline int affinity_find(const struct svc_value *v, const struct addr *client,
				    struct backend *to)
{
	struct aff_key key = { .svc = v->id, .client = *client };
	struct aff_value *old = bpf_map_lookup_elem(&aff, &key);
	struct affinity_scan scan = { .svc = v, .old = old, .to = to };
	__u32 now = ticks();

	if (!old || now - old->seen > v->affinity)
		return -DROP_BACKEND;
	bpf_loop(v->count, affinity_match, &scan, 0);
	if (!scan.found)
		return -DROP_BACKEND;
	old->seen = now;
	return 0;
}

static __noinline int affinity_keep(const struct svc_value *v, const struct addr *client,
				    const struct backend *to)
{
	struct aff_key key = { .svc = v->id, .client = *client };
	struct aff_value val = { .addr = to->addr, .port = to->port, .seen = ticks() };

	bpf_map_update_elem(&aff, &key, &val, BPF_ANY);
	return 0;
}

static __always_inline __u32 mix(__u32 h, __u32 word)
{
	h ^= word;
	h *= 0x85ebca6b;
	return h ^ (h >> 15);
}

/* The same for a connection at every node: no seed, and nothing of the node. */
static __always_inline __u32 tuple_hash(const struct tuple *t)
{
	const __be32 *s = addr_cwords(&t->src), *d = addr_cwords(&t->dst);
	__u32 h = 0x9e3779b9;

	h = mix(mix(h, s[0] ^ s[1]), s[2] ^ s[3]);
	h = mix(mix(h, d[0] ^ d[1]), d[2] ^ d[3]);
	return mix(mix(h, ((__u32)t->sport << 16) | t->dport), t->proto);
}

/* A backend for a new flow; v->count is not 0. */
static __always_inline int service_select(const struct svc_value *v, const struct addr *client,
					  __u32 hash, struct backend *to)
{
	__u32 idx, count = v->count;
	struct backend *b;

	if ((v->flags & SVC_AFFINITY) && !affinity_find(v, client, to))
		return 0;
	if (!count)
		return -DROP_BACKEND;
	if (!(v->flags & SVC_MAGLEV))
		hash = bpf_get_prandom_u32();
	idx = v->base + hash % count;
	b = bpf_map_lookup_elem(&be, &idx);
	if (!b || !b->proto)
		return -DROP_BACKEND;
	*to = *b;
	if (v->flags & SVC_AFFINITY)
		affinity_keep(v, client, to);
	return 0;
}

static __noinline bool service_admits(const struct svc_value *v, const struct addr *client)
{
	struct range_key key = { .bits = 32 + 128, .svc = v->id, .addr = *client };

	return bpf_map_lookup_elem(&ranges, &key);
}

/* The service that a packet is for: by its address, or by a port of the node. */
static __always_inline struct svc_value *service_find(const struct pkt *pkt, __u8 scope)
{
	struct svc_value *v = svc_at(&pkt->t.dst, pkt->t.dport, pkt->t.proto, scope);

	if (v)
		return v;
	if (endpoint_host_at(&pkt->t.dst))
		return svc_at_node(&pkt->t.dst, pkt->t.dport, pkt->t.proto, scope);
	return NULL;
}

static __always_inline int service_translate(struct pkt *pkt, const struct svc_value *v)
{
	struct backend to;
	int ret;

	if ((v->flags & SVC_RANGES) && !service_admits(v, &pkt->t.src)) {
		stat_refused(v->id);
		return -DROP_SOURCE;
	}
	if (!v->count) {
		stat_refused(v->id);
		return v->flags & SVC_DROP ? -DROP_BACKEND : -FWD_REJECT;
	}
	ret = service_select(v, &pkt->t.src, tuple_hash(&pkt->t), &to);
	if (ret)
		return ret;
	stat_connection(v->id);
	pkt->svc = v->id;
	pkt->ct_flags |= v->flags & SVC_DSR ? CT_SERVICE | CT_DSR : CT_SERVICE;
	pkt->n.dst = to.addr;
	pkt->n.dport = to.port;
	return 0;
}

/* Another node chose the backend, and counted the connection: whose is it? */
static __always_inline int service_led(struct pkt *pkt)
{
	struct svc_value *v = svc_at(&pkt->t.dst, pkt->t.dport, pkt->t.proto, SCOPE_OUTSIDE);

	if (!v)
		v = svc_at_node(&pkt->t.dst, pkt->t.dport, pkt->t.proto, SCOPE_OUTSIDE);
	if (v)
		pkt->svc = v->id;
	pkt->ct_flags |= CT_SERVICE;
	return 0;
}

__noinline int service(struct pkt *pkt, __u32 scope)
{
	struct svc_value *v;

	NEED(pkt);
	if (pkt->known || pkt->frag || pkt->related)
		return 0;
	if (pkt->t.proto != PROTO_TCP && pkt->t.proto != PROTO_UDP && pkt->t.proto != PROTO_SCTP)
		return 0;
	if (pkt->dsr)
		return service_led(pkt);
	/* What kube-proxy began stays its own until its flows have records. */
	if (cfg_services && mode_get() != MODE_OURS && !mode_begins(pkt))
		return 0;
	v = service_find(pkt, (__u8)scope);
	return v ? service_translate(pkt, v) : 0;
}
