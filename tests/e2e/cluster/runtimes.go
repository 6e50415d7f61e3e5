// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"fmt"
	"path/filepath"
)

// otherHandler is the runtime handler of Config.OCI.
const otherHandler = "other"

// Runtimes starts a node with nodeagent and one with containerd's own CRI plugin,
// with neither kubelet nor control plane: what a benchmark compares, on the same
// machine, with the same images and the same OCI runtime.
func Runtimes(ctx context.Context, cfg Config) (*Cluster, error) {
	cfg.Runtime = RuntimeBoth
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
		{"images to pull", c.pullImages},
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
		"kubernetes": map[string]any{},
		"network":    map[string]any{"podCIDRs": cidrs},
		"storage":    map[string]any{"enabled": false},
	}
	if n.c.OCI != "" {
		n.c.AgentExtra["cri"] = map[string]any{"handlers": map[string]any{
			otherHandler: map[string]any{"type": "io.containerd.nodeagent.v1", "binary": n.c.OCI},
		}}
	}
	if n.c.alone { // Kubernetes' tests of a node have a RuntimeClass with it
		n.c.AgentExtra["cri"] = map[string]any{"handlers": map[string]any{
			"test-handler": map[string]any{"type": "io.containerd.nodeagent.v1"},
		}}
	}
	if err := n.startRuntime(ctx); err != nil {
		return err
	}
	if err := n.finishRuntime(cidrs); err != nil {
		return err
	}
	return n.hideUnified(ctx)
}

// hideUnified takes the node's cgroup v2 mount beside v1 away when another OCI
// runtime is to be measured: crun refuses a v2 that has a controller while the
// others are on v1, as on machines that give it hugetlb.
func (n *Node) hideUnified(ctx context.Context) error {
	if n.c.OCI == "" || len(hierarchies()) == 1 {
		return nil
	}
	_, err := n.Run(ctx, "umount", unifiedRoot())
	return err
}
