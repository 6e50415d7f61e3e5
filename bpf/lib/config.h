/* SPDX-License-Identifier: GPL-2.0-only OR BSD-2-Clause */
#pragma once

/*
 * What is decided when the programs are loaded. The verifier removes the
 * branches that these constants switch off.
 */

#include <linux/bpf.h>
#include <bpf/bpf_endian.h>

/* Serve Kubernetes services. */
volatile const bool cfg_services = true;

/* Count connections and bytes of each service. */
volatile const bool cfg_svc_stats = true;

/* Connections to backends that are gone are reset. */
volatile const bool cfg_svc_reset = false;

/* Lead flows from outside to other nodes that answer them, and take such flows. */
volatile const bool cfg_dsr = false;

/* Earlier programs left flows in another layout: recall.h. */
volatile const bool cfg_recall = false;

/* The cookie of the node's network namespace, whose UDP sockets are translated. */
volatile const __u64 cfg_host_cookie = 0;

/* Flows through the overlay get and lose their outer headers without its device. */
volatile const bool cfg_tun_direct = true;

/* UDP port of the overlay. */
volatile const __be16 cfg_tun_port = bpf_htons(8472);

/* Network identifier of the overlay. */
volatile const __u32 cfg_vni = 1;

/* The ports that translated flows get, host order, both included. */
volatile const __u16 cfg_snat_min = 61000;
volatile const __u16 cfg_snat_max = 65535;
