/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * What becomes of TCP sockets after connect() gave them a backend: their
 * packets are not translated, so nobody else counts their bytes, or knows that
 * their flows belong to a service.
 */

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>
#include "conntrack.h"
#include "pkt.h"
#include "socket.h"
#include "stat.h"

/*
 * Counts the bytes of a connection to a service when it ends. Its states are
 * asked for when it is established: one call less than from connect() on.
 */
static __always_inline int sock_event(struct bpf_sock_ops *ctx)
{
	struct peer *p;

	if (ctx->op != BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB &&
	    (ctx->op != BPF_SOCK_OPS_STATE_CB || ctx->args[1] != BPF_TCP_CLOSE))
		return 1;
	if (!ctx->sk)
		return 1;
	p = bpf_sk_storage_get(&sk_peer, ctx->sk, 0, 0);
	if (!p || !p->svc)
		return 1;
	if (ctx->op == BPF_SOCK_OPS_ACTIVE_ESTABLISHED_CB)
		bpf_sock_ops_cb_flags_set(ctx, BPF_SOCK_OPS_STATE_CB_FLAG);
	else
		stat_bytes(p->svc, ctx->bytes_acked, ctx->bytes_received);
	return 1;
}

/*
 * The record of a new flow names the service whose backend its socket was
 * given. A packet that crosses from the pod's namespace still has its socket.
 */
static __noinline int sock_tag(struct __sk_buff *skb, struct pkt *pkt)
{
	struct bpf_sock *sk;
	struct peer *p;

	if (!pkt || pkt->known || pkt->svc || pkt->related || pkt->t.proto != PROTO_TCP)
		return 0;
	sk = skb->sk;
	if (!sk)
		return 0;
	sk = bpf_sk_fullsock(sk);
	if (!sk)
		return 0;
	p = bpf_sk_storage_get(&sk_peer, sk, 0, 0);
	if (p) {
		pkt->svc = p->svc;
		pkt->ct_flags |= CT_SOCKET;
	}
	return 0;
}
