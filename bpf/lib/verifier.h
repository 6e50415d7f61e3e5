/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* What the compiler must not know, so that the verifier gets to know it. */

#include <linux/types.h>

/*
 * A value that the compiler knows nothing of: it neither drops a bound that it
 * could prove, nor merges two checks into one. The verifier only believes what
 * it sees, and that of Linux 6.1 sees less than later ones.
 */
static __always_inline __u32 opaque(__u32 v)
{
	asm volatile("" : "+r"(v));
	return v;
}
