// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"

	"github.com/nodeagent/nodeagent/csi"
)

// addStorage adds the CSI driver.
func (g *graph) addStorage(context.Context) error {
	cfg := g.cfg.Storage
	if !cfg.Enabled {
		return nil
	}
	s, err := csi.New(cfg.Config, csi.Deps{Log: g.log, DB: g.db, Metrics: g.health.registry, Version: version})
	if err != nil {
		return err
	}
	g.storage = s
	g.add("storage", s.Start, s.Stop)
	return nil
}
