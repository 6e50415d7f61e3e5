// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"strings"

	"tags.cncf.io/container-device-interface/pkg/cdi"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/cmd/nodeagent/config"
	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cni/chain"
	"github.com/nodeagent/nodeagent/cri"
)

// addCRI adds the CRI server, which recovers in the background once it listens.
func (g *graph) addCRI(ctx context.Context) error {
	cfg := g.cfg.CRI
	if !cfg.Enabled {
		return nil
	}
	network, err := g.podNetwork()
	if err != nil {
		return err
	}
	devices, err := cdi.NewCache() // of /etc/cdi and /var/run/cdi, read when a container asks
	if err != nil {
		return fmt.Errorf("read CDI specifications: %w", err)
	}
	s, err := cri.New(ctx, cfg.Config, cri.Deps{
		DB: g.db, Containerd: g.containerd, Network: network, Log: g.log, CDI: devices,
		Metrics: g.health.registry, Version: strings.TrimPrefix(version, "v"), Tracing: g.tracing.Provider(),
	})
	if err != nil {
		return err
	}
	g.add("cri", s.Start, s.Stop)
	g.onReload(func(ctx context.Context, next *config.Configuration) error { return s.Reload(ctx, next.CRI.Config) })
	g.nri = s.NRI
	g.routes["GET /v1/pods"] = api.JSON(listPods(s))
	maps.Copy(g.routes, imageRoutes(s.Images()))
	g.addCollector(collectImages(s.Images(), s))
	g.health.check("cri", func(context.Context) error {
		if !s.Ready() {
			return errors.Join(errRecovering, s.Waiting())
		}
		return nil
	})
	return nil
}

// podNetwork is what the CRI's pods are attached to: our network, or the node's
// CNI configuration, in which ours may be one of several.
func (g *graph) podNetwork() (cri.Network, error) {
	cfg := g.cfg.Network
	if g.network != nil && !cfg.Chain.Enabled {
		return ownNetwork{g.network}, nil
	}
	deps := chain.Deps{DB: g.db, Log: g.log}
	if g.network != nil {
		deps.Own, deps.Call = g.network, api.CNICall(g.network, g.log)
	}
	c, err := chain.New(cfg.Chain, deps)
	if err != nil {
		return nil, err
	}
	g.add("cni chain", c.Start, nil)
	g.health.check("cni chain", c.Status)
	return chainNetwork{c, g.network}, nil
}

// ownNetwork is our own network as the CRI uses it.
type ownNetwork struct{ *cni.Network }

// Collect keeps the slots that wait for a pod.
func (n ownNetwork) Collect(ctx context.Context, keys []cni.Key) error {
	return n.Network.Collect(ctx, "", append(keys, n.WarmSlots()...))
}

// chainNetwork is a chain that hands the node's ranges to our own network.
type chainNetwork struct {
	*chain.Chain

	own *cni.Network // nil when all networks are foreign
}

// SetPodCIDRs does nothing for foreign networks, which have ranges of their own.
func (n chainNetwork) SetPodCIDRs(ctx context.Context, cidrs []netip.Prefix) error {
	if n.own == nil {
		return nil
	}
	return n.own.SetPodCIDRs(ctx, cidrs)
}

// Collect keeps our own network's slots that wait for a pod.
func (n chainNetwork) Collect(ctx context.Context, keys []cni.Key) error {
	if n.own != nil {
		keys = append(keys, n.own.WarmSlots()...)
	}
	return n.Chain.Collect(ctx, keys)
}

// errRecovering says that the CRI still compares its records with containerd.
var errRecovering = errors.New("recovering")
