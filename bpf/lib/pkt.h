/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* A packet on its way through the stages: filled by parse, read by all. */

#include "types.h"

struct endpoint;
struct ct_value;
struct route;

struct pkt {
	struct tuple t;	      /* as on the wire */
	struct tuple n;	      /* as it shall be on the wire */
	struct endpoint *src; /* who sent it, if that is a pod of this node */
	struct endpoint *dst; /* who owns n.dst, if this node */
	struct ct_value *ct;  /* the flow it belongs to, if known */
	struct route *rt;     /* how to reach n.dst, if that is known */
	struct addr snat;     /* the address that a new flow leaves with; zero: its own */
	__u32 oif;	      /* interface to leave by */
	__u32 svc;	      /* id of the service that was addressed */
	__u32 ct_flags;	      /* what the flow's record shall say */
	__u16 l4;	      /* offset of the transport header */
	__u8 hook;	      /* enum hook */
	__u8 act;	      /* enum reason: where forward sends it */
	__u8 ttl;
	__u8 tcp_flags;
	__u8 icmp_type;
	bool v4;
	bool frag;    /* not the first fragment: no transport header */
	bool first;   /* the first of several fragments */
	bool related; /* an ICMP error: t is the flow that it is about, turned round */
	bool reply;   /* direction within its flow */
	bool df;      /* must not be fragmented */
};
