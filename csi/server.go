// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"slices"
	"sync"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	registerapi "k8s.io/kubelet/pkg/apis/pluginregistration/v1"

	"github.com/nodeagent/nodeagent/csi/volume"
)

// Deps of a Server.
type Deps struct {
	Log *slog.Logger
	// DB is the daemon's state file.
	DB *bbolt.DB
	// Metrics may be nil.
	Metrics prometheus.Registerer
	// Version of the daemon, as GetPluginInfo answers it.
	Version string
	// Changed (may be nil) is called when a pool's free space may have changed; it
	// must not block.
	Changed func(pool string)
	// Tracing makes the spans of calls; nil makes none.
	Tracing trace.TracerProvider
	// Checkpoint is for failure tests, see volume.Deps.
	Checkpoint func(verb, step string) error
}

// Server is the storage room.
type Server struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	volumes *volume.Manager
	metrics *metrics

	// mu guards the fields below
	mu      sync.Mutex
	servers []*grpc.Server
	sockets []string
	served  sync.WaitGroup
}

// New builds the room; it touches nothing.
func New(cfg Config, deps Deps) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if cfg.NodeName == "" {
		return nil, errors.New("csi: the node's name is missing")
	}
	if deps.Log == nil {
		return nil, errors.New("csi: a logger is missing")
	}
	if deps.Version == "" {
		deps.Version = "0.0.0"
	}
	vols, err := volume.New(cfg.volumes(), volume.Deps{Log: deps.Log, DB: deps.DB, Changed: deps.Changed, Checkpoint: deps.Checkpoint})
	if err != nil {
		return nil, err
	}
	return &Server{cfg: cfg, deps: deps, log: deps.Log, volumes: vols, metrics: newMetrics(vols)}, nil
}

// Volumes is the room without gRPC, for the controllers in the same process.
func (s *Server) Volumes() *volume.Manager { return s.volumes }

// Start recovers the volumes, then opens the sockets.
func (s *Server) Start(ctx context.Context) (retErr error) {
	defer func() {
		if retErr != nil {
			_ = s.Stop(context.WithoutCancel(ctx))
		}
	}()
	if s.deps.Metrics != nil {
		if err := s.deps.Metrics.Register(s.metrics); err != nil {
			return fmt.Errorf("register storage metrics: %w", err)
		}
	}
	if err := s.volumes.Start(ctx); err != nil {
		return fmt.Errorf("start volumes: %w", err)
	}
	g := grpc.NewServer(append(traced(s.deps.Tracing), grpc.ChainUnaryInterceptor(s.unary), grpc.ChainStreamInterceptor(s.stream))...)
	csipb.RegisterIdentityServer(g, &identity{Server: s})
	csipb.RegisterNodeServer(g, &node{Server: s})
	csipb.RegisterControllerServer(g, &controller{Server: s})
	csipb.RegisterGroupControllerServer(g, &groups{Server: s})
	csipb.RegisterSnapshotMetadataServer(g, &snapshotMetadata{Server: s})
	if err := s.serve(ctx, g, s.cfg.Socket); err != nil {
		return err
	}
	if s.cfg.RegistrationSocket == "" {
		return nil
	}
	r := grpc.NewServer(grpc.ChainUnaryInterceptor(s.unary))
	registerapi.RegisterRegistrationServer(r, &registration{Server: s})
	return s.serve(ctx, r, s.cfg.RegistrationSocket)
}

// serve listens under a name that the kubelet ignores, closes the socket to
// everybody but root, and only then moves it to where it is looked for: a client
// never meets a half-open door, and a restart replaces the old one at once.
func (s *Server) serve(ctx context.Context, g *grpc.Server, path string) error {
	if err := os.MkdirAll(filepath.Dir(path), 0o750); err != nil {
		return fmt.Errorf("socket directory: %w", err)
	}
	tmp := filepath.Join(filepath.Dir(path), ".na.sock")
	if err := os.Remove(tmp); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove stale socket: %w", err)
	}
	var lc net.ListenConfig
	l, err := lc.Listen(ctx, "unix", tmp)
	if err != nil {
		return fmt.Errorf("listen on %s: %w", path, err)
	}
	if u, ok := l.(*net.UnixListener); ok {
		u.SetUnlinkOnClose(false)
	}
	err = os.Chmod(tmp, 0o600)
	if err == nil {
		err = os.Rename(tmp, path)
	}
	if err != nil {
		_ = l.Close()
		return fmt.Errorf("open socket %s: %w", path, err)
	}
	s.mu.Lock()
	s.servers = append(s.servers, g)
	s.sockets = append(s.sockets, path)
	s.mu.Unlock()
	s.served.Go(func() {
		if err := g.Serve(l); err != nil {
			s.log.ErrorContext(ctx, "socket closed", "path", path, "err", err)
		}
	})
	s.log.InfoContext(ctx, "storage socket open", "path", path)
	return nil
}

// Stop closes the sockets, lets running calls end until ctx does, and stops the
// background work. Volumes stay as they are, for the pods that use them.
func (s *Server) Stop(ctx context.Context) error {
	s.mu.Lock()
	servers, sockets := s.servers, s.sockets
	s.servers, s.sockets = nil, nil
	s.mu.Unlock()
	var errs []error
	for i, g := range slices.Backward(servers) {
		if err := os.Remove(sockets[i]); err != nil && !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, err)
		}
		done := make(chan struct{})
		go func() { g.GracefulStop(); close(done) }()
		select {
		case <-done:
		case <-ctx.Done():
			g.Stop()
			<-done
		}
	}
	s.served.Wait()
	if s.deps.Metrics != nil {
		s.deps.Metrics.Unregister(s.metrics)
	}
	return errors.Join(append(errs, s.volumes.Stop(ctx))...)
}

// Topology is where this node's volumes can be used.
func (s *Server) Topology() map[string]string {
	return map[string]string{s.cfg.TopologyKey(): s.cfg.NodeName}
}

func (s *Server) topology() *csipb.Topology { return &csipb.Topology{Segments: s.Topology()} }

// DriverInfo is what a CSIDriver object has to say of this node's driver.
type DriverInfo struct {
	Name string
	// SELinuxMount: every volume is a file system of its own and can be mounted
	// with a context. One pool of directories or subvolumes makes it false.
	SELinuxMount bool
}

// DriverInfo describes the driver for the CSIDriver object.
func (s *Server) DriverInfo() DriverInfo {
	info := DriverInfo{Name: s.cfg.DriverName, SELinuxMount: true}
	for _, p := range s.cfg.Pools {
		if p.Backend == volume.BackendBtrfs || p.Backend == volume.BackendDirectory {
			info.SELinuxMount = false
		}
	}
	return info
}
