/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

#include <linux/bpf.h>
#include <bpf/bpf_helpers.h>

/*
 * Time in ticks of 2^27 ns (134 ms) of CLOCK_MONOTONIC. The coarse clock costs
 * a load, the precise one 35 ns on virtual machines; u32 wraps after 18 years.
 */
#define TICK_SHIFT 27

static __always_inline __u32 ticks(void)
{
	return (__u32)(bpf_ktime_get_coarse_ns() >> TICK_SHIFT);
}
