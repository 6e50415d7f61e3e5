// SPDX-License-Identifier: Apache-2.0

// Package dataplane owns the desired state of endpoints, services, policies
// and peers, and makes the kernel agree: Update, Delete, Prune. It knows no
// sandboxes and no Kubernetes objects but those that its compilers take.
package dataplane

import (
	"net"
	"net/netip"
)

// Endpoint is one pod interface as the data path sees it.
type Endpoint struct {
	// ID is the attachment's id, "containerID/ifName".
	ID string
	// Namespace and Name of the pod, for people; may be empty.
	Namespace, Name string
	// IfIndex and IfName of the host side of the link.
	IfIndex int
	IfName  string
	// Addrs are the pod's addresses, at most one per family.
	Addrs []netip.Addr
	// MAC is the address inside the pod, HostMAC that of the host side.
	MAC, HostMAC net.HardwareAddr
	// HostPorts are the pod's host ports.
	HostPorts []HostPort
	// IngressRate and EgressRate limit the pod, bytes per second; 0: unlimited.
	IngressRate, EgressRate uint64
}

// HostPort is one port of the node that leads to an endpoint.
type HostPort struct {
	// Protocol is an IP protocol number: 6, 17 or 132.
	Protocol                uint8
	HostPort, ContainerPort uint16
	// HostIP limits the mapping to one node address; invalid means all.
	HostIP netip.Addr
}

// Node is what the data path has to know of the node it runs on.
type Node struct {
	Name string
	// Zone of the node (topology.kubernetes.io/zone), for services that prefer
	// near backends; may be empty.
	Zone string
	// Addrs are the node's own addresses, primary first in each family.
	Addrs []netip.Addr
	// PodCIDRs are the ranges that this node's pods have their addresses from.
	PodCIDRs []netip.Prefix
	// Uplinks are interface names with a way out; empty: those of the default routes.
	Uplinks []string
	// Masquerade translates pod sources that leave the cluster to a node address.
	Masquerade bool
	// NonMasqueradeCIDRs are destinations that see the pod's own address.
	NonMasqueradeCIDRs []netip.Prefix
}

// Peer is another node.
type Peer struct {
	Name     string
	Addrs    []netip.Addr
	PodCIDRs []netip.Prefix
	// Mode is "native", "vxlan" or "auto" (empty means auto).
	Mode string
	// DSR says that the node takes flows from outside that another node leads
	// to it, and answers them itself.
	DSR bool
}
