// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/dataplane"
	"github.com/nodeagent/nodeagent/kube"
)

// addNetwork adds the data path and, above it, the pod network.
func (g *graph) addNetwork(context.Context) error {
	cfg := g.cfg.Network
	dp, err := dataplane.New(g.cfg.Dataplane, dataplane.Deps{
		Log: g.log, Policies: g.cfg.Kubernetes.Enabled(), OnGrow: g.tellGrown,
	})
	if err != nil {
		return err
	}
	g.dataplane = dp
	for _, c := range []prometheus.Collector{dp.Collector(), dp.ServiceCollector()} {
		if err := g.health.registry.Register(c); err != nil {
			return fmt.Errorf("register metrics of the data path: %w", err)
		}
	}
	maps.Copy(g.routes, dataplaneRoutes(dp))
	maps.Copy(g.routes, serviceRoutes(dp))
	maps.Copy(g.routes, policyRoutes(dp))
	if cfg.Enabled {
		if err := g.newNetwork(); err != nil {
			return err
		}
	}
	g.add("data path", func(ctx context.Context) error {
		if err := g.tellNode(ctx); err != nil {
			return err
		}
		return dp.Start(ctx)
	}, dp.Stop)
	if n := g.network; n != nil {
		g.add("pod network", n.Start, n.Stop)
		g.addCollector(collectNetwork(n))
		g.health.check("network", n.Status)
	}
	return nil
}

// newNetwork makes the pod network. The host's settings come before the data
// path, so that each change is logged by name.
func (g *graph) newNetwork() error {
	n, err := cni.New(g.cfg.Network.Config, cni.Deps{
		DB: g.db, Dataplane: g.dataplane, Tunnel: g.cfg.Dataplane.Tunnel.Device,
		Socket: g.runPath("api.sock"), Log: g.log, Metrics: g.health.registry,
	})
	if err != nil {
		return err
	}
	g.network = n
	g.add("host settings", func(ctx context.Context) error {
		_, err := n.Prepare(ctx)
		return err
	}, nil)
	for verb, h := range api.CNIRoutes(n, g.log) {
		g.routes[verb] = g.tracing.Handler(verb, h)
	}
	maps.Copy(g.routes, api.NetworkRoutes(n))
	return nil
}

// tellNode says what is known of the node before anything runs: what the
// configuration says and, with an API server, what that said last.
func (g *graph) tellNode(ctx context.Context) error {
	if !g.cfg.Kubernetes.Enabled() {
		return g.dataplane.SetNode(ctx, g.baseNode())
	}
	return g.nodes().recall(ctx, g.baseNode())
}

func (g *graph) nodes() *rememberer {
	return &rememberer{db: g.db, node: g.dataplane, peers: g.dataplane}
}

// baseNode is what configuration says of this node; the Node object adds to it.
func (g *graph) baseNode() dataplane.Node {
	cfg := g.cfg.Network
	return dataplane.Node{
		Name: g.cfg.Node.Name, Addrs: cfg.NodeAddrs, PodCIDRs: cfg.PodCIDRs,
		Uplinks: g.cfg.Dataplane.Uplinks, Masquerade: cfg.Masquerade,
		NonMasqueradeCIDRs: cfg.NonMasqueradeCIDRs,
	}
}

// addKubernetes adds the watcher of the API server or of a directory of
// manifests. Without either, configuration alone says who the peers are.
func (g *graph) addKubernetes(context.Context) error {
	cfg := g.cfg.Kubernetes
	if !cfg.Enabled() {
		peers := g.configuredPeers()
		g.add("configured peers", func(ctx context.Context) error {
			return g.dataplane.UpdatePeers(ctx, peers)
		}, nil)
		return nil
	}
	client, err := kube.Connect(cfg, version)
	if err != nil {
		return err
	}
	g.kube = client
	deps := kube.Deps{
		Log: g.log, Metrics: g.health.registry, Client: client,
		BaseNode: g.baseNode(), DSR: g.cfg.Dataplane.DSR(), Node: g.nodes(), Peers: g.nodes(),
	}
	if g.network != nil {
		deps.PodCIDRs = g.network
	}
	if g.cfg.Dataplane.Services {
		deps.Services = g.dataplane
	}
	if g.cfg.Dataplane.Policies {
		deps.Policies = g.dataplane
	}
	w, err := kube.New(cfg, deps)
	if err != nil {
		return err
	}
	g.watcher = w
	g.add("kubernetes watcher", w.Start, w.Stop)
	return nil
}

func (g *graph) configuredPeers() []dataplane.Peer {
	out := make([]dataplane.Peer, 0, len(g.cfg.Network.Peers))
	for _, p := range g.cfg.Network.Peers {
		out = append(out, dataplane.Peer{Name: p.Name, Addrs: p.Addrs, PodCIDRs: p.PodCIDRs, Mode: p.Mode, DSR: p.DSR})
	}
	return out
}
