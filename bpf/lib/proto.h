/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* The wire: headers and numbers of the protocols that the data path reads. */

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>

#define ETH_LEN	  14
#define IP4_LEN	  20
#define IP6_LEN	  40
#define ICMP_LEN  8
#define UDP_LEN	  8
#define TCP_LEN	  20
#define PORTS_LEN 4

#define IP4_PLAIN 0x45 /* version 4, no options */
#define MTU_MIN	  1280 /* no IPv6 link is smaller */

#define ETHERTYPE_IP   bpf_htons(0x0800)
#define ETHERTYPE_ARP  bpf_htons(0x0806)
#define ETHERTYPE_IPV6 bpf_htons(0x86dd)

enum ip_proto {
	PROTO_HOPOPTS = 0,
	PROTO_ICMP = 1,
	PROTO_TCP = 6,
	PROTO_UDP = 17,
	PROTO_ROUTING = 43,
	PROTO_FRAGMENT = 44,
	PROTO_AUTH = 51,
	PROTO_ICMP6 = 58,
	PROTO_NONE = 59,
	PROTO_DSTOPTS = 60,
	PROTO_SCTP = 132,
};

struct eth_hdr {
	__u8 dst[6];
	__u8 src[6];
	__be16 proto;
};

struct ip4_hdr {
	__u8 ver_ihl;
	__u8 tos;
	__be16 len;
	__be16 id;
	__be16 frag;
	__u8 ttl;
	__u8 proto;
	__sum16 csum;
	__be32 src;
	__be32 dst;
};

#define IP4_MF	   bpf_htons(0x2000)
#define IP4_OFFSET bpf_htons(0x1fff)
#define IP4_DF	   bpf_htons(0x4000)

struct ip6_hdr {
	__be32 flow;
	__be16 len;
	__u8 next;
	__u8 hops;
	__be32 src[4];
	__be32 dst[4];
};

/* The common head of hop-by-hop, routing and destination options. */
struct ip6_ext {
	__u8 next;
	__u8 len;
};

struct ip6_frag {
	__u8 next;
	__u8 reserved;
	__be16 off;
	__be32 id;
};

#define IP6_MF	   bpf_htons(0x0001)
#define IP6_OFFSET bpf_htons(0xfff8)

struct tcp_hdr {
	__be16 sport;
	__be16 dport;
	__be32 seq;
	__be32 ack;
	__u8 off;
	__u8 flags;
	__be16 window;
	__sum16 csum;
	__be16 urgent;
};

enum tcp_flags {
	TCP_FIN = 0x01,
	TCP_SYN = 0x02,
	TCP_RST = 0x04,
	TCP_ACK = 0x10,
};

struct udp_hdr {
	__be16 sport;
	__be16 dport;
	__be16 len;
	__sum16 csum;
};

struct vxlan_hdr {
	__be32 flags;
	__be32 vni; /* and a byte that is zero */
};

#define VXLAN_HAS_VNI bpf_htonl(0x08000000)

struct icmp_hdr {
	__u8 type;
	__u8 code;
	__sum16 csum;
	__be16 id;
	__be16 seq;
};

enum icmp_type {
	ICMP_ECHO_REPLY = 0,
	ICMP_UNREACH = 3,
	ICMP_ECHO = 8,
	ICMP_TIME = 11,
	ICMP_PARAM = 12,
	ICMP6_UNREACH = 1,
	ICMP6_TOO_BIG = 2,
	ICMP6_TIME = 3,
	ICMP6_PARAM = 4,
	ICMP6_ECHO = 128,
	ICMP6_ECHO_REPLY = 129,
	ICMP6_MLD_QUERY = 130,
	ICMP6_MLD_DONE = 132,
	ICMP6_RS = 133,
	ICMP6_REDIRECT = 137,
	ICMP6_MLD2 = 143,
};

#define ICMP_PORT_UNREACH  3
#define ICMP_FRAG_NEEDED   4
#define ICMP6_PORT_UNREACH 4
