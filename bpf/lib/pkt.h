/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * A packet on its way through the stages: filled by parse, read by all.
 *
 * Each stage is a global function, so the verifier walks it once and not once
 * for every way that leads to it. That is why there are no pointers in here:
 * to such a function the struct is plain memory. And why each stage asks
 * whether it got one.
 */

#include "types.h"

struct pkt {
	struct tuple t;	  /* as on the wire */
	struct tuple n;	  /* as it shall be on the wire */
	struct addr next; /* next hop, or the tunnel's other end; zero: the FIB knows */
	struct addr snat; /* the address that a new flow leaves with; zero: its own */
	struct addr osrc; /* of an ICMP error: who sent it */
	__u8 mac[12];	  /* link addresses, destination first, where we write them */
	__u32 from;	  /* link, or node of the overlay, that it came from; 0: has no short cut */
	__u32 epoch;	  /* when it came in */
	__u32 src_if;	  /* link of the pod that sent it, 0: no pod of this node */
	__u32 dst_if;	  /* link of the pod that owns n.dst, 0: no pod of this node */
	__u32 oif;	  /* interface to leave by */
	__u32 back;	  /* interface towards the outside, for the record of the flow */
	__u32 svc;	  /* id of the service that was addressed */
	__u32 ct_flags;	  /* what the flow's record says, or shall say */
	__u32 src_rate;	  /* slot of the sender's bandwidth, 0: unlimited */
	__u32 dst_rate;	  /* and of the receiver's */
	union {
		__be32 id; /* of a fragmented packet: parse */
		__u32 way; /* to another node, that has a short cut, 0: none: forward */
	};
	union {
		__u16 inner; /* of an ICMP error: offset of the quoted IP header */
		__u16 mtu;   /* of others: that of a way ahead that is too narrow; 0: it fits */
	};
	__u16 inner_l4; /* and of what follows that */
	__u16 l4;	/* offset of the transport header */
	__u8 hook;	/* enum hook */
	__u8 act;	/* enum reason: where forward sends it */
	__u8 ttl;
	__u8 tcp_flags;
	__u8 icmp_type;
	bool v4;
	bool frag;    /* not the first fragment: no transport header */
	bool first;   /* the first of several fragments */
	bool related; /* an ICMP error: t is the flow that it is about, turned round */
	bool known;   /* its flow has a record */
	__u8 reply;   /* direction within its flow */
	bool df;      /* must not be fragmented */
	bool host;    /* n.dst is the node */
	bool lanes;   /* its record knows the short cut */
	bool kernel;  /* the kernel carries it: nothing takes it past its rules */
	bool dsr;     /* another node leads it here: n is where to */
	bool guarded; /* a policy isolates one of its ends: a reply is one only by the record */
};

/* A stage that was called without a packet: cannot happen, has to be said. */
#define NEED(pkt)                               \
	do {                                    \
		if (!(pkt))                     \
			return -DROP_MALFORMED; \
	} while (0)
