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
#include "lib/hold.h"
#include "lib/mode.h"
#include "lib/parse.h"
#include "lib/pkt.h"
#include "lib/policy.h"
#include "lib/rate.h"
#include "lib/relay.h"
#include "lib/routed.h"
#include "lib/service.h"
#include "lib/socket.h"
#include "lib/sockops.h"
#include "lib/spoof.h"
#include "lib/verdict.h"
#include "lib/xdp.h"

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
	enum mode mode;
	struct event event;
};

const struct shared_types *shared_types __attribute__((unused));

char _license[] SEC("license") = "Dual BSD/GPL";

/* What comes in takes every stage that its hook has. */
static __always_inline int incoming(struct __sk_buff *skb, __u8 hook)
{
	struct pkt pkt = { .hook = hook, .epoch = epoch };
	int ret;

	ret = parse(skb, &pkt);
	if (!ret)
		ret = spoof(skb, &pkt, hook);
	if (!ret)
		ret = conntrack(&pkt);
	if (!ret)
		ret = service(&pkt, hook == HOOK_POD ? SCOPE_CLUSTER : SCOPE_OUTSIDE);
	if (!ret && cfg_svc_reset && hook == HOOK_POD)
		sock_tag(skb, &pkt);
	if (!ret)
		mode_carry(&pkt);
	if (!ret && !pkt.known)
		ret = policy(&pkt);
	if (!ret)
		ret = forward(skb, &pkt);
	if (!ret)
		ret = rate(skb, &pkt);
	return verdict(skb, &pkt, ret);
}

/*
 * What this node's kernel sends is only recognized: replies are turned back.
 * The node itself may speak to its pods, whatever their policies; what it routes
 * to them for others is judged.
 */
static __always_inline int outgoing(struct __sk_buff *skb, __u8 hook)
{
	struct pkt pkt = { .hook = hook, .act = PASS_HOST };
	int ret;

	ret = parse(skb, &pkt);
	if (!ret && hook == HOOK_TOPOD)
		ret = rate_to_pod(skb, &pkt);
	if (!ret)
		ret = conntrack(&pkt);
	if (!ret && skb->ingress_ifindex)
		ret = routed(skb, &pkt);
	return verdict(skb, &pkt, ret);
}

/* Calls, so that their frames do not add to that of express. */
static __noinline int pod_stages(struct __sk_buff *skb)
{
	return incoming(skb, HOOK_POD);
}

static __noinline int net_stages(struct __sk_buff *skb)
{
	return incoming(skb, HOOK_NET);
}

static __noinline int tun_stages(struct __sk_buff *skb)
{
	return incoming(skb, HOOK_TUN);
}

/* Ingress at the host side of a pod's link: what the pod sends. */
SEC("tc")
int from_pod(struct __sk_buff *skb)
{
	__u32 to = express(skb, HOOK_POD);
	int act = ACT_OK;

	if (to & LANE_WAY)
		act = verdict_way(skb, to & ~LANE_WAY);
	else if (to)
		return verdict_lane(skb, HOOK_POD, to);
	return act == ACT_OK ? pod_stages(skb) : act;
}

/* Ingress of an uplink: what other nodes and the outside send. */
SEC("tc")
int from_net(struct __sk_buff *skb)
{
	__u32 to = express(skb, HOOK_NET);

	if (to == EXPRESS_HOST)
		return verdict_outer(skb);
	return to ? verdict_lane(skb, HOOK_NET, to) : net_stages(skb);
}

/* Before from_net, where the driver can: what only passes through. */
SEC("xdp.frags")
int xdp_net(struct xdp_md *ctx)
{
	return xdp_pass_through(ctx);
}

/* In the place of xdp_net while links are given other programs and tables. */
SEC("xdp.frags")
int xdp_idle(struct xdp_md *ctx)
{
	(void)ctx;
	return XDP_PASS;
}

/* Ingress of the overlay: what other nodes send to our pods, and to us. */
SEC("tc")
int from_tun(struct __sk_buff *skb)
{
	__u32 to = express(skb, HOOK_TUN);

	return to ? verdict_lane(skb, HOOK_TUN, to) : tun_stages(skb);
}

/* Egress at the host side of a pod's link: what this node's kernel sends it. */
SEC("tc")
int to_pod(struct __sk_buff *skb)
{
	return outgoing(skb, HOOK_TOPOD);
}

/*
 * Egress of an uplink; what is forwarded has been through the stages when it
 * came in, unless the kernel carries it.
 */
SEC("tc")
int to_net(struct __sk_buff *skb)
{
	return skb->ingress_ifindex && mode_get() == MODE_OURS ? ACT_OK : outgoing(skb, HOOK_TONET);
}

SEC("tc")
int relay_from_pod(struct __sk_buff *skb)
{
	return relay(skb, HOOK_POD);
}

SEC("tc")
int relay_from_net(struct __sk_buff *skb)
{
	return relay(skb, HOOK_NET);
}

SEC("tc")
int relay_from_tun(struct __sk_buff *skb)
{
	return relay(skb, HOOK_TUN);
}

SEC("tc")
int relay_to_pod(struct __sk_buff *skb)
{
	return relay(skb, HOOK_TOPOD);
}

SEC("tc")
int relay_to_net(struct __sk_buff *skb)
{
	return relay(skb, HOOK_TONET);
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

/* The life of TCP sockets that were translated. */
SEC("sockops")
int sock_ops(struct bpf_sock_ops *ctx)
{
	return sock_event(ctx);
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

/* Run by the agent. */
SEC("syscall")
int ct_hold(void *ctx)
{
	(void)ctx;
	bpf_for_each_map_elem(&ct, hold_one, NULL, 0);
	return 0;
}
