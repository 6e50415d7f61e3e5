/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/* Addresses: 16 bytes for both families. */

#include <bpf/bpf_endian.h>
#include "types.h"

static __always_inline __be32 *addr_words(struct addr *a)
{
	return (__be32 *)a->b;
}

static __always_inline const __be32 *addr_cwords(const struct addr *a)
{
	return (const __be32 *)a->b;
}

static __always_inline void addr_from4(struct addr *a, __be32 ip)
{
	__be32 *w = addr_words(a);

	w[0] = 0;
	w[1] = 0;
	w[2] = bpf_htonl(0x0000ffff);
	w[3] = ip;
}

static __always_inline void addr_from6(struct addr *a, const __be32 ip[4])
{
	__be32 *w = addr_words(a);

	w[0] = ip[0];
	w[1] = ip[1];
	w[2] = ip[2];
	w[3] = ip[3];
}

static __always_inline __be32 addr_to4(const struct addr *a)
{
	return addr_cwords(a)[3];
}

static __always_inline bool addr_is4(const struct addr *a)
{
	const __be32 *w = addr_cwords(a);

	return !w[0] && !w[1] && w[2] == bpf_htonl(0x0000ffff);
}

static __always_inline bool addr_eq(const struct addr *a, const struct addr *b)
{
	const __be32 *x = addr_cwords(a), *y = addr_cwords(b);

	return x[3] == y[3] && x[2] == y[2] && x[1] == y[1] && x[0] == y[0];
}

static __always_inline bool addr_zero(const struct addr *a)
{
	const __be32 *w = addr_cwords(a);

	return !(w[0] | w[1] | w[2] | w[3]);
}

/* The limited broadcast, 224/4 and ff00::/8. */
static __always_inline bool addr_multicast(const struct addr *a)
{
	if (addr_is4(a))
		return a->b[12] >= 224;
	return a->b[0] == 0xff;
}

/* fe80::/10: never leaves a link, so the data path does not carry it. */
static __always_inline bool addr_link_local6(const struct addr *a)
{
	return a->b[0] == 0xfe && (a->b[1] & 0xc0) == 0x80;
}

/* 127/8 and ::1. */
static __always_inline bool addr_loopback(const struct addr *a)
{
	const __be32 *w = addr_cwords(a);

	if (addr_is4(a))
		return a->b[12] == 127;
	return !w[0] && !w[1] && !w[2] && w[3] == bpf_htonl(1);
}
