/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * The one exit: writes what the stages decided into the packet, sends it on,
 * and counts it. No packet is dropped uncounted.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "config.h"
#include "dsr.h"
#include "endpoint.h"
#include "event.h"
#include "express.h"
#include "forward.h"
#include "icmp.h"
#include "nat.h"
#include "pkt.h"
#include "reason.h"
#include "reject.h"
#include "reset.h"
#include "send.h"
#include "stat.h"
#include "way.h"

#define ACT_OK	     0
#define ACT_SHOT     2
#define ACT_REDIRECT 7

/* The kernel's codes for "mine" in both kinds of attachment, clsact and tcx. */
_Static_assert(ACT_OK == 0 && ACT_SHOT == 2 && ACT_REDIRECT == 7, "TC_ACT_* and TCX_*");

#define PKT_HOST 0

/* The link addresses stay as they are: the pod's stack has no use for them. */
static __always_inline long send_local(struct __sk_buff *skb, const struct pkt *pkt)
{
	if (pkt->hook == HOOK_TUN)
		bpf_skb_change_type(skb, PKT_HOST);
	return bpf_redirect_peer(pkt->dst_if, 0);
}

static __always_inline long send(struct __sk_buff *skb, const struct pkt *pkt)
{
	switch (pkt->act) {
	case FWD_LOCAL:
		return send_local(skb, pkt);
	case FWD_NATIVE:
		return ttl_less(skb, pkt) ? ACT_SHOT : send_native(pkt->oif, &pkt->next);
	case FWD_WORLD:
		return ttl_less(skb, pkt) ? ACT_SHOT : bpf_redirect_neigh(pkt->oif, NULL, 0, 0);
	case FWD_TUNNEL:
	case FWD_DSR:
		if (ttl_less(skb, pkt))
			return ACT_SHOT;
		return send_tunnel(skb, pkt->oif, &pkt->next, pkt->mac,
				   pkt->act == FWD_DSR ? cfg_vni ^ DSR_VNI_BIT : cfg_vni);
	default:
		return ACT_OK;
	}
}

/* By the short cut to a pod's link; counted as at the hook. */
static __noinline int verdict_lane(struct __sk_buff *skb, __u8 hook, __u32 to)
{
	count(skb, hook, FWD_LOCAL);
	if (hook == HOOK_TUN)
		bpf_skb_change_type(skb, PKT_HOST);
	return (int)bpf_redirect_peer(to, 0);
}

/* By the short cut to another node; ACT_OK: it takes the long way. */
static __noinline int verdict_way(struct __sk_buff *skb, __u32 idx)
{
	int act = way_send(skb, idx);

	if (act >= 0)
		return act;
	count(skb, HOOK_POD, DROP_REDIRECT);
	return ACT_SHOT;
}

/* What carries the overlay: by the short cut what is in it, else to the device. */
static __noinline int verdict_outer(struct __sk_buff *skb)
{
	__u32 to = cfg_tun_direct ? outer_express(skb) : 0;

	if (to)
		return verdict_lane(skb, HOOK_TUN, to);
	count(skb, HOOK_NET, PASS_HOST);
	return ACT_OK;
}

/* A stage stopped the packet: ret is the negative of its reason. */
static __always_inline int verdict_stop(struct __sk_buff *skb, struct pkt *pkt, int ret)
{
	__u8 why = (__u8)-ret;

	if (why == FWD_REJECT || why == FWD_TOO_BIG) {
		ret = pkt->t.proto == PROTO_TCP && why == FWD_REJECT ? reset(skb, pkt)
								     : reject(skb, pkt);
		if (!ret) {
			count(skb, pkt->hook, why);
			emit(skb, pkt, why);
			return (int)bpf_redirect(skb->ifindex, 0);
		}
	}
	count(skb, pkt->hook, (__u8)-ret);
	if (ret > -DROP_TRUNCATED)
		return ACT_OK;
	emit(skb, pkt, (__u8)-ret);
	return ACT_SHOT;
}

__noinline int verdict(struct __sk_buff *skb, struct pkt *pkt, int ret)
{
	long act;

	NEED(pkt);
	if (!ret && pkt->act != FWD_DSR && translated(pkt))
		ret = pkt->related ? icmp_nat(skb, pkt) : nat(skb, pkt);
	if (ret)
		return verdict_stop(skb, pkt, ret);
	count(skb, pkt->hook, pkt->act);
	/* What another node leads here it has counted. */
	if (pkt->svc && (pkt->ct_flags & CT_SERVICE) && !pkt->dsr)
		stat_bytes(pkt->svc, pkt->reply ? 0 : skb->len, pkt->reply ? skb->len : 0);
	if (!pkt->known && watched && ct_opens(pkt))
		emit(skb, pkt, pkt->act);
	act = send(skb, pkt);
	if (act == ACT_SHOT || act < 0)
		return verdict_stop(skb, pkt, -DROP_REDIRECT);
	return (int)act;
}
