/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* A new flow leaves with an address and a port of the node. */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "config.h"
#include "conntrack.h"
#include "pkt.h"
#include "reason.h"
#include "route.h"

#define SNAT_TRIES 32

/* What can be given another port: SCTP's checksum cannot be mended, others have no port. */
static __always_inline bool snat_has_port(const struct pkt *pkt)
{
	return pkt->t.proto == PROTO_TCP || pkt->t.proto == PROTO_UDP || pkt->t.sport;
}

/* A port that may stay as it is, if nobody else has it. */
static __always_inline bool snat_keeps(const struct pkt *pkt)
{
	__u16 port = bpf_ntohs(pkt->t.sport);

	if (pkt->t.proto == PROTO_SCTP || !snat_has_port(pkt))
		return true;
	return port >= cfg_snat_min && port <= cfg_snat_max;
}

/*
 * The record for replies doubles as the reservation of the port, so two flows
 * never share one towards the same destination. Each try is at a random port:
 * taken ones lie in no row that the next try would meet again.
 */
__noinline int snat(struct pkt *pkt)
{
	__u32 range = (__u32)cfg_snat_max - cfg_snat_min + 1;
	__u32 i;
	bool keep;

	NEED(pkt);
	keep = snat_keeps(pkt);
	pkt->n.src = pkt->snat;
	pkt->ct_flags |= CT_SNAT;
	for (i = 0; i < SNAT_TRIES; i++) {
		if (!keep)
			pkt->n.sport =
				bpf_htons((__u16)(cfg_snat_min + bpf_get_prandom_u32() % range));
		keep = false;
		if (!ct_create_secondary(pkt))
			return 0;
		if (pkt->t.proto == PROTO_SCTP || !snat_has_port(pkt))
			break;
	}
	return -DROP_SNAT_PORTS;
}
