/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * What became of a packet. A stage returns 0 (next stage, please) or the
 * negative of one of these; lib/verdict.h counts it. Numbers are part of the
 * metrics: a retired one stays as a comment and is never used again.
 */
enum reason {
	REASON_NONE = 0,

	/* Taken where it wants to go. */
	FWD_LOCAL = 1,	 /* to a pod of this node */
	FWD_NATIVE = 2,	 /* to a pod of another node, by its route */
	FWD_TUNNEL = 3,	 /* to a pod of another node, through the overlay */
	FWD_WORLD = 4,	 /* out of the cluster, translated */
	FWD_REJECT = 5,	 /* answered with an ICMP error or a RST: nobody serves it */
	FWD_TOO_BIG = 6, /* answered with an ICMP error: the way ahead is too narrow */
	FWD_DSR = 7,	 /* to the node of the backend, which answers by itself */
	FWD_XDP = 8,	 /* through this node, before it is a packet of the kernel's */

	/* Left to the kernel. */
	PASS_NOT_IP = 16,    /* ARP and other things that are not IP */
	PASS_NEIGHBOUR = 17, /* discovery of neighbours, routers and groups */
	PASS_HOST = 18,	     /* to the node itself */
	PASS_ROUTE = 19,     /* the kernel's routes decide */
	PASS_TTL = 20,	     /* the kernel has to say: time exceeded */
	PASS_TOO_BIG = 21,   /* the kernel has to cut it into fragments, or to say: too big */
	PASS_UNKNOWN = 22,   /* from an uplink, to nobody that we know */

	/* Dropped. */
	DROP_TRUNCATED = 32, /* shorter than its headers */
	DROP_MALFORMED = 33, /* headers that contradict themselves */
	DROP_SPOOFED = 34,   /* a source that the sender does not own */
	DROP_MULTICAST = 35, /* multicast or broadcast from a pod */
	/* 36 was a fragment without its first one. */
	DROP_CONNTRACK = 37,  /* the flow could not be recorded */
	DROP_SNAT_PORTS = 38, /* no free port to translate to */
	DROP_REWRITE = 39,    /* a helper could not change the packet */
	DROP_BACKEND = 40,    /* a service points at a backend that is not there */
	DROP_NO_REJECT = 41,  /* the ICMP error could not be made */
	DROP_TUNNEL = 42,     /* from the overlay, but not from a known node */
	DROP_REDIRECT = 43,   /* the kernel refused to take it there */
	DROP_RATE = 44,	      /* above the pod's bandwidth */
	DROP_SOURCE = 45,     /* not in the service's source ranges */
	DROP_RELATED = 46,    /* an ICMP error about a flow that is not known */
	DROP_EGRESS = 47,     /* the sender's network policies do not allow it */
	DROP_INGRESS = 48,    /* the receiver's network policies do not allow it */

	REASON_MAX = 64,
};
