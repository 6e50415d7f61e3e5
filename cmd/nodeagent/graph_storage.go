// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"
	"maps"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/nodeagent/nodeagent/csi"
	"github.com/nodeagent/nodeagent/kube/storage"
)

// addStorage adds the CSI driver.
func (g *graph) addStorage(context.Context) error {
	cfg := g.cfg.Storage
	if !cfg.Enabled {
		return nil
	}
	s, err := csi.New(cfg.Config, csi.Deps{
		Log: g.log, DB: g.db, Metrics: g.health.registry, Version: version, Tracing: g.tracing.Provider(),
		Changed: func(string) {
			if g.controllers != nil {
				g.controllers.CapacityChanged()
			}
		},
	})
	if err != nil {
		return err
	}
	g.storage = s
	g.add("storage", s.Start, s.Stop)
	maps.Copy(g.routes, volumeRoutes(s.Volumes()))
	g.addCollector(collectVolumes(s.Volumes()))
	g.health.check("storage", func(context.Context) error { return s.Volumes().Ready() })
	return nil
}

// addStorageControllers adds what stands for the CSI sidecars. It speaks CSI to
// the driver's own socket, so that each call passes the driver's one front door.
func (g *graph) addStorageControllers(context.Context) error {
	if g.storage == nil || g.kube == nil {
		return nil
	}
	cfg := g.cfg.Storage
	conn, err := grpc.NewClient("unix://"+cfg.Socket, grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return fmt.Errorf("connect to the storage driver: %w", err)
	}
	driver := csipb.NewControllerClient(conn)
	c, err := storage.New(cfg.Controllers, storage.Deps{
		Log: g.log, Node: g.cfg.Node.Name, Client: g.kube.Client,
		Volumes: driver, Snapshots: driver, Groups: csipb.NewGroupControllerClient(conn),
		SELinuxMount: g.storage.DriverInfo().SELinuxMount,
	})
	if err != nil {
		return err
	}
	g.controllers = c
	g.add("storage driver client", nil, func(context.Context) error { return conn.Close() })
	g.add("storage controllers", c.Start, c.Stop)
	return nil
}
