// SPDX-License-Identifier: Apache-2.0

package cni

import (
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"

	"github.com/nodeagent/nodeagent/cni/conflist"
	"github.com/nodeagent/nodeagent/cni/ipam"
	"github.com/nodeagent/nodeagent/cni/shim"
)

// Config of the pod network.
type Config struct {
	// PodCIDRs are the node's ranges when nobody else says them (the Node
	// object, the kubelet). Several per family are allowed.
	PodCIDRs []netip.Prefix `yaml:"podCIDRs"`
	// Pools are further ranges, for pods that ask for one by annotation or
	// whose namespace is listed.
	Pools []Pool `yaml:"pools"`
	// MTU of the pods' devices; 0 means that of the uplink.
	MTU int `yaml:"mtu"`
	// RouteMTU is that of the pods' default routes; 0 means that of the tunnel
	// to other nodes while there is one, else the device's.
	RouteMTU int `yaml:"routeMTU"`
	// Quarantine is how long an address rests before another pod may have it.
	Quarantine time.Duration `yaml:"quarantine"`
	// ReconcileInterval is the time between two looks for attachments whose pod
	// is gone; nothing is freed before two looks agree.
	ReconcileInterval time.Duration `yaml:"reconcileInterval"`
	// LinkPrefix begins the names of the host ends.
	LinkPrefix string `yaml:"linkPrefix"`
	// QueueDir keeps the deletes of the CNI program while the daemon is away.
	QueueDir string `yaml:"queueDir"`
	// Conflist is the file by which other runtimes find this network.
	Conflist conflist.Config `yaml:"conflist"`
}

// Pool is a named range of addresses.
type Pool struct {
	// Name is what annotations and listings call it.
	Name string `yaml:"name"`
	// CIDRs are its ranges, of either family.
	CIDRs []netip.Prefix `yaml:"cidrs"`
	// Namespaces whose pods have their addresses from this pool by default.
	Namespaces []string `yaml:"namespaces"`
}

// Default returns the configuration of a node that learns its ranges at run time.
func Default() Config {
	return Config{
		Quarantine:        30 * time.Second,
		ReconcileInterval: time.Minute,
		LinkPrefix:        "nap",
		QueueDir:          shim.DefaultQueue,
		Conflist:          conflist.Default(),
	}
}

// minMTU is what IPv6 demands of a link (RFC 8200, section 5).
const minMTU = 1280

// maxLinkPrefix leaves room in an interface name for a hash without collisions.
const maxLinkPrefix = 5

// Validate reports all faults at once, each prefixed with the field's path.
func (c Config) Validate() error {
	errs := c.validatePools()
	fault := func(bad bool, format string, args ...any) {
		if bad {
			errs = append(errs, fmt.Errorf(format, args...))
		}
	}
	fault(c.MTU != 0 && (c.MTU < minMTU || c.MTU > 65535), "mtu: %d is not between %d and 65535", c.MTU, minMTU)
	fault(c.RouteMTU != 0 && (c.RouteMTU < minMTU || c.RouteMTU > 65535),
		"routeMTU: %d is not between %d and 65535", c.RouteMTU, minMTU)
	fault(c.MTU != 0 && c.RouteMTU > c.MTU, "routeMTU: %d is more than mtu %d", c.RouteMTU, c.MTU)
	fault(c.Quarantine < 0, "quarantine: %s is negative", c.Quarantine)
	fault(c.ReconcileInterval <= 0, "reconcileInterval: %s is not positive", c.ReconcileInterval)
	fault(c.LinkPrefix == "" || len(c.LinkPrefix) > maxLinkPrefix || strings.ContainsAny(c.LinkPrefix, "/:. \t"),
		"linkPrefix: %q must have 1 to %d characters, none of them /, :, . or space", c.LinkPrefix, maxLinkPrefix)
	fault(c.QueueDir == "" || c.QueueDir[0] != '/', "queueDir: %q is not an absolute path", c.QueueDir)
	if c.Conflist.Enabled {
		errs = append(errs, prefixed("conflist.", c.Conflist.Validate())...)
	}
	return errors.Join(errs...)
}

// prefixed puts a path before each fault of a joined error.
func prefixed(path string, err error) (out []error) {
	if err == nil {
		return nil
	}
	if joined, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range joined.Unwrap() {
			out = append(out, prefixed(path, e)...)
		}
		return out
	}
	return []error{fmt.Errorf("%s%w", path, err)}
}

func (c Config) validatePools() []error {
	var errs []error
	all := map[string][]netip.Prefix{"podCIDRs": c.PodCIDRs}
	namespaces := map[string]int{}
	names := map[string]int{}
	for i, p := range c.Pools {
		path := fmt.Sprintf("pools[%d]", i)
		if p.Name == "" || p.Name == ipam.DefaultPool {
			errs = append(errs, fmt.Errorf("%s.name: %q is not a name for a pool", path, p.Name))
		} else if first, ok := names[p.Name]; ok {
			errs = append(errs, fmt.Errorf("%s.name: pools[%d] has the same name %q", path, first, p.Name))
		}
		names[p.Name] = i
		if len(p.CIDRs) == 0 {
			errs = append(errs, fmt.Errorf("%s.cidrs: must not be empty", path))
		}
		all[path+".cidrs"] = p.CIDRs
		for j, ns := range p.Namespaces {
			if first, ok := namespaces[ns]; ok {
				errs = append(errs, fmt.Errorf("%s.namespaces[%d]: pools[%d] has namespace %q too", path, j, first, ns))
			}
			namespaces[ns] = i
		}
	}
	if err := ipam.CheckPools(all); err != nil {
		errs = append(errs, err)
	}
	return errs
}
