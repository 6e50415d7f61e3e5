// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"path/filepath"
)

// Runtimes starts a node with nodeagent and one with containerd's own CRI plugin,
// with neither kubelet nor control plane: what a benchmark compares, on the same
// machine, with the same images and the same OCI runtime.
func Runtimes(ctx context.Context, cfg Config) (*Cluster, error) {
	cfg.Runtime = runtimeBoth
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := cfg.checkPrograms(); err != nil {
		return nil, err
	}
	c := &Cluster{Config: cfg, dir: filepath.Join(cfg.Base, cfg.Name), bare: true}
	return c.up(ctx, []step{
		{"certificates", c.makePKI},
		{"network switch", c.startControlBox},
		{"image registry", c.startRegistry},
		{"nodeagent and containerd", func(ctx context.Context) error {
			for i, kind := range []string{RuntimeNodeagent, RuntimeContainerd} {
				n, err := c.startBox(ctx, i+1, kind)
				if err != nil {
					return err
				}
				if err := n.startAlone(ctx); err != nil {
					return fmt.Errorf("%s: %w", kind, err)
				}
			}
			return c.saveState()
		}},
	})
}

// startAlone starts the node's runtime with pod ranges that nobody else gives it.
func (n *Node) startAlone(ctx context.Context) error {
	cidrs := []string{"10.250.0.0/16", "fd00:250::/64"}
	n.c.AgentExtra = map[string]any{
		"log":        map[string]any{"level": "info"},
		"kubernetes": map[string]any{},
		"network":    map[string]any{"podCIDRs": cidrs},
		"storage":    map[string]any{"enabled": false},
	}
	if err := n.startRuntime(ctx); err != nil {
		return err
	}
	return n.finishRuntime(cidrs)
}

// Peers names the runtimes of the nodes as tests/bench wants them:
// name=socket,pid,cgroup.
func (c *Cluster) Peers() []string {
	out := make([]string, 0, len(c.Nodes))
	for _, n := range c.Nodes {
		out = append(out, fmt.Sprintf("%s=%s,%d,/%s/pods", n.kind, n.CRISocket(), n.PID, n.CgroupRoot()))
	}
	return out
}
