/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Stage 3: which flow does a packet belong to, and what does its record say?
 *
 * A flow that is not translated has one record, found from both directions: the
 * key is the tuple with its lower end first. A translated flow has two, one
 * under each of its tuples, and each holds the other tuple: the primary is
 * found by packets of the original direction, the secondary by replies.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "clock.h"
#include "mode.h"
#include "pkt.h"
#include "proto.h"
#include "reason.h"
#include "recall.h"

enum ct_flags {
	CT_SWAPPED = 0x1,   /* the original direction is from the key's dst to its src */
	CT_XLAT = 0x2,	    /* translated: other is valid */
	CT_SECONDARY = 0x4, /* found by replies of a translated flow */
	CT_ORIG = 0x8,	    /* seen a packet of the original direction */
	CT_REPLY = 0x10,    /* seen a reply */
	CT_FIN_ORIG = 0x20,
	CT_FIN_REPLY = 0x40,
	CT_RST = 0x80,
	CT_SNAT = 0x100,    /* the source is translated to a port of ours */
	CT_OUTSIDE = 0x200, /* begun from outside: replies leave by oif */
	CT_SERVICE = 0x400, /* the destination was a service */
	CT_HAIRPIN = 0x800, /* the sender is its own backend */
	CT_RESET = 0x1000,  /* its backend is gone: the next packet of either side gets a RST */
	CT_SOCKET = 0x2000, /* the socket was translated, the packets are not: svc is known */
	CT_KERNEL =
		0x4000,	   /* begun while the kernel carried flows: it may have translated it too */
	CT_WAITS = 0x8000, /* the kernel's, and not judged yet: it may still be translated */
	CT_DSR = 0x10000,  /* the backend's node answers the client itself */
};

#define CT_CLOSING (CT_FIN_ORIG | CT_FIN_REPLY | CT_RST)

/* Bits that belong to both records of a translated flow. */
#define CT_SHARED (CT_ORIG | CT_REPLY | CT_CLOSING)

/*
 * Grows whenever an address changes its owner: what records say about links is
 * then looked up again. It begins at the time of the load, so that no record of
 * an earlier load agrees by chance.
 */
volatile __u32 epoch = 0;

static __always_inline void tuple_turn(struct tuple *to, const struct tuple *from)
{
	to->src = from->dst;
	to->dst = from->src;
	to->sport = from->dport;
	to->dport = from->sport;
	to->proto = from->proto;
}

/* Any total order will do, as long as it is the same for both directions. */
static __always_inline bool tuple_higher_first(const struct tuple *t)
{
	const __be32 *s = addr_cwords(&t->src), *d = addr_cwords(&t->dst);

	if (s[3] != d[3])
		return s[3] > d[3];
	if (s[2] != d[2])
		return s[2] > d[2];
	if (s[1] != d[1])
		return s[1] > d[1];
	if (s[0] != d[0])
		return s[0] > d[0];
	return t->sport > t->dport;
}

/* The key of a tuple; true when the tuple's ends were swapped for it. */
static __always_inline bool ct_key(struct tuple *key, const struct tuple *t)
{
	if (!tuple_higher_first(t)) {
		*key = *t;
		return false;
	}
	__builtin_memset(key, 0, sizeof(*key));
	tuple_turn(key, t);
	return true;
}

/* What a packet adds to its flow's record; flags are 0 for what is not TCP. */
static __always_inline __u32 ct_flags_of(bool reply, __u8 tcp_flags)
{
	__u32 flags = reply ? CT_REPLY : CT_ORIG;

	if (tcp_flags & TCP_FIN)
		flags |= reply ? CT_FIN_REPLY : CT_FIN_ORIG;
	if (tcp_flags & TCP_RST)
		flags |= CT_RST;
	return flags;
}

/* Rare: the other record of a translated flow learns what this one saw. */
__noinline int ct_tell_other(const struct tuple *t, __u32 flags)
{
	struct tuple key;
	struct ct_value *other;

	NEED(t);
	ct_key(&key, t);
	ct_recall(&key);
	other = bpf_map_lookup_elem(&ct, &key);
	if (other)
		__sync_fetch_and_or(&other->flags, flags & CT_SHARED);
	return 0;
}

/*
 * Two processors may write seen and flags of one flow at once: the flags are
 * only ever added to, atomically, and for seen either value is right. Returns
 * whether a flag is new.
 */
static __always_inline bool ct_mark(struct ct_value *v, __u32 flags)
{
	__u32 now = ticks();

	if (v->seen != now)
		v->seen = now;
	if ((v->flags & flags) == flags)
		return false;
	__sync_fetch_and_or(&v->flags, flags);
	return true;
}

static __always_inline bool ct_answered_elsewhere(const struct ct_value *v, const struct pkt *pkt)
{
	return (v->flags & CT_DSR) && pkt->hook == HOOK_NET;
}

static __always_inline void ct_touch(struct ct_value *v, const struct pkt *pkt)
{
	__u32 flags = ct_flags_of(pkt->reply, pkt->tcp_flags);

	/* Replies do not pass here: that the client goes on shows that there was one. */
	if (ct_answered_elsewhere(v, pkt) && !(pkt->tcp_flags & TCP_SYN))
		flags |= CT_REPLY;
	if (ct_mark(v, flags) && (v->flags & CT_XLAT))
		ct_tell_other(&v->other, flags);
}

/* May this packet be the first of a flow? */
static __always_inline bool ct_opens(const struct pkt *pkt)
{
	return pkt->t.proto != PROTO_TCP || (pkt->tcp_flags & (TCP_SYN | TCP_ACK)) == TCP_SYN;
}

/*
 * A record that is of another flow, by now: a SYN meets that of a closed
 * connection, or a packet the tuple that another flow was translated to.
 */
static __always_inline bool ct_outlived(const struct ct_value *v, const struct pkt *pkt)
{
	if (pkt->reply || pkt->related || !ct_opens(pkt))
		return false;
	/* Only a pod is known to own the tuple that it sends. */
	if (v->flags & CT_SECONDARY)
		return pkt->hook == HOOK_POD;
	if (pkt->t.proto != PROTO_TCP)
		return false;
	/* Where replies do not pass nobody sees that the backend ended it. */
	return v->flags & CT_CLOSING || (ct_answered_elsewhere(v, pkt) && v->flags & CT_REPLY);
}

/* The node that led it here may have chosen another backend since. */
static __always_inline bool ct_agrees(const struct ct_value *v, const struct pkt *pkt)
{
	if (!pkt->dsr)
		return true;
	return !pkt->reply && (v->flags & CT_XLAT) && !(v->flags & CT_SECONDARY) &&
	       v->other.dport == pkt->n.dport && addr_eq(&v->other.dst, &pkt->n.dst);
}

/* Rare: without its other record a translated flow would be answered wrongly. */
__noinline int ct_forget(const struct tuple *t)
{
	struct tuple key;

	NEED(t);
	ct_key(&key, t);
	bpf_map_delete_elem(&ct, &key);
	return 0;
}

static __always_inline void ct_translate(const struct ct_value *v, struct pkt *pkt)
{
	if (pkt->reply)
		tuple_turn(&pkt->n, &v->other);
	else
		pkt->n = v->other;
}

__noinline int conntrack(struct pkt *pkt)
{
	struct tuple key;
	struct ct_value *v;
	bool swapped;

	NEED(pkt);
	swapped = ct_key(&key, &pkt->t);
	v = bpf_map_lookup_elem(&ct, &key);
	if (!v && ct_recall(&key))
		v = bpf_map_lookup_elem(&ct, &key);
	if (!v)
		return 0;
	pkt->reply = swapped != !!(v->flags & CT_SWAPPED);
	if (!ct_agrees(v, pkt)) {
		pkt->reply = false;
		return 0;
	}
	if (ct_outlived(v, pkt)) {
		if (v->flags & CT_SECONDARY)
			ct_forget(&v->other);
		pkt->reply = false;
		return 0;
	}
	/* What its sender's link saw of it: policies judge what the kernel made of it. */
	if ((v->flags & CT_WAITS) && pkt->hook >= HOOK_TOPOD && !pkt->reply && !pkt->related)
		return 0;
	pkt->known = true;
	/* A RST is the end that they are to hear of: ours passes here too. */
	if ((v->flags & CT_RESET) && !pkt->related && !(pkt->tcp_flags & TCP_RST))
		return pkt->hook < HOOK_TOPOD ? -FWD_REJECT : -DROP_BACKEND;
	if ((v->flags & CT_KERNEL) && mode_get() != MODE_OURS) {
		pkt->kernel = true;
		if (pkt->hook == HOOK_POD && (v->flags & CT_XLAT))
			return 0;
	}
	pkt->lanes = v->epoch == pkt->epoch && v->lane[pkt->reply & 1].to;
	if (!pkt->related)
		ct_touch(v, pkt);
	/*
	 * A packet of the original direction that carries the translated tuple
	 * already is not this flow's: it goes on as it is.
	 */
	if ((v->flags & CT_XLAT) && !!(v->flags & CT_SECONDARY) == pkt->reply) {
		pkt->oif = v->oif;
		pkt->svc = v->svc;
		pkt->ct_flags = v->flags;
		ct_translate(v, pkt);
	}
	return 0;
}

/*
 * Opens the lanes of a flow that goes on as it is, to a pod of this node or by
 * a way to another one. The epoch is the one that was read before the owners were
 * looked up.
 */
static __always_inline void ct_lanes(struct ct_value *v, const struct pkt *pkt)
{
	__u32 dir = pkt->reply;

	if (v->epoch != pkt->epoch) {
		v->lane[0].to = 0;
		v->lane[1].to = 0;
	}
	v->lane[dir & 1].from = pkt->from;
	v->lane[dir & 1].to = pkt->dst_if ? pkt->dst_if : pkt->way | LANE_WAY;
	if (pkt->src_if && pkt->dst_if) {
		v->lane[~dir & 1].from = pkt->dst_if;
		v->lane[~dir & 1].to = pkt->src_if;
	}
	v->epoch = pkt->epoch;
}

__noinline int ct_settle(const struct pkt *pkt)
{
	struct tuple key;
	struct ct_value *v;

	NEED(pkt);
	ct_key(&key, &pkt->t);
	v = bpf_map_lookup_elem(&ct, &key);
	if (v)
		ct_lanes(v, pkt);
	return 0;
}

static __always_inline void ct_fill(struct ct_value *v, const struct pkt *pkt)
{
	v->flags = pkt->ct_flags | ct_flags_of(pkt->reply, pkt->tcp_flags);
	v->seen = ticks();
	v->since = v->seen;
	v->svc = pkt->svc;
	v->oif = pkt->back;
}

/*
 * Records made, ever. What was counted at a walk and what was made since says
 * how full the table may be, so the agent makes room before the table does.
 */
struct {
	__uint(type, BPF_MAP_TYPE_PERCPU_ARRAY);
	__type(key, __u32);
	__type(value, __u64);
	__uint(max_entries, 1);
} ct_made SEC(".maps");

static __always_inline void ct_count(__u64 records)
{
	__u32 zero = 0;
	__u64 *made = bpf_map_lookup_elem(&ct_made, &zero);

	if (made)
		*made += records;
}

/* The one record of a flow that is not translated. */
__noinline int ct_create_plain(const struct pkt *pkt, __u32 lanes)
{
	struct tuple key;
	struct ct_value v = {};

	NEED(pkt);
	ct_count(1);
	ct_fill(&v, pkt);
	if (lanes)
		ct_lanes(&v, pkt);
	if (ct_key(&key, &pkt->t))
		v.flags |= CT_SWAPPED;
	return bpf_map_update_elem(&ct, &key, &v, BPF_ANY) ? -DROP_CONNTRACK : 0;
}

/* Whether the record at a key is of this service's flow, or of a closed one. */
static __always_inline bool ct_replaces(const struct tuple *key, const struct pkt *pkt)
{
	struct ct_value *v = bpf_map_lookup_elem(&ct, key);

	if (!v || v->flags & CT_CLOSING)
		return true;
	return v->flags & CT_SECONDARY && v->other.dport == pkt->t.dport &&
	       addr_eq(&v->other.dst, &pkt->t.dst);
}

/*
 * The record that replies of a translated flow find. It is written first, and
 * fails when another flow has its tuple: that is how a port is reserved.
 */
__noinline int ct_create_secondary(const struct pkt *pkt)
{
	struct tuple key;
	struct ct_value v = {};

	NEED(pkt);
	ct_fill(&v, pkt);
	v.flags |= CT_XLAT | CT_SECONDARY;
	if (ct_key(&key, &pkt->n))
		v.flags |= CT_SWAPPED;
	ct_recall(&key);
	v.other = pkt->t;
	if (!bpf_map_update_elem(&ct, &key, &v, BPF_NOEXIST))
		return 0;
	if (pkt->ct_flags & CT_SNAT || !ct_replaces(&key, pkt))
		return -DROP_CONNTRACK;
	return bpf_map_update_elem(&ct, &key, &v, BPF_ANY) ? -DROP_CONNTRACK : 0;
}

/* The record that packets of the original direction find: the second of the two. */
__noinline int ct_create_primary(const struct pkt *pkt)
{
	struct tuple key;
	struct ct_value v = {};

	NEED(pkt);
	ct_count(2);
	ct_fill(&v, pkt);
	v.flags |= CT_XLAT;
	if (ct_key(&key, &pkt->t))
		v.flags |= CT_SWAPPED;
	v.other = pkt->n;
	return bpf_map_update_elem(&ct, &key, &v, BPF_ANY) ? -DROP_CONNTRACK : 0;
}
