// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/http"
	"net/http/pprof"
	"os"
	"path/filepath"
	"time"

	"go.etcd.io/bbolt"

	"github.com/nodeagent/nodeagent/api"
	"github.com/nodeagent/nodeagent/cmd/nodeagent/config"
	"github.com/nodeagent/nodeagent/cmd/nodeagent/tracing"
	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/nri"
	"github.com/nodeagent/nodeagent/csi"
	"github.com/nodeagent/nodeagent/dataplane"
	"github.com/nodeagent/nodeagent/kube"
	"github.com/nodeagent/nodeagent/kube/storage"
)

// graph is the daemon's wiring while it is being built: plain calls, in the
// order in which the parts start.
type graph struct {
	*process
	db     *bbolt.DB
	health *health
	routes map[string]http.Handler
	parts  []part
	begin  time.Time
	// tracing is nil when no traces are made.
	tracing *tracing.Tracer
	// collectors are asked by gc, in the order of the rooms.
	collectors []collector

	containerd *containerd.Client
	dataplane  *dataplane.Dataplane
	// network is nil when pods use a foreign conflist.
	network *cni.Network
	storage *csi.Server
	// nri says how the runtime's plugins are; nil without the CRI.
	nri func() *nri.Status
	// kube is nil without an API server.
	kube    *kube.Client
	watcher *kube.Watcher
	// events is nil without an API server.
	events *kube.NodeEvents
	// controllers is nil without an API server or without storage.
	controllers *storage.Controllers
}

// assemble builds every room and returns the parts in starting order.
func assemble(ctx context.Context, p *process, db *bbolt.DB) ([]part, error) {
	g := &graph{process: p, db: db, begin: time.Now(), routes: map[string]http.Handler{}}
	g.health = newHealth(p.cfg.Node.Metrics, p.log)
	g.add("metrics", g.health.Start, g.health.Stop)
	for _, add := range []func(context.Context) error{
		g.addTracing, g.addContainerd, g.addNetwork, g.addStorage, g.addCRI, g.addKubernetes, g.addEvents, g.addStorageControllers,
		g.addAPI,
	} {
		if err := add(ctx); err != nil {
			return nil, err
		}
	}
	// Last, because it refuses nothing that others have put in force.
	g.onReload(func(_ context.Context, next *config.Configuration) error {
		g.tracing.Reload(next.Tracing)
		return nil
	})
	return g.parts, nil
}

func (g *graph) add(name string, start, stop func(context.Context) error) {
	g.parts = append(g.parts, part{name: name, start: start, stop: stop})
}

// addTracing adds what sends the spans of all rooms, before them and after them.
func (g *graph) addTracing(context.Context) (err error) {
	g.tracing, err = tracing.New(g.cfg.Tracing, tracing.Deps{
		Log: g.log, Node: g.cfg.Node.Name, Version: version, Metrics: g.health.registry,
	})
	if err != nil {
		return err
	}
	g.add("tracing", g.tracing.Start, g.tracing.Stop)
	return nil
}

// addContainerd adds the connection to containerd, and before it the managed
// containerd when there is one.
func (g *graph) addContainerd(context.Context) error {
	cfg := g.cfg.Containerd
	if !g.cfg.CRI.Enabled {
		return nil // beside another runtime there need not be a containerd
	}
	if cfg.Managed {
		s, err := containerd.NewSupervisor(cfg, containerd.SupervisorDeps{Log: g.log, Dir: g.runPath("containerd"), Env: g.cfg.Tracing.ContainerdEnv()})
		if err != nil {
			return err
		}
		g.add("managed containerd", s.Start, s.Stop)
		g.health.check("containerd", s.Ready)
	}
	c, err := containerd.New(cfg, containerd.Deps{Tracing: g.tracing.Provider()})
	if err != nil {
		return err
	}
	g.containerd = c
	g.add("containerd client", c.Start, c.Stop)
	return nil
}

// runPath returns a path under the run directory.
func (g *graph) runPath(elem ...string) string {
	return filepath.Join(append([]string{g.cfg.Node.RunDir}, elem...)...)
}

func (g *graph) addAPI(context.Context) error {
	g.routes["GET /v1/status"] = api.JSON(func(r *http.Request) (status, error) {
		st := status{
			Version: version, Node: g.cfg.Node.Name, PID: os.Getpid(),
			Started: g.begin, Conditions: g.health.conditions(r.Context()),
		}
		if g.watcher != nil {
			ks := g.watcher.Status()
			st.Kubernetes = &ks
		}
		if g.nri != nil {
			st.NRI = g.nri()
		}
		if g.dataplane != nil {
			st.XDP = g.dataplane.Accelerations()
		}
		return st, nil
	})
	// curl --unix-socket /run/nodeagent/api.sock http://n/debug/pprof/heap
	g.routes["GET /debug/pprof/"] = http.HandlerFunc(pprof.Index)
	g.routes["GET /debug/pprof/profile"] = http.HandlerFunc(pprof.Profile)
	g.routes["GET /debug/pprof/trace"] = http.HandlerFunc(pprof.Trace)
	s, err := api.New(g.runPath("api.sock"), api.Deps{Log: g.log, Routes: g.routes})
	if err != nil {
		return err
	}
	g.add("local api", s.Start, s.Stop)
	if g.network != nil { // CNI programs that wait for the socket go on
		g.add("cni queue", g.network.Open, nil)
	}
	return nil
}

// status is the answer of GET /v1/status.
type status struct {
	Version    string      `json:"version"`
	Node       string      `json:"node"`
	PID        int         `json:"pid"`
	Started    time.Time   `json:"started"`
	Conditions []condition `json:"conditions"`
	// Kubernetes is how the watch goes; nil without one. An API server that is
	// away is no fault of the daemon: everything goes on as it last said.
	Kubernetes *kube.Status `json:"kubernetes,omitempty"`
	// NRI is how the runtime's plugins are; nil without them.
	NRI *nri.Status `json:"nri,omitempty"`
	// XDP is what became of it at each uplink; nothing when it is off.
	XDP []dataplane.Acceleration `json:"xdp,omitempty"`
}
