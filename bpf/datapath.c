//go:build ignore

/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */

/*
 * The data path of a node. Each program below is the walk of a packet, or of a
 * system call, through the stages in lib/, in order. DESIGN.md tells the story.
 */

#include <linux/types.h>
#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

#include "lib/conntrack.h"
#include "lib/express.h"
#include "lib/forward.h"
#include "lib/parse.h"
#include "lib/pkt.h"
#include "lib/rate.h"
#include "lib/service.h"
#include "lib/socket.h"
#include "lib/spoof.h"
#include "lib/verdict.h"

/* Go reads these too, and the compiler describes only the types of objects. */
struct shared_types {
	enum hook hook;
	enum reason reason;
	enum scope scope;
	enum ep_flags ep_flags;
	enum ct_flags ct_flags;
	enum svc_flags svc_flags;
	enum be_flags be_flags;
	enum route_kind route_kind;
	enum uplink_flags uplink_flags;
	enum tcp_flags tcp_flags;
	struct event event;
};

const struct shared_types *shared_types __attribute__((unused));

char _license[] SEC("license") = "Dual BSD/GPL";

static __noinline int pod_stages(struct __sk_buff *skb)
{
	struct pkt pkt = { .hook = HOOK_POD, .epoch = epoch };
	int ret;

	ret = parse(skb, &pkt);
	if (!ret)
		ret = spoof_pod(skb, &pkt);
	if (!ret)
		ret = conntrack(&pkt);
	if (!ret)
		ret = service(&pkt, SCOPE_CLUSTER);
	if (!ret)
		ret = forward(skb, &pkt);
	if (!ret)
		ret = rate(skb, &pkt);
	return verdict(skb, &pkt, ret);
}

/* Ingress at the host side of a pod's link: what the pod sends. */
SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	__u32 to = express(skb);

	return to ? verdict_express(skb, HOOK_POD, to) : pod_stages(skb);
}

/* Egress at the host side of a pod's link: what this node's kernel sends it. */
SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	struct pkt pkt = { .hook = HOOK_TOPOD, .act = PASS_HOST };
	int ret;

	ret = parse(skb, &pkt);
	if (!ret)
		ret = rate_to_pod(skb, &pkt);
	if (!ret)
		ret = conntrack(&pkt);
	return verdict(skb, &pkt, ret);
}

static __noinline int net_stages(struct __sk_buff *skb)
{
	struct pkt pkt = { .hook = HOOK_NET, .epoch = epoch };
	int ret;

	ret = parse(skb, &pkt);
	if (!ret)
		ret = spoof_net(skb, &pkt);
	if (!ret)
		ret = conntrack(&pkt);
	if (!ret)
		ret = service(&pkt, SCOPE_OUTSIDE);
	if (!ret)
		ret = forward(skb, &pkt);
	if (!ret)
		ret = rate(skb, &pkt);
	return verdict(skb, &pkt, ret);
}

/* Ingress of an uplink: what other nodes and the outside send. */
SEC("tc")
int from_net(struct __sk_buff *skb)
{
	__u32 to = express(skb);

	return to ? verdict_express(skb, HOOK_NET, to) : net_stages(skb);
}

/* Egress of an uplink: what the node's own sockets send. */
SEC("tc")
int to_net(struct __sk_buff *skb)
{
	struct pkt pkt = { .hook = HOOK_TONET, .act = PASS_HOST };
	int ret;

	/* What is forwarded has been through the stages when it came in. */
	if (skb->ingress_ifindex)
		return ACT_OK;
	ret = parse(skb, &pkt);
	if (!ret)
		ret = conntrack(&pkt);
	return verdict(skb, &pkt, ret);
}

/* Ingress of the overlay: what other nodes send to our pods, and to us. */
SEC("tc")
int from_tun(struct __sk_buff *skb)
{
	struct pkt pkt = { .hook = HOOK_TUN, .epoch = epoch };
	int ret;

	ret = parse(skb, &pkt);
	if (!ret)
		ret = spoof_tun(skb, &pkt);
	if (!ret)
		ret = conntrack(&pkt);
	if (!ret)
		ret = forward(skb, &pkt);
	if (!ret)
		ret = rate(skb, &pkt);
	return verdict(skb, &pkt, ret);
}

SEC("cgroup/connect4")
int sock_connect4(struct bpf_sock_addr *ctx)
{
	return sock_out4(ctx, true);
}

SEC("cgroup/connect6")
int sock_connect6(struct bpf_sock_addr *ctx)
{
	return sock_out6(ctx, true);
}

SEC("cgroup/sendmsg4")
int sock_sendmsg4(struct bpf_sock_addr *ctx)
{
	return sock_out4(ctx, false);
}

SEC("cgroup/sendmsg6")
int sock_sendmsg6(struct bpf_sock_addr *ctx)
{
	return sock_out6(ctx, false);
}

SEC("cgroup/recvmsg4")
int sock_recvmsg4(struct bpf_sock_addr *ctx)
{
	return sock_in4(ctx);
}

SEC("cgroup/recvmsg6")
int sock_recvmsg6(struct bpf_sock_addr *ctx)
{
	return sock_in6(ctx);
}

SEC("cgroup/getpeername4")
int sock_getpeer4(struct bpf_sock_addr *ctx)
{
	struct peer *p = sock_peer(ctx);

	if (p)
		sock_set4(ctx, p);
	return SOCK_ALLOW;
}

SEC("cgroup/getpeername6")
int sock_getpeer6(struct bpf_sock_addr *ctx)
{
	struct peer *p = sock_peer(ctx);

	if (p)
		sock_set6(ctx, p);
	return SOCK_ALLOW;
}
