/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Stage 2: a pod sends from its own addresses only, others never from them. */

#include "addr.h"
#include "endpoint.h"
#include "pkt.h"
#include "reason.h"

static __always_inline int spoof_pod(struct __sk_buff *skb, struct pkt *pkt)
{
	struct endpoint *ep;

	/* Groups are joined from link-local and unset sources. */
	if (addr_multicast(&pkt->t.dst))
		return -DROP_MULTICAST;
	ep = endpoint_find(&pkt->t.src);
	if (!ep || endpoint_is_host(ep) || ep->ifindex != skb->ifindex)
		return -DROP_SPOOFED;
	pkt->src_if = ep->ifindex;
	return 0;
}

/* Nobody outside has an address of one of our pods; the kernel judges its own. */
static __always_inline int spoof_net(struct __sk_buff *skb, struct pkt *pkt)
{
	struct endpoint *ep;

	(void)skb;
	ep = endpoint_find(&pkt->t.src);
	if (ep && !endpoint_is_host(ep))
		return -DROP_SPOOFED;
	return 0;
}
