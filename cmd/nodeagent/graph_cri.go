// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"strings"

	"github.com/nodeagent/nodeagent/cri"
)

// addCRI adds the CRI server, which recovers in the background once it listens.
func (g *graph) addCRI(ctx context.Context) error {
	cfg := g.cfg.CRI
	if !cfg.Enabled {
		return nil
	}
	s, err := cri.New(ctx, cfg.Config, cri.Deps{
		DB: g.db, Containerd: g.containerd, Network: g.network, Log: g.log,
		Metrics: g.health.registry, Version: strings.TrimPrefix(version, "v"),
	})
	if err != nil {
		return err
	}
	g.add("cri", s.Start, s.Stop)
	g.health.check("cri", func(context.Context) error {
		if !s.Ready() {
			return errRecovering
		}
		return nil
	})
	return nil
}

// errRecovering says that the CRI still compares its records with containerd.
var errRecovering = errors.New("recovering")
