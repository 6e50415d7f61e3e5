// SPDX-License-Identifier: Apache-2.0

package dataplane

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// Config of the data path.
type Config struct {
	// BPFFS is the directory below a mounted BPF file system that holds the
	// pins, in "v1/maps" and "v1/links". It is created; when no BPF file system
	// is mounted there or above, one is mounted on its parent.
	BPFFS string `yaml:"bpffs"`
	// Cgroup is the cgroup v2 directory below which sockets are translated at
	// connect() and sendmsg(). Empty: the root of the cgroup v2 hierarchy.
	Cgroup string `yaml:"cgroup"`
	// SocketServices translates services at the socket; without it they are
	// translated per packet only, and processes of the node do not reach them.
	SocketServices bool `yaml:"socketServices"`
	// Services serves Kubernetes services; false leaves them to kube-proxy.
	Services bool `yaml:"services"`
	// Policies enforces Kubernetes network policies.
	Policies bool `yaml:"policies"`
	// Uplinks are interfaces with a way out; empty: those of the default routes
	// and those that carry an address of the node.
	Uplinks []string `yaml:"uplinks"`
	// Tunnel configures the overlay between nodes.
	Tunnel TunnelConfig `yaml:"tunnel"`
	// SNATPorts is the range that masqueraded flows get their ports from. It
	// must not overlap the range of ephemeral ports of the node's own sockets,
	// nor that of NodePorts.
	SNATPorts PortRange `yaml:"snatPorts"`
	// ServiceOptions are what services can do beyond Kubernetes' semantics.
	ServiceOptions ServiceOptions `yaml:"serviceOptions"`
	// Maps are the sizes of the maps, in entries.
	Maps MapSizes `yaml:"maps"`
	// Timeouts of idle flows.
	Timeouts Timeouts `yaml:"timeouts"`
}

// TunnelConfig configures the VXLAN device between nodes.
type TunnelConfig struct {
	// Port is the UDP port of the overlay.
	Port uint16 `yaml:"port"`
	// VNI is the network identifier.
	VNI uint32 `yaml:"vni"`
	// Device is the name of the device.
	Device string `yaml:"device"`
	// Direct gives flows that have begun their outer headers, and takes them off,
	// without the device: faster, and past the node's netfilter and IPsec.
	Direct bool `yaml:"direct"`
}

// PortRange is a range of ports, both ends included.
type PortRange struct {
	// Min and Max are the first and the last port.
	Min uint16 `yaml:"min"`
	Max uint16 `yaml:"max"`
}

// ServiceOptions are what services can do beyond Kubernetes' semantics.
type ServiceOptions struct {
	// Metrics counts connections, refusals and bytes per service.
	Metrics bool `yaml:"metrics"`
	// MaxMetrics is how many ports of services have counters of their own; the
	// rest shares one set, whose namespace and name are empty.
	MaxMetrics uint32 `yaml:"maxMetrics"`
	// ResetConnections ends TCP connections to a backend that its service has
	// lost for good; without it they end by themselves. A backend that
	// terminates, and still serves, is not lost yet.
	ResetConnections bool `yaml:"resetConnections"`
	// ExternalMode says how flows from outside reach a backend of another node:
	// "snat" (the node asks in its own name, and the answer comes back through
	// it), "dsr" (the backend's node answers the client itself, whose address
	// the backend sees), "hybrid" (dsr for TCP, snat for the rest) or
	// "annotated" (snat, but for services that say otherwise). With any but
	// "snat" a service may say it itself: the annotation
	// nodeagent.dev/external-mode.
	ExternalMode string `yaml:"externalMode"`
	// XDP carries flows from outside that only pass through this node, to a
	// backend elsewhere, in the driver of the uplink: "off", "auto" (where the
	// driver can, but for veth) or "native" (veth too).
	XDP string `yaml:"xdp"`
}

// Modes of ServiceOptions.ExternalMode.
const (
	ExternalSNAT      = service.ModeSNAT
	ExternalDSR       = service.ModeDSR
	ExternalHybrid    = service.ModeHybrid
	ExternalAnnotated = "annotated"
)

// DSR says whether this node leads flows from outside to others, and takes what
// they lead to it: they have to be told (Peer.DSR).
func (c Config) DSR() bool { return c.Services && c.ServiceOptions.ExternalMode != ExternalSNAT }

// MapSizes are the capacities of the maps, in entries. A larger one takes effect
// with the next start, a smaller one with the next boot.
type MapSizes struct {
	// Conntrack is for records of flows; a translated flow has two.
	Conntrack uint32 `yaml:"conntrack"`
	// Endpoints is for addresses of pods and of the node.
	Endpoints uint32 `yaml:"endpoints"`
	// Services is for frontends, Backends for endpoints behind them: they grow by themselves.
	Services uint32 `yaml:"services"`
	Backends uint32 `yaml:"backends"`
	// Routes is for ranges of other nodes.
	Routes uint32 `yaml:"routes"`
	// Affinity is for clients of services with session affinity; it grows by itself.
	Affinity uint32 `yaml:"affinity"`
	// Identities and Rules are network policy's.
	Identities uint32 `yaml:"identities"`
	Rules      uint32 `yaml:"rules"`
}

// Timeouts after which an idle flow is forgotten.
type Timeouts struct {
	// TCPSyn is for connections that are not established yet.
	TCPSyn time.Duration `yaml:"tcpSyn"`
	// TCPEstablished is for established connections.
	TCPEstablished time.Duration `yaml:"tcpEstablished"`
	// TCPClosing is for connections that saw a FIN or a RST.
	TCPClosing time.Duration `yaml:"tcpClosing"`
	// UDP is for flows seen in one direction only, or for a moment.
	UDP time.Duration `yaml:"udp"`
	// UDPStream is for flows seen in both directions.
	UDPStream time.Duration `yaml:"udpStream"`
	// ICMP is for echo requests.
	ICMP time.Duration `yaml:"icmp"`
}

// Default returns the configuration of an ordinary node.
func Default() Config {
	return Config{
		BPFFS:          "/sys/fs/bpf/nodeagent",
		SocketServices: true,
		Services:       true,
		Policies:       true,
		Tunnel:         TunnelConfig{Port: 8472, VNI: 1, Device: "nvx0", Direct: true},
		SNATPorts:      PortRange{Min: 61000, Max: 65535},
		ServiceOptions: ServiceOptions{Metrics: true, MaxMetrics: 1024, ExternalMode: ExternalSNAT, XDP: XDPOff},
		Maps: MapSizes{
			Conntrack: 131072, Endpoints: 4096, Services: 65536,
			Backends: 262144, Routes: 65536, Affinity: 16384, Identities: 131072, Rules: 131072,
		},
		Timeouts: Timeouts{
			TCPSyn: time.Minute, TCPEstablished: 8000 * time.Second, TCPClosing: 20 * time.Second,
			UDP: 30 * time.Second, UDPStream: 2 * time.Minute, ICMP: 30 * time.Second,
		},
	}
}

// Validate reports all faults of the configuration at once.
func (c Config) Validate() error {
	var errs []error
	fault := func(format string, args ...any) { errs = append(errs, fmt.Errorf(format, args...)) }
	if !filepath.IsAbs(c.BPFFS) {
		fault("bpffs: %q is not an absolute path", c.BPFFS)
	}
	if c.Cgroup != "" && !filepath.IsAbs(c.Cgroup) {
		fault("cgroup: %q is not an absolute path", c.Cgroup)
	}
	for i, name := range c.Uplinks {
		if !validIfName(name) {
			fault("uplinks[%d]: %q is not an interface name", i, name)
		}
	}
	if c.Tunnel.Port == 0 {
		fault("tunnel.port: must not be 0")
	}
	if c.Tunnel.VNI >= 1<<24 {
		fault("tunnel.vni: %d does not fit in 24 bits", c.Tunnel.VNI)
	}
	if !validIfName(c.Tunnel.Device) {
		fault("tunnel.device: %q is not an interface name", c.Tunnel.Device)
	}
	if c.SNATPorts.Min < 1024 || c.SNATPorts.Min > c.SNATPorts.Max {
		fault("snatPorts: %d-%d is not a range of unprivileged ports", c.SNATPorts.Min, c.SNATPorts.Max)
	}
	if n := c.ServiceOptions.MaxMetrics; n < 1 || n > 1<<20 {
		fault("serviceOptions.maxMetrics: %d is not between 1 and %d", n, 1<<20)
	}
	if m := c.ServiceOptions.ExternalMode; !slices.Contains([]string{ExternalSNAT, ExternalDSR, ExternalHybrid, ExternalAnnotated}, m) {
		fault("serviceOptions.externalMode: %q is not one of snat, dsr, hybrid, annotated", m)
	}
	if m := c.ServiceOptions.XDP; !slices.Contains([]string{XDPOff, XDPAuto, XDPNative}, m) {
		fault("serviceOptions.xdp: %q is not one of off, auto, native", m)
	}
	errs = append(errs, c.Maps.validate()...)
	errs = append(errs, c.Timeouts.validate()...)
	return errors.Join(errs...)
}

func (m MapSizes) validate() []error {
	var errs []error
	for _, f := range []struct {
		name string
		got  uint32
		low  uint32
	}{
		{"conntrack", m.Conntrack, 1024},
		{"endpoints", m.Endpoints, 64},
		{"services", m.Services, 64},
		{"backends", m.Backends, 64},
		{"routes", m.Routes, 64},
		{"affinity", m.Affinity, 64},
		{"identities", m.Identities, 64},
		{"rules", m.Rules, 64},
	} {
		if f.got < f.low || f.got > 1<<24 {
			errs = append(errs, fmt.Errorf("maps.%s: %d is not between %d and %d", f.name, f.got, f.low, 1<<24))
		}
	}
	return errs
}

func (t Timeouts) validate() []error {
	var errs []error
	for _, f := range []struct {
		name string
		got  time.Duration
	}{
		{"tcpSyn", t.TCPSyn},
		{"tcpEstablished", t.TCPEstablished},
		{"tcpClosing", t.TCPClosing},
		{"udp", t.UDP},
		{"udpStream", t.UDPStream},
		{"icmp", t.ICMP},
	} {
		if f.got < time.Second {
			errs = append(errs, fmt.Errorf("timeouts.%s: %s is less than a second", f.name, f.got))
		}
	}
	return errs
}

// validIfName follows the kernel's dev_valid_name.
func validIfName(name string) bool {
	if name == "" || len(name) > 15 || name == "." || name == ".." {
		return false
	}
	for _, r := range name {
		if r == '/' || r == ':' || r <= ' ' {
			return false
		}
	}
	return true
}

// validAddr says whether an address can be a pod's or a node's.
func validAddr(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && !a.Is4In6() && !a.IsUnspecified() &&
		!a.IsMulticast() && !a.IsLoopback()
}
