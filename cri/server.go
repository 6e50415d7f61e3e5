// SPDX-License-Identifier: Apache-2.0

// Package cri speaks the Container Runtime Interface v1 to the kubelet and to
// every other tool that speaks it. Handlers validate, translate and call the
// rooms below; one chain of interceptors does what all calls need.
//
// It promises that no call is served before the records agree with what runs,
// that bad input gets a precise error and changes nothing, and that lists and
// statuses are answered from memory.
package cri

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"github.com/prometheus/client_golang/prometheus"
	"go.etcd.io/bbolt"
	"go.opentelemetry.io/otel/trace"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cni"
	"github.com/nodeagent/nodeagent/cri/container"
	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/grace"
	"github.com/nodeagent/nodeagent/cri/image"
	"github.com/nodeagent/nodeagent/cri/nri"
	"github.com/nodeagent/nodeagent/cri/sandbox"
	"github.com/nodeagent/nodeagent/cri/shim"
	"github.com/nodeagent/nodeagent/cri/spec"
	"github.com/nodeagent/nodeagent/cri/stats"
	"github.com/nodeagent/nodeagent/cri/steps"
	"github.com/nodeagent/nodeagent/cri/store"
	"github.com/nodeagent/nodeagent/cri/stream"
)

// Network is the pod network as the CRI uses it.
type Network interface {
	sandbox.Network
	// SetPodCIDRs takes the node's ranges as the kubelet was given them.
	SetPodCIDRs(ctx context.Context, cidrs []netip.Prefix) error
	// Collect detaches whatever was attached for the CRI and is not among the keys;
	// nothing is attached or detached meanwhile.
	Collect(ctx context.Context, keys []cni.Key) error
}

// Deps are what the CRI room needs of others; all are needed unless said otherwise.
type Deps struct {
	DB         *bbolt.DB
	Containerd *containerd.Client
	Network    Network
	Log        *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
	// Version is the daemon's, without a leading v.
	Version string
	// CDI may be nil; then a request for a CDI device is refused.
	CDI spec.CDI
	// Tracing makes the spans of calls; nil makes none.
	Tracing trace.TracerProvider
}

// Server serves both services of the CRI on one socket.
type Server struct {
	runtimeapi.UnimplementedRuntimeServiceServer

	cfg        Config
	deps       Deps
	store      *store.Store
	sandboxes  *sandbox.Manager
	containers *container.Manager
	images     *image.Service
	streams    *stream.Server
	stats      *stats.Collector
	handlers   *handlers
	shims      *shim.Launcher
	plugins    *nri.Adapter
	events     *events
	metrics    *metrics
	grace      *grace.Keeper
	host       spec.Host

	recovered atomic.Bool
	// waiting is why it has not recovered yet.
	waiting atomic.Pointer[error]
	// background is recovery and Serve; cancel ends them.
	background sync.WaitGroup
	cancel     context.CancelFunc
	grpc       *grpc.Server
}

var _ runtimeapi.RuntimeServiceServer = (*Server)(nil)

// maxMessage is the largest message taken or sent; the kubelet's own limit is 16 MiB.
const maxMessage = 32 << 20

// New builds the room's graph; ctx carries values only.
func New(ctx context.Context, cfg Config, deps Deps) (*Server, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Server{cfg: cfg, deps: deps, store: store.New(deps.DB), events: newEvents(), grace: grace.New(deps.Log)}
	s.handlers = newHandlers(cfg, deps.Log)
	var err error
	if s.metrics, err = newMetrics(deps.Metrics, s.store); err != nil {
		return nil, err
	}
	s.shims = &shim.Launcher{
		Containerd: deps.Containerd.Address(), Runtime: s.handlers.ownShim, Log: deps.Log,
		SharedDir:  filepath.Join(cfg.Sandbox.StateDir, "shims"),
		SandboxDir: func(id string) string { return string(s.sandboxes.Dir(id)) },
	}
	stages := &steps.Stages{Record: s.metrics.stage, Log: deps.Log}
	cfg.Image.Snapshotters = cfg.snapshotters()
	s.images, err = image.New(cfg.Image, image.Deps{
		Records: deps.Containerd, Puller: deps.Containerd, Snapshots: deps.Containerd, Views: deps.Containerd,
		Content: deps.Containerd, Snapshotter: deps.Containerd.Snapshotter(""), KnownHandler: s.handlers.knows,
		Metrics: deps.Metrics, Log: deps.Log,
	})
	if err != nil {
		return nil, err
	}
	host, err := spec.Probe()
	if err != nil {
		return nil, fmt.Errorf("probe the machine: %w", err)
	}
	if s.host = host; host.NoUserNamespaces != nil {
		deps.Log.WarnContext(ctx, "pods cannot have user namespaces", "err", host.NoUserNamespaces)
	}
	s.plugins, err = nri.New(ctx, cfg.NRI, nri.Deps{
		Store: s.store, Runtime: pluginRuntime{s}, CDI: deps.CDI, Log: deps.Log, Metrics: deps.Metrics, Version: deps.Version,
	})
	if err != nil {
		return nil, err
	}
	policy, err := cfg.Policy.policy()
	if err != nil {
		return nil, err
	}
	common := spec.Input{Host: host, Policy: policy, System: spec.NewSystem(), CDI: deps.CDI}
	s.containers, err = container.New(ctx, cfg.Container, container.Deps{
		Store: s.store, Containerd: deps.Containerd, Images: imageFinder{s.images, deps.Containerd},
		Streams: shim.Opener{
			FIFOs: container.FIFOs{Control: deps.Containerd, MaxLogSize: cfg.Container.MaxLogSize},
			Ours:  s.handlers.ours, Direct: s.handlers.direct,
			SandboxDir: func(id string) string { return string(s.sandboxes.Dir(id)) },
		},
		SandboxDir: func(id string) sandbox.Dir { return s.sandboxes.Dir(id) },
		Handler:    s.handlers.get,
		Spec:       common,
		Plugins:    s.plugins,
		Notify:     s.containerChanged, Shims: s.shims, Stages: stages, Log: deps.Log,
	})
	if err != nil {
		return nil, err
	}
	s.sandboxes, err = sandbox.New(ctx, cfg.Sandbox, sandbox.Deps{
		Store: s.store, Network: deps.Network, Warm: warmer(deps.Network), Containers: s.containers, Volumes: s.images, Containerd: deps.Containerd,
		Handler: s.handlers.get, Spec: common, Plugins: s.plugins, Notify: s.sandboxChanged, Shims: s.shims, Stages: stages, Log: deps.Log,
	})
	if err != nil {
		return nil, err
	}
	if err := registerPool(deps.Metrics, s.sandboxes.PoolStats); err != nil {
		return nil, err
	}
	if s.streams, err = stream.New(cfg.Stream, s.containers.Runtime()); err != nil {
		return nil, err
	}
	s.stats, err = stats.New(cfg.Stats, s.images)
	return s, err
}

// Start listens and begins to recover; calls are Unavailable until that is
// done, which waits for containerd as long as it takes. See Ready.
func (s *Server) Start(ctx context.Context) error {
	if err := s.store.Load(); err != nil {
		return err
	}
	if err := s.streams.Start(ctx); err != nil {
		return err
	}
	if err := s.stats.Start(ctx); err != nil {
		return err
	}
	ln, err := listen(ctx, s.cfg.Socket)
	if err != nil {
		return err
	}
	s.grpc = grpc.NewServer(append(traced(s.deps.Tracing),
		grpc.ChainUnaryInterceptor(s.unary), grpc.ChainStreamInterceptor(s.stream),
		grpc.MaxRecvMsgSize(maxMessage), grpc.MaxSendMsgSize(maxMessage),
	)...)
	runtimeapi.RegisterRuntimeServiceServer(s.grpc, s)
	runtimeapi.RegisterImageServiceServer(s.grpc, s.images)
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	s.cancel = cancel
	s.background.Go(func() {
		if err := s.grpc.Serve(ln); err != nil {
			s.deps.Log.ErrorContext(run, "CRI socket not served any more", "err", err)
		}
	})
	s.background.Go(func() { s.recover(run) })
	return nil
}

// listen makes the socket for root alone.
func listen(ctx context.Context, path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o711); err != nil {
		return nil, fmt.Errorf("make directory of CRI socket: %w", err)
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("replace CRI socket: %w", err)
	}
	var lc net.ListenConfig
	ln, err := lc.Listen(ctx, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("listen for the CRI: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(fmt.Errorf("protect CRI socket: %w", err), ln.Close())
	}
	return ln, nil
}

// Delays between two tries to recover while containerd is away.
const (
	recoverFirst = 100 * time.Millisecond
	recoverLast  = 2 * time.Second
)

// recover brings the records and the world together, then opens the door.
func (s *Server) recover(ctx context.Context) {
	delay := recoverFirst
	for {
		err := s.recoverOnce(ctx)
		if err == nil {
			s.waiting.Store(nil)
			s.recovered.Store(true)
			s.deps.Log.InfoContext(ctx, "CRI ready", "socket", s.cfg.Socket,
				"sandboxes", len(s.store.Sandboxes.Select(nil)), "containers", len(s.store.Containers.Select(nil)))
			return
		}
		s.waiting.Store(&err)
		s.deps.Log.InfoContext(ctx, "CRI waits", "err", err)
		t := time.NewTimer(delay)
		select {
		case <-t.C:
		case <-ctx.Done():
			t.Stop()
			return
		}
		delay = min(2*delay, recoverLast)
	}
}

func (s *Server) recoverOnce(ctx context.Context) error {
	if err := s.handlers.probe(ctx, s.deps.Containerd); err != nil {
		return err
	}
	if err := s.images.Start(ctx); err != nil {
		return err
	}
	if err := s.containers.Recover(ctx); err != nil {
		return errors.Join(err, s.images.Stop(ctx))
	}
	err := s.sandboxes.Recover(ctx)
	switch {
	case errdefs.IsUnavailable(err):
		return errors.Join(err, s.images.Stop(ctx))
	case err != nil:
		s.deps.Log.WarnContext(ctx, "leftovers of sandboxes stay", "err", err)
	}
	if err := s.deps.Network.Collect(ctx, s.sandboxes.Attachments()); err != nil {
		s.deps.Log.WarnContext(ctx, "attachments without a sandbox stay", "err", err)
	}
	// Without plugins that the administrator wants there pods must not start.
	if err := s.plugins.Start(ctx); err != nil {
		return errors.Join(err, s.images.Stop(ctx))
	}
	return nil
}

// Ready tells whether calls are served.
func (s *Server) Ready() bool { return s.recovered.Load() }

// Waiting says what keeps the server from getting ready; nil when nothing does, or not for long.
func (s *Server) Waiting() error {
	if err := s.waiting.Load(); err != nil {
		return *err
	}
	return nil
}

// Plugins counts the NRI plugins that are connected and synchronized.
func (s *Server) Plugins() int { return s.plugins.Plugins() }

// NRI says how the plugins are; nil when their interface is off.
func (s *Server) NRI() *nri.Status { return s.plugins.Status() }

// Images is the image service, for the daemon's own tools.
func (s *Server) Images() *image.Service { return s.images }

// Stop ends calls and streams; pods go on.
func (s *Server) Stop(ctx context.Context) error {
	if s.cancel == nil {
		return nil
	}
	s.recovered.Store(false)
	s.cancel()
	s.events.close()
	err := s.streams.Stop(ctx)
	// What the calls wait for is cancelled first, so that they end.
	s.sandboxes.Close()
	s.containers.Close()
	s.shims.Close()
	s.grace.Close()
	stopped := make(chan struct{})
	go func() {
		s.grpc.GracefulStop()
		close(stopped)
	}()
	select {
	case <-stopped:
	case <-time.After(stopPatience):
		s.grpc.Stop()
		<-stopped
	}
	s.background.Wait()
	return errors.Join(err, s.plugins.Stop(ctx), s.images.Stop(ctx), s.stats.Stop(ctx))
}

// stopPatience is how long calls may take to notice that the daemon stops.
const stopPatience = 2 * time.Second

// warmer is the network when it can be prepared ahead of pods; foreign ones cannot.
func warmer(n Network) sandbox.Warmer {
	w, ok := n.(sandbox.Warmer)
	if !ok {
		return nil
	}
	return w
}
