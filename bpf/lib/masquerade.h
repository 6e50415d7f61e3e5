/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * While the kernel carries new flows (mode.h), those of pods that leave the
 * cluster get the node's address where they go out: only there is known what
 * kube-proxy made of them.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "conntrack.h"
#include "endpoint.h"
#include "forward.h"
#include "mode.h"
#include "pkt.h"
#include "route.h"
#include "snat.h"

__noinline int masquerade(struct __sk_buff *skb, struct pkt *pkt)
{
	struct uplink *up;
	struct endpoint *ep;
	struct addr *from;
	__u32 oif = skb->ifindex;
	int ret;

	NEED(pkt);
	if (pkt->known || pkt->related || pkt->frag || mode_get() == MODE_OURS)
		return 0;
	ep = endpoint_find(&pkt->t.src);
	if (!ep || endpoint_is_host(ep) || route_find(&pkt->t.dst))
		return 0;
	up = bpf_map_lookup_elem(&uplinks, &oif);
	if (!up || !(up->flags & UPLINK_MASQ))
		return 0;
	from = uplink_addr(up, pkt);
	if (!from)
		return 0;
	pkt->snat = *from;
	pkt->back = oif;
	pkt->ct_flags |= CT_KERNEL;
	ret = snat(pkt);
	return ret ? ret : ct_create_primary(pkt);
}
