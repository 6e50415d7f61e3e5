/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * What the node routes for others, where it leaves the kernel: by now it is
 * known what kube-proxy made of it. To a pod it has to have a record, for its
 * answers will be judged.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "conntrack.h"
#include "endpoint.h"
#include "forward.h"
#include "masquerade.h"
#include "mode.h"
#include "pkt.h"
#include "policy.h"

/* Whether a pod of ours sends it: nobody else's packets are our business at an uplink. */
static __always_inline bool routed_ours(const struct pkt *pkt)
{
	struct endpoint *ep = endpoint_find(&pkt->t.src);

	return pkt->hook == HOOK_TOPOD || (ep && !endpoint_is_host(ep)) ||
	       !addr_eq(&pkt->osrc, &pkt->t.src);
}

static __always_inline int routed(struct __sk_buff *skb, struct pkt *pkt)
{
	int ret;

	/* Back by the link it came in by: our own answer, or a pod that is its own backend. */
	if (pkt->known || skb->ingress_ifindex == skb->ifindex)
		return 0;
	mode_carry(pkt);
	policy_sender(pkt, skb->ingress_ifindex);
	if (!routed_ours(pkt))
		return 0;
	ret = policy(pkt);
	if (!ret && pkt->hook == HOOK_TONET)
		ret = masquerade(skb, pkt);
	if (ret || pkt->related || pkt->frag || translated(pkt))
		return ret;
	if (!pkt->kernel && !pkt->guarded)
		return 0;
	if (pkt->kernel)
		pkt->ct_flags |= CT_KERNEL;
	return ct_create_plain(pkt, 0);
}
