/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * Services at the socket: connect() and sendmsg() go to the backend directly,
 * so no packet has to be translated. TCP everywhere. UDP only for sockets of
 * the node's own namespace: a pod's connected UDP socket would stay with a
 * backend that is gone, and per packet its traffic finds the next one.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "addr.h"
#include "config.h"
#include "endpoint.h"
#include "proto.h"
#include "service.h"

#define SOCK_ALLOW 1
#define SOCK_DENY  0

#define ERR_REFUSED 111

#define SOCK_AFFINITY 894 /* two minutes in ticks: as long as a UDP flow */
#define SOCK_CLIENT   1	  /* marks a client that is one socket */

struct peer {
	struct addr addr;
	__be16 port;
	__u16 pad;
	__u32 svc; /* id of the service, 0: unknown */
};

/* The service that a socket was connected to, for getpeername() and statistics. */
struct {
	__uint(type, BPF_MAP_TYPE_SK_STORAGE);
	__uint(map_flags, BPF_F_NO_PREALLOC);
	__type(key, int);
	__type(value, struct peer);
} sk_peer SEC(".maps");

struct sk_key {
	__u64 cookie;
	struct addr addr;
	__be16 port;
	__u16 pad[3];
};

_Static_assert(sizeof(struct sk_key) == 32, "sk_key is a map key: no padding");

/*
 * Backend to service, for what UDP sockets of the node receive; the agent finds
 * sockets here whose backend is gone.
 */
struct {
	__uint(type, BPF_MAP_TYPE_LRU_HASH);
	__type(key, struct sk_key);
	__type(value, struct peer);
	__uint(max_entries, 16384);
} sk_udp SEC(".maps");

static __always_inline void sock_addr4(const struct bpf_sock_addr *ctx, struct addr *a)
{
	addr_from4(a, ctx->user_ip4);
}

static __always_inline void sock_addr6(const struct bpf_sock_addr *ctx, struct addr *a)
{
	__be32 ip[4] = { ctx->user_ip6[0], ctx->user_ip6[1], ctx->user_ip6[2], ctx->user_ip6[3] };

	addr_from6(a, ip);
}

static __always_inline void sock_set4(struct bpf_sock_addr *ctx, const struct peer *to)
{
	ctx->user_ip4 = addr_to4(&to->addr);
	ctx->user_port = to->port;
}

static __always_inline void sock_set6(struct bpf_sock_addr *ctx, const struct peer *to)
{
	const __be32 *w = addr_cwords(&to->addr);

	ctx->user_ip6[0] = w[0];
	ctx->user_ip6[1] = w[1];
	ctx->user_ip6[2] = w[2];
	ctx->user_ip6[3] = w[3];
	ctx->user_port = to->port;
}

static __always_inline bool sock_of_host(struct bpf_sock_addr *ctx)
{
	return bpf_get_netns_cookie(ctx) == cfg_host_cookie;
}

/* A port of the node is meant: by one of its addresses, or by its own loopback. */
static __always_inline bool sock_to_node(struct bpf_sock_addr *ctx, const struct addr *a)
{
	if (addr_loopback(a))
		return sock_of_host(ctx);
	return endpoint_host_at(a);
}

static __always_inline struct svc_value *sock_service(struct bpf_sock_addr *ctx,
						      const struct peer *to)
{
	__u8 proto = (__u8)ctx->protocol;
	struct svc_value *v;

	if (proto != PROTO_TCP && (proto != PROTO_UDP || !sock_of_host(ctx)))
		return NULL;
	v = svc_at(&to->addr, to->port, proto, SCOPE_CLUSTER);
	if (v || !sock_to_node(ctx, &to->addr))
		return v;
	return svc_at_node(&to->addr, to->port, proto, SCOPE_CLUSTER);
}

/* Remembers what a connected socket asked for; NULL: it asked for what it got. */
static __noinline int sock_set_peer(struct bpf_sock_addr *ctx, const struct peer *asked)
{
	struct peer *p;

	if (!ctx->sk)
		return 0;
	if (!asked) {
		bpf_sk_storage_delete(&sk_peer, ctx->sk);
		return 0;
	}
	p = bpf_sk_storage_get(&sk_peer, ctx->sk, 0, BPF_SK_STORAGE_GET_F_CREATE);
	if (p)
		*p = *asked;
	return 0;
}

static __noinline int sock_set_reply(struct bpf_sock_addr *ctx, const struct peer *asked,
				     const struct peer *got)
{
	struct sk_key key = { .addr = got->addr, .port = got->port };

	key.cookie = bpf_get_socket_cookie(ctx);
	bpf_map_update_elem(&sk_udp, &key, asked, BPF_ANY);
	return 0;
}

/*
 * Replaces a destination by a backend: 1 when it did, 0 when there is nothing
 * to replace. Clients are told apart by their namespace: a socket has no
 * source address yet.
 */
static __noinline int sock_translate(struct bpf_sock_addr *ctx, struct peer *to, __u32 connect)
{
	struct addr client = {};
	struct svc_value how;
	struct backend b;
	struct svc_value *v;
	__u64 cookie;

	if (!cfg_services)
		return 0;
	v = sock_service(ctx, to);
	if (!v)
		return 0;
	how = *v;
	how.flags &= (__u16)~SVC_MAGLEV; /* of no connection yet: its row is any */
	cookie = bpf_get_netns_cookie(ctx);
	if (!connect && !(how.flags & SVC_AFFINITY)) {
		/* What one socket sends without connect() stays together, as packets of a flow do. */
		how.flags |= SVC_AFFINITY;
		how.affinity = SOCK_AFFINITY;
		cookie = bpf_get_socket_cookie(ctx);
		client.b[15] = SOCK_CLIENT;
	}
	__builtin_memcpy(&client, &cookie, sizeof(cookie));
	if (!how.count || service_select(&how, &client, 0, &b)) {
		stat_refused(how.id);
		return -ERR_REFUSED;
	}
	if (connect)
		stat_connection(how.id);
	to->addr = b.addr;
	to->port = b.port;
	to->svc = how.id;
	return 1;
}

static __always_inline int sock_out(struct bpf_sock_addr *ctx, struct peer *to, bool connect)
{
	struct peer asked = *to;
	int ret = sock_translate(ctx, to, connect);

	if (ret < 0)
		return ret;
	asked.svc = to->svc;
	if (ret && (ctx->protocol == PROTO_UDP || (cfg_svc_reset && sock_of_host(ctx))))
		sock_set_reply(ctx, &asked, to);
	if (connect && (ret || ctx->protocol == PROTO_UDP))
		sock_set_peer(ctx, ret ? &asked : NULL);
	return ret;
}

static __always_inline int sock_out4(struct bpf_sock_addr *ctx, bool connect)
{
	struct peer to = { .port = (__be16)ctx->user_port };
	int ret;

	sock_addr4(ctx, &to.addr);
	ret = sock_out(ctx, &to, connect);
	if (ret > 0)
		sock_set4(ctx, &to);
	if (ret >= 0)
		return SOCK_ALLOW;
	bpf_set_retval(ret);
	return SOCK_DENY;
}

static __always_inline int sock_out6(struct bpf_sock_addr *ctx, bool connect)
{
	struct peer to = { .port = (__be16)ctx->user_port };
	int ret;

	sock_addr6(ctx, &to.addr);
	ret = sock_out(ctx, &to, connect);
	if (ret > 0)
		sock_set6(ctx, &to);
	if (ret >= 0)
		return SOCK_ALLOW;
	bpf_set_retval(ret);
	return SOCK_DENY;
}

/* What the socket asked for when it got the backend from, if anything. */
static __noinline int sock_asked(struct bpf_sock_addr *ctx, struct peer *from)
{
	struct sk_key key = { .addr = from->addr, .port = from->port };
	struct peer *p;

	if (!cfg_services || ctx->protocol != PROTO_UDP || !sock_of_host(ctx))
		return 0;
	key.cookie = bpf_get_socket_cookie(ctx);
	p = bpf_map_lookup_elem(&sk_udp, &key);
	if (!p)
		return 0;
	*from = *p;
	return 1;
}

static __always_inline int sock_in4(struct bpf_sock_addr *ctx)
{
	struct peer from = { .port = (__be16)ctx->user_port };

	sock_addr4(ctx, &from.addr);
	if (sock_asked(ctx, &from))
		sock_set4(ctx, &from);
	return SOCK_ALLOW;
}

static __always_inline int sock_in6(struct bpf_sock_addr *ctx)
{
	struct peer from = { .port = (__be16)ctx->user_port };

	sock_addr6(ctx, &from.addr);
	if (sock_asked(ctx, &from))
		sock_set6(ctx, &from);
	return SOCK_ALLOW;
}

static __always_inline struct peer *sock_peer(struct bpf_sock_addr *ctx)
{
	if (!cfg_services || !ctx->sk)
		return NULL;
	return bpf_sk_storage_get(&sk_peer, ctx->sk, 0, 0);
}
