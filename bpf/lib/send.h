/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * How a packet is given to another node: returns the kernel's code, or the
 * negative of a reason.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "config.h"
#include "nat.h"
#include "reason.h"

#define FAMILY_INET  2
#define FAMILY_INET6 10

static __always_inline long send_next4(__u32 oif, __be32 next)
{
	struct bpf_redir_neigh nh = { .nh_family = FAMILY_INET, .ipv4_nh = next };

	return bpf_redirect_neigh(oif, &nh, sizeof(nh), 0);
}

static __always_inline long send_native(__u32 oif, const struct addr *next)
{
	struct bpf_redir_neigh nh = { .nh_family = FAMILY_INET6 };

	if (addr_zero(next))
		return bpf_redirect_neigh(oif, NULL, 0, 0);
	if (addr_is4(next))
		return send_next4(oif, addr_to4(next));
	__builtin_memcpy(nh.ipv6_nh, next, 16);
	return bpf_redirect_neigh(oif, &nh, sizeof(nh), 0);
}

/* By the overlay's device, which adds the outer headers. */
static __always_inline long send_tunnel(struct __sk_buff *skb, __u32 oif, const struct addr *far,
					const __u8 mac[12], __u32 vni)
{
	struct bpf_tunnel_key key = { .tunnel_id = vni, .tunnel_ttl = 64 };
	__u64 flags = 0;

	if (mac_write(skb, mac))
		return -DROP_REWRITE;
	if (addr_is4(far)) {
		key.remote_ipv4 = bpf_ntohl(addr_to4(far));
		flags = BPF_F_ZERO_CSUM_TX;
	} else {
		__builtin_memcpy(key.remote_ipv6, far, 16);
		flags = BPF_F_TUNINFO_IPV6;
	}
	if (bpf_skb_set_tunnel_key(skb, &key, sizeof(key), flags))
		return -DROP_REWRITE;
	return bpf_redirect(oif, 0);
}
