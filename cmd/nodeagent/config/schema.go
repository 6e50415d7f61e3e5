// SPDX-License-Identifier: Apache-2.0

package config

import (
	"errors"
	"fmt"
	"net/netip"

	"github.com/nodeagent/nodeagent/cmd/nodeagent/tracing"
	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cni/chain"
	"github.com/nodeagent/nodeagent/cri"
	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/csi"
	"github.com/nodeagent/nodeagent/dataplane"
	"github.com/nodeagent/nodeagent/kube"
	"github.com/nodeagent/nodeagent/kube/storage"
)

// Configuration is the whole file. Each section belongs to one room, which
// documents its fields, knows its defaults and validates it.
type Configuration struct {
	// APIVersion and Kind are those of the example above.
	APIVersion string            `yaml:"apiVersion"`
	Kind       string            `yaml:"kind"`
	Node       Node              `yaml:"node"`
	Log        Log               `yaml:"log"`
	Tracing    tracing.Config    `yaml:"tracing"`
	Containerd containerd.Config `yaml:"containerd"`
	CRI        CRI               `yaml:"cri"`
	Network    Network           `yaml:"network"`
	Dataplane  dataplane.Config  `yaml:"dataplane"`
	Storage    Storage           `yaml:"storage"`
	Kubernetes kube.Config       `yaml:"kubernetes"`
}

// CRI is the kubelet's runtime and image service.
type CRI struct {
	// Enabled serves the CRI; false leaves pods to another runtime.
	Enabled bool `yaml:"enabled"`

	cri.Config `yaml:",inline"`
}

// Storage is the CSI driver.
type Storage struct {
	// Enabled serves volumes.
	Enabled bool `yaml:"enabled"`
	// Controllers stand for the CSI sidecars; they need an API server.
	Controllers storage.Config `yaml:"controllers"`

	csi.Config `yaml:",inline"`
}

// Network is the pod network: addresses and links, and what of the data path
// is about this node.
type Network struct {
	// Enabled gives pods a network and serves the CNI program; without it pods
	// use the conflist that the CRI finds.
	Enabled bool `yaml:"enabled"`
	// NodeAddrs are the node's own addresses, primary first in each family;
	// empty: those of the Node object, or of the interface of the default route.
	NodeAddrs []netip.Addr `yaml:"nodeAddrs"`
	// Masquerade translates pod sources that leave the cluster to a node address.
	Masquerade bool `yaml:"masquerade"`
	// NonMasqueradeCIDRs are destinations that see the pod's own address.
	NonMasqueradeCIDRs []netip.Prefix `yaml:"nonMasqueradeCIDRs"`
	// Peers are the other nodes where no API server says them.
	Peers []Peer `yaml:"peers"`
	// Chain lets the CRI's pods use the node's CNI configuration.
	Chain chain.Config `yaml:"chain"`

	cni.Config `yaml:",inline"`
}

// Peer is another node.
type Peer struct {
	// Name is the other node's.
	Name string `yaml:"name"`
	// Addrs are its addresses, primary first in each family.
	Addrs []netip.Addr `yaml:"addrs"`
	// PodCIDRs are the ranges of its pods.
	PodCIDRs []netip.Prefix `yaml:"podCIDRs"`
	// Mode is native, vxlan or auto (the default).
	Mode string `yaml:"mode"`
	// DSR says that the node takes flows from outside that others lead to it.
	DSR bool `yaml:"dsr"`
}

// Default returns the configuration of an ordinary node.
func Default() *Configuration {
	return &Configuration{
		APIVersion: APIVersion,
		Kind:       Kind,
		Node:       defaultNode(),
		Log:        Log{Level: "info", Format: "text"},
		Containerd: containerd.Default(),
		CRI:        defaultCRI(),
		Network:    Network{Enabled: true, Masquerade: true, Chain: chain.Default(), Config: cni.Default()},
		Dataplane:  dataplane.Default(),
		Storage:    Storage{Enabled: true, Controllers: storage.Default(), Config: csi.Default()},
		Kubernetes: kube.Default(),
	}
}

// defaultCRI leaves the cgroup driver open: complete asks who runs the machine.
func defaultCRI() CRI {
	c := CRI{Enabled: true, Config: cri.Default()}
	c.CgroupDriver = ""
	return c
}

// complete fills in what depends on the machine and validates every section;
// each fault begins with the field's path from the top.
func (c *Configuration) complete() error {
	var errs []error
	if c.Node.Name == "" {
		name, err := hostName()
		if err != nil {
			errs = append(errs, err)
		}
		c.Node.Name = name
	}
	if c.CRI.CgroupDriver == "" {
		c.CRI.CgroupDriver = cgroupDriver()
	}
	if c.Kubernetes.NodeName == "" {
		c.Kubernetes.NodeName = c.Node.Name
	}
	c.Storage.NodeName = c.Node.Name
	c.Storage.Controllers.Driver = c.Storage.DriverName
	c.Storage.Controllers.TopologyKey = c.Storage.TopologyKey()
	sections := []struct {
		name string
		err  error
	}{
		{"node", c.Node.validate()},
		{"log", c.Log.validate()},
		{"tracing", c.Tracing.Validate()},
		{"containerd", c.Containerd.Validate()},
		{"cri", c.CRI.Validate()},
		{"network", c.Network.validate()},
		{"dataplane", c.Dataplane.Validate()},
		{"storage", c.Storage.Validate()},
		{"storage.controllers", c.Storage.Controllers.Validate()},
		{"network.chain", c.Network.Chain.Validate()},
		{"kubernetes", c.Kubernetes.Validate()},
	}
	for _, s := range sections {
		for _, err := range leaves(s.err) {
			errs = append(errs, fmt.Errorf("%s.%w", s.name, err))
		}
	}
	return errors.Join(errs...)
}

func (n Network) validate() error {
	errs := []error{n.Validate()}
	for i, p := range n.Peers {
		if p.Name == "" || len(p.Addrs) == 0 {
			errs = append(errs, fmt.Errorf("peers[%d]: a name and an address are needed", i))
		}
		if p.Mode != "" && !oneOf(p.Mode, "auto", "native", "vxlan") {
			errs = append(errs, fmt.Errorf("peers[%d].mode: %q is not one of auto, native, vxlan", i, p.Mode))
		}
	}
	return errors.Join(errs...)
}
