/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Stage 1: fills struct pkt from the packet's headers. */

#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "frag.h"
#include "icmp.h"
#include "pkt.h"
#include "proto.h"
#include "reason.h"

#define EXT_HEADERS 6 /* extension headers that we walk over */

/* A pointer to the first len bytes in linear memory, or NULL when there are fewer. */
static __always_inline void *head(struct __sk_buff *skb, __u32 len)
{
	void *data = (void *)(long)skb->data;

	if (data + len <= (void *)(long)skb->data_end)
		return data;
	if (bpf_skb_pull_data(skb, len))
		return NULL;
	data = (void *)(long)skb->data;
	return data + len <= (void *)(long)skb->data_end ? data : NULL;
}

/* Discovery of neighbours and routers, and of who listens to which group. */
static __always_inline bool icmp6_of_link(__u8 type)
{
	return (type >= ICMP6_RS && type <= ICMP6_REDIRECT) ||
	       (type >= ICMP6_MLD_QUERY && type <= ICMP6_MLD_DONE) || type == ICMP6_MLD2;
}

/* Echo puts its identifier where ports would be; other types have none. */
static __always_inline int parse_icmp(struct __sk_buff *skb, struct pkt *pkt)
{
	struct icmp_hdr icmp;

	if (bpf_skb_load_bytes(skb, pkt->l4, &icmp, sizeof(icmp)))
		return -DROP_TRUNCATED;
	pkt->icmp_type = icmp.type;
	if (icmp.type == (pkt->v4 ? ICMP_ECHO : ICMP6_ECHO))
		pkt->t.sport = icmp.id;
	else if (icmp.type == (pkt->v4 ? ICMP_ECHO_REPLY : ICMP6_ECHO_REPLY))
		pkt->t.dport = icmp.id;
	else if (icmp_is_error(pkt))
		return icmp_related(skb, pkt);
	else if (!pkt->v4 && icmp6_of_link(icmp.type))
		return -PASS_NEIGHBOUR;
	return 0;
}

/* Ports and flags of the transport header at pkt->l4. */
static __always_inline int parse_l4(struct __sk_buff *skb, struct pkt *pkt)
{
	struct tcp_hdr tcp;

	switch (pkt->t.proto) {
	case PROTO_TCP:
		/* Not the whole header: the first 16 bytes hold what we need. */
		if (bpf_skb_load_bytes(skb, pkt->l4, &tcp, 16))
			return -DROP_TRUNCATED;
		if (tcp.off >> 4 < TCP_LEN / 4)
			return -DROP_MALFORMED;
		pkt->t.sport = tcp.sport;
		pkt->t.dport = tcp.dport;
		pkt->tcp_flags = tcp.flags;
		return 0;
	case PROTO_UDP:
	case PROTO_SCTP:
		if (bpf_skb_load_bytes(skb, pkt->l4, &pkt->t.sport, PORTS_LEN))
			return -DROP_TRUNCATED;
		return 0;
	case PROTO_ICMP:
		return pkt->v4 ? parse_icmp(skb, pkt) : 0;
	case PROTO_ICMP6:
		return pkt->v4 ? 0 : parse_icmp(skb, pkt);
	default:
		return 0;
	}
}

static __always_inline int parse_ip4(struct __sk_buff *skb, struct pkt *pkt)
{
	struct ip4_hdr *ip;
	__u32 ihl, len;
	void *data;

	data = head(skb, ETH_LEN + IP4_LEN);
	if (!data)
		return -DROP_TRUNCATED;
	ip = data + ETH_LEN;
	ihl = (ip->ver_ihl & 0x0f) * 4;
	/* Segmentation offload writes no length into what is longer than 64k. */
	len = ip->len || !skb->gso_size ? bpf_ntohs(ip->len) : skb->len - ETH_LEN;
	if (ip->ver_ihl >> 4 != 4 || ihl < IP4_LEN || len < ihl)
		return -DROP_MALFORMED;
	if (len + ETH_LEN > skb->len)
		return -DROP_TRUNCATED;
	pkt->v4 = true;
	addr_from4(&pkt->t.src, ip->src);
	addr_from4(&pkt->t.dst, ip->dst);
	pkt->t.proto = ip->proto;
	pkt->ttl = ip->ttl;
	pkt->df = ip->frag & IP4_DF;
	pkt->frag = ip->frag & IP4_OFFSET;
	pkt->first = !pkt->frag && (ip->frag & IP4_MF);
	pkt->id = ip->id;
	pkt->l4 = (__u16)(ETH_LEN + ihl);
	return 0;
}

/* Walks to the transport header; out of line because it is rare. */
__noinline int parse_ext(struct __sk_buff *skb, struct pkt *pkt)
{
	struct ip6_ext ext;
	struct ip6_frag frag;
	__u32 off;
	int i;

	NEED(pkt);
	off = pkt->l4;
	for (i = 0; i < EXT_HEADERS; i++) {
		switch (pkt->t.proto) {
		case PROTO_HOPOPTS:
		case PROTO_ROUTING:
		case PROTO_DSTOPTS:
			if (bpf_skb_load_bytes(skb, off, &ext, sizeof(ext)))
				return -DROP_TRUNCATED;
			off += (ext.len + 1) * 8;
			pkt->t.proto = ext.next;
			break;
		case PROTO_AUTH:
			if (bpf_skb_load_bytes(skb, off, &ext, sizeof(ext)))
				return -DROP_TRUNCATED;
			off += (ext.len + 2) * 4;
			pkt->t.proto = ext.next;
			break;
		case PROTO_FRAGMENT:
			if (bpf_skb_load_bytes(skb, off, &frag, sizeof(frag)))
				return -DROP_TRUNCATED;
			off += sizeof(frag);
			pkt->t.proto = frag.next;
			pkt->frag = frag.off & IP6_OFFSET;
			pkt->first = !pkt->frag && (frag.off & IP6_MF);
			pkt->id = frag.id;
			if (pkt->frag)
				goto out;
			break;
		default:
			goto out;
		}
	}
	return -DROP_MALFORMED;
out:
	if (off > skb->len)
		return -DROP_TRUNCATED;
	pkt->l4 = (__u16)off;
	return 0;
}

static __always_inline bool ext_header(__u8 next)
{
	return next == PROTO_HOPOPTS || next == PROTO_ROUTING || next == PROTO_FRAGMENT ||
	       next == PROTO_DSTOPTS || next == PROTO_AUTH;
}

static __always_inline int parse_ip6(struct __sk_buff *skb, struct pkt *pkt)
{
	struct ip6_hdr *ip;
	void *data;

	data = head(skb, ETH_LEN + IP6_LEN);
	if (!data)
		return -DROP_TRUNCATED;
	ip = data + ETH_LEN;
	if ((bpf_ntohl(ip->flow) >> 28) != 6)
		return -DROP_MALFORMED;
	if (bpf_ntohs(ip->len) + ETH_LEN + IP6_LEN > skb->len)
		return -DROP_TRUNCATED;
	addr_from6(&pkt->t.src, ip->src);
	addr_from6(&pkt->t.dst, ip->dst);
	/* A mapped address on the wire would be mistaken for IPv4. */
	if (addr_is4(&pkt->t.src) || addr_is4(&pkt->t.dst))
		return -DROP_MALFORMED;
	pkt->t.proto = ip->next;
	pkt->ttl = ip->hops;
	pkt->df = true;
	pkt->l4 = ETH_LEN + IP6_LEN;
	if (ext_header(ip->next))
		return parse_ext(skb, pkt);
	return 0;
}

__noinline int parse(struct __sk_buff *skb, struct pkt *pkt)
{
	int ret;

	NEED(pkt);
	pkt->from = pkt->hook == HOOK_TUN ? 0 : skb->ifindex;
	/* Another network on the same wire: not ours. */
	if (skb->vlan_present)
		return -PASS_NOT_IP;
	switch (skb->protocol) {
	case ETHERTYPE_IP:
		ret = parse_ip4(skb, pkt);
		break;
	case ETHERTYPE_IPV6:
		ret = parse_ip6(skb, pkt);
		break;
	default:
		return -PASS_NOT_IP;
	}
	if (!ret && !pkt->frag)
		ret = parse_l4(skb, pkt);
	if (!ret && (pkt->frag || pkt->first))
		ret = fragment(pkt);
	pkt->n = pkt->t;
	return ret;
}
