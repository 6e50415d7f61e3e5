// SPDX-License-Identifier: Apache-2.0

// Package cni owns a pod's network as four verbs, Attach, Detach, Check and
// Collect, called by the CRI in-process and by the exec'd CNI program alike.
// Every verb may be called twice, out of order, concurrently and after a crash.
package cni

import (
	"errors"
	"net"
	"net/netip"

	"github.com/nodeagent/nodeagent/cni/ipam"
	"github.com/nodeagent/nodeagent/cni/link"
	"github.com/nodeagent/nodeagent/cni/netns"
)

// Errors of the four verbs. The CNI program maps them to the codes of the CNI
// specification, the CRI to gRPC codes; nobody else does.
var (
	// ErrExhausted: no free address is left in the ranges that apply.
	ErrExhausted = ipam.ErrExhausted
	// ErrNotReady: the daemon cannot serve Attach yet (no pod CIDR, not recovered).
	ErrNotReady = errors.New("network not ready")
	// ErrNetNS: the path does not name a network namespace.
	ErrNetNS = netns.ErrNotNetNS
	// ErrExists: the interface exists in the namespace and is not ours.
	ErrExists = link.ErrExists
	// ErrUnknown: no such attachment.
	ErrUnknown = errors.New("unknown attachment")
	// ErrInvalid: a field of the request is malformed.
	ErrInvalid = errors.New("invalid request")
	// ErrBroken: the attachment is not, or no longer, as Attach left it.
	ErrBroken = link.ErrBroken
)

// Key names one attachment: an interface of a sandbox (or CNI container).
type Key struct {
	ContainerID string `json:"containerID"`
	IfName      string `json:"ifName"`
}

// String returns "containerID/ifName", the attachment's id in every record.
func (k Key) String() string { return k.ContainerID + "/" + k.IfName }

// Pod says for whom an attachment is made. All fields may be empty under a
// runtime that does not pass them.
type Pod struct {
	Namespace   string            `json:"namespace,omitempty"`
	Name        string            `json:"name,omitempty"`
	UID         string            `json:"uid,omitempty"`
	Labels      map[string]string `json:"labels,omitempty"`
	Annotations map[string]string `json:"annotations,omitempty"`
}

// PortMapping is one hostPort of a pod.
type PortMapping struct {
	HostPort      uint16 `json:"hostPort"`
	ContainerPort uint16 `json:"containerPort"`
	// Protocol is "tcp", "udp" or "sctp".
	Protocol string `json:"protocol"`
	// HostIP limits the mapping to one address of the node; invalid means all.
	HostIP netip.Addr `json:"hostIP,omitzero"`
}

// Bandwidth limits an attachment; rates in bits per second, bursts in bits.
// Zero means unlimited. Ingress is traffic to the pod.
type Bandwidth struct {
	IngressRate  uint64 `json:"ingressRate,omitempty"`
	IngressBurst uint64 `json:"ingressBurst,omitempty"`
	EgressRate   uint64 `json:"egressRate,omitempty"`
	EgressBurst  uint64 `json:"egressBurst,omitempty"`
}

// Request asks for one attachment.
type Request struct {
	Key
	// Network says who asks: empty for the CRI in this process, else the name
	// of the CNI network. Collect leaves other networks' attachments alone.
	Network string `json:"network,omitempty"`
	// NetNS is the path of the pinned network namespace.
	NetNS        string        `json:"netns"`
	Pod          Pod           `json:"pod,omitzero"`
	PortMappings []PortMapping `json:"portMappings,omitempty"`
	Bandwidth    Bandwidth     `json:"bandwidth,omitzero"`
	// Addrs asks for these addresses, at most one per family; a family of the
	// pool that is not among them is allocated.
	Addrs []netip.Addr `json:"addrs,omitempty"`
	// Ranges has, per address, the stretches to choose it from (the capability
	// ipRanges of CNI); they must lie in pools of the node.
	Ranges [][]ipam.Stretch `json:"ranges,omitempty"`
	// MAC asks for this hardware address inside the pod; nil means: choose one.
	MAC net.HardwareAddr `json:"mac,omitempty"`
	// DNS and CgroupPath are passed to the plugins of foreign networks that
	// declare them; our own network has no use for them.
	DNS        DNS    `json:"dns,omitzero"`
	CgroupPath string `json:"cgroupPath,omitempty"`
}

// DNS is a pod's resolver configuration.
type DNS struct {
	Servers  []string `json:"servers,omitempty"`
	Searches []string `json:"searches,omitempty"`
	Options  []string `json:"options,omitempty"`
}

// Result describes an attachment that is in place.
type Result struct {
	Key
	NetNS       string           `json:"netns"`
	HostIfName  string           `json:"hostIfName"`
	HostIfIndex int              `json:"hostIfIndex"`
	HostMAC     net.HardwareAddr `json:"hostMAC"`
	MAC         net.HardwareAddr `json:"mac"`
	// Addrs are the pod's addresses, host prefixes (/32, /128), IPv4 first.
	Addrs []netip.Prefix `json:"addrs"`
	// Gateways has one address per family in Addrs, in the same order.
	Gateways []netip.Addr `json:"gateways"`
	MTU      int          `json:"mtu"`
}
