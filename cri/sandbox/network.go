// SPDX-License-Identifier: Apache-2.0

package sandbox

import (
	"context"
	"fmt"
	"net/netip"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	"k8s.io/apimachinery/pkg/api/resource"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cri/store"
)

// ifName is the pod's interface; the kubelet's metrics and stats expect it.
const ifName = "eth0"

// Network gives pods their network. Every verb may be called twice and out of
// order; Detach of what was never attached succeeds.
type Network interface {
	Attach(ctx context.Context, r cni.Request) (*cni.Result, error)
	Detach(ctx context.Context, k cni.Key) error
	// Status says why Attach would fail now, or nil.
	Status(ctx context.Context) error
}

// Attachments are the keys of all sandboxes that may be attached.
func (m *Manager) Attachments() []cni.Key {
	var keys []cni.Key
	for _, sb := range m.deps.Store.Sandboxes.Select(func(s *store.Sandbox) bool { return s.NetworkUp }) {
		keys = append(keys, cni.Key{ContainerID: sb.ID, IfName: ifName})
	}
	return keys
}

// Annotations by which a pod asks for a limit of its bandwidth.
const (
	annotationIngress = "kubernetes.io/ingress-bandwidth"
	annotationEgress  = "kubernetes.io/egress-bandwidth"
)

// networkRequest translates a sandbox to the request for its attachment.
func networkRequest(sb *store.Sandbox) (cni.Request, error) {
	cfg := sb.Config.M
	md := cfg.GetMetadata()
	r := cni.Request{
		Key:   cni.Key{ContainerID: sb.ID, IfName: ifName},
		NetNS: sb.Namespaces.Net,
		Pod: cni.Pod{
			Namespace: md.GetNamespace(), Name: md.GetName(), UID: md.GetUid(),
			Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(),
		},
		DNS: cni.DNS{
			Servers: cfg.GetDnsConfig().GetServers(), Searches: cfg.GetDnsConfig().GetSearches(), Options: cfg.GetDnsConfig().GetOptions(),
		},
		CgroupPath: cfg.GetLinux().GetCgroupParent(),
	}
	for i, p := range cfg.GetPortMappings() {
		m, ok, err := portMapping(p)
		if err != nil {
			return r, fmt.Errorf("port_mappings[%d]: %w", i, err)
		}
		if ok {
			r.PortMappings = append(r.PortMappings, m)
		}
	}
	var err error
	if r.Bandwidth.IngressRate, err = bandwidth(cfg.GetAnnotations(), annotationIngress); err != nil {
		return r, err
	}
	r.Bandwidth.EgressRate, err = bandwidth(cfg.GetAnnotations(), annotationEgress)
	return r, err
}

// portMapping translates one mapping; ok is false for those without a host
// port, which the kubelet sends for information only.
func portMapping(p *runtimeapi.PortMapping) (m cni.PortMapping, ok bool, err error) {
	if p.GetHostPort() == 0 {
		return m, false, nil
	}
	if p.GetHostPort() < 0 || p.GetHostPort() > 65535 {
		return m, false, fmt.Errorf("host_port %d is out of range: %w", p.GetHostPort(), errdefs.ErrInvalidArgument)
	}
	if p.GetContainerPort() <= 0 || p.GetContainerPort() > 65535 {
		return m, false, fmt.Errorf("container_port %d is out of range: %w", p.GetContainerPort(), errdefs.ErrInvalidArgument)
	}
	m.HostPort, m.ContainerPort = uint16(p.GetHostPort()), uint16(p.GetContainerPort())
	switch p.GetProtocol() {
	case runtimeapi.Protocol_TCP:
		m.Protocol = "tcp"
	case runtimeapi.Protocol_UDP:
		m.Protocol = "udp"
	case runtimeapi.Protocol_SCTP:
		m.Protocol = "sctp"
	default:
		return m, false, fmt.Errorf("unknown protocol %d: %w", p.GetProtocol(), errdefs.ErrInvalidArgument)
	}
	if ip := p.GetHostIp(); ip != "" {
		if m.HostIP, err = netip.ParseAddr(ip); err != nil {
			return m, false, fmt.Errorf("host_ip %q is no address: %w", ip, errdefs.ErrInvalidArgument)
		}
	}
	return m, true, nil
}

// bandwidth reads a rate in bits per second; absent means unlimited.
func bandwidth(annotations map[string]string, name string) (uint64, error) {
	s, ok := annotations[name]
	if !ok {
		return 0, nil
	}
	q, err := resource.ParseQuantity(s)
	if err != nil || q.Value() <= 0 {
		return 0, fmt.Errorf("annotation %s: %q is not a rate: %w", name, s, errdefs.ErrInvalidArgument)
	}
	return uint64(q.Value()), nil
}

// raiseLoopback brings up lo in the calling thread's network namespace.
func raiseLoopback() error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("raise loopback: %w", err)
	}
	defer unix.Close(fd) //nolint:errcheck // a socket that carried nothing
	ifr, err := unix.NewIfreq("lo")
	if err != nil {
		return fmt.Errorf("raise loopback: %w", err)
	}
	ifr.SetUint16(unix.IFF_UP | unix.IFF_RUNNING)
	if err := unix.IoctlIfreq(fd, unix.SIOCSIFFLAGS, ifr); err != nil {
		return fmt.Errorf("raise loopback: %w", err)
	}
	return nil
}
