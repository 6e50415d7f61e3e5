/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Stage 2: a pod sends from its own addresses only, others never from them. */

#include "addr.h"
#include "config.h"
#include "dsr.h"
#include "endpoint.h"
#include "pkt.h"
#include "reason.h"
#include "route.h"

static __always_inline int spoof_pod(struct __sk_buff *skb, struct pkt *pkt)
{
	struct endpoint *ep;

	/* Groups are joined from link-local and unset sources. */
	if (addr_multicast(&pkt->t.dst))
		return -DROP_MULTICAST;
	ep = endpoint_find(pkt->related ? &pkt->osrc : &pkt->t.src);
	if (!ep || endpoint_is_host(ep) || ep->ifindex != skb->ifindex)
		return -DROP_SPOOFED;
	pkt->src_if = ep->ifindex;
	pkt->src_rate = ep->rate;
	return 0;
}

/* Nobody outside has an address of one of our pods; the kernel judges its own. */
static __always_inline int spoof_net(struct pkt *pkt)
{
	struct endpoint *ep;

	ep = endpoint_find(pkt->related ? &pkt->osrc : &pkt->t.src);
	if (ep && !endpoint_is_host(ep))
		return -DROP_SPOOFED;
	return 0;
}

/* From the overlay comes only what lies behind the node that sent it, or what it leads here. */
__noinline int spoof_tun(struct __sk_buff *skb, struct pkt *pkt)
{
	struct bpf_tunnel_key key = {};
	struct addr from;
	struct route *rt;

	NEED(pkt);
	if (!bpf_skb_get_tunnel_key(skb, &key, sizeof(key), 0)) {
		addr_from4(&from, bpf_htonl(key.remote_ipv4));
		pkt->from = key.remote_ipv4;
	} else {
		if (bpf_skb_get_tunnel_key(skb, &key, sizeof(key), BPF_F_TUNINFO_IPV6))
			return -DROP_TUNNEL;
		addr_from6(&from, key.remote_ipv6);
	}
	if (cfg_dsr && key.tunnel_id == (cfg_vni ^ DSR_VNI_BIT))
		return dsr_enter(skb, pkt, &from);
	rt = route_find(pkt->related ? &pkt->osrc : &pkt->t.src);
	if (!rt || rt->kind != ROUTE_TUNNEL)
		return -DROP_TUNNEL;
	return addr_eq(&from, &rt->next) ? 0 : -DROP_TUNNEL;
}

static __always_inline int spoof(struct __sk_buff *skb, struct pkt *pkt, __u8 hook)
{
	switch (hook) {
	case HOOK_POD:
		return spoof_pod(skb, pkt);
	case HOOK_TUN:
		return spoof_tun(skb, pkt);
	default:
		return spoof_net(pkt);
	}
}
