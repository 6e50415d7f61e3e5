// SPDX-License-Identifier: Apache-2.0

// Package nri lets plugins of the Node Resource Interface see every pod and
// container and change the containers: it is containerd/nri's adaptation with
// nodeagent's records behind it.
//
// It promises that a plugin which connects late misses nothing: each pod and
// container is either in what the plugin is synchronized with or told to it
// afterwards, also one that is being made at that moment. A plugin that hangs or
// dies delays a call by Config.RequestTimeout at most and is left out from then
// on, unless it asked for the calls to fail. Nothing waits for a plugin while it
// holds what a plugin may wait for.
package nri

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/containerd/nri/pkg/adaptation"
	nrilog "github.com/containerd/nri/pkg/log"
	validator "github.com/containerd/nri/plugins/default-validator/builtin"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/prometheus/client_golang/prometheus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/spec"
	"github.com/nodeagent/nodeagent/cri/store"
)

// Config of the plugins' interface.
type Config struct {
	// Enabled starts the plugins in PluginDir and serves the socket.
	Enabled bool `yaml:"enabled"`
	// Socket is where plugins connect; empty: only those in PluginDir run.
	Socket string `yaml:"socket"`
	// PluginDir holds programs named <two digits>-<name>, started with the daemon; ConfigDir their <name>.conf.
	PluginDir string `yaml:"pluginDir"`
	ConfigDir string `yaml:"configDir"`
	// RegistrationTimeout bounds a plugin's first words, RequestTimeout each of its answers.
	RegistrationTimeout time.Duration `yaml:"registrationTimeout"`
	RequestTimeout      time.Duration `yaml:"requestTimeout"`
	// Validator says which changes no plugin may make, and which plugins must be there.
	Validator validator.DefaultValidatorConfig `yaml:"validator"`
}

// Default returns the paths and times that NRI's own documents name.
func Default() Config {
	return Config{
		Enabled: true, Socket: adaptation.DefaultSocketPath,
		PluginDir: adaptation.DefaultPluginPath, ConfigDir: adaptation.DefaultPluginConfigPath,
		RegistrationTimeout: adaptation.DefaultPluginRegistrationTimeout,
		RequestTimeout:      adaptation.DefaultPluginRequestTimeout,
	}
}

// Validate reports all faults at once.
func (c Config) Validate() error {
	if !c.Enabled {
		return nil
	}
	var errs []error
	for _, p := range []struct{ name, path string }{{"pluginDir", c.PluginDir}, {"configDir", c.ConfigDir}} {
		if !filepath.IsAbs(p.path) {
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path", p.name, p.path))
		}
	}
	if c.Socket != "" && !filepath.IsAbs(c.Socket) {
		errs = append(errs, fmt.Errorf("socket: %q is neither empty nor an absolute path", c.Socket))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"registrationTimeout", c.RegistrationTimeout}, {"requestTimeout", c.RequestTimeout}} {
		if d.value <= 0 {
			errs = append(errs, fmt.Errorf("%s: %s is not positive", d.name, d.value))
		}
	}
	return errors.Join(errs...)
}

// Runtime is what plugins can do to containers without being asked.
type Runtime interface {
	// Spec reads a container's specification.
	Spec(ctx context.Context, id string) (*specs.Spec, error)
	// Resize changes a container's resources; plugins are not told.
	Resize(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error
	// Evict kills a container.
	Evict(ctx context.Context, id string) error
}

// Deps are what the Adapter needs of others.
type Deps struct {
	Store   *store.Store
	Runtime Runtime
	// CDI may be nil; then a plugin's CDI devices are refused.
	CDI spec.CDI
	Log *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
	// Version is the daemon's.
	Version string
}

// Adapter hands events to plugins. A nil one has no plugins.
type Adapter struct {
	cfg     Config
	deps    Deps
	nri     *adaptation.Adaptation
	metrics *metrics
	// plugins counts those that are connected and synchronized.
	plugins atomic.Int64
	started atomic.Bool

	// background runs what outlives a synchronization.
	background func(fn func(ctx context.Context))
	cancel     context.CancelFunc
	running    sync.WaitGroup

	// mu guards flight.
	mu     sync.Mutex
	flight flight
}

// New makes an adapter, nil when the configuration has it off; ctx carries values only.
func New(ctx context.Context, cfg Config, deps Deps) (*Adapter, error) {
	if err := cfg.Validate(); err != nil || !cfg.Enabled {
		return nil, err
	}
	a := &Adapter{cfg: cfg, deps: deps, flight: newFlight()}
	var err error
	if a.metrics, err = newMetrics(deps.Metrics, &a.plugins); err != nil {
		return nil, err
	}
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	a.cancel = cancel
	a.background = func(fn func(ctx context.Context)) { a.running.Go(func() { fn(base) }) }
	nrilog.Set(logger{deps.Log})
	adaptation.SetPluginRegistrationTimeout(cfg.RegistrationTimeout)
	adaptation.SetPluginRequestTimeout(cfg.RequestTimeout)
	opts := []adaptation.Option{
		adaptation.WithPluginPath(cfg.PluginDir), adaptation.WithPluginConfigPath(cfg.ConfigDir),
		adaptation.WithSocketPath(cfg.Socket), adaptation.WithMetrics(a.metrics),
		adaptation.WithDefaultValidator(&cfg.Validator),
	}
	if cfg.Socket == "" {
		opts = append(opts, adaptation.WithDisabledExternalConnections())
	}
	a.nri, err = adaptation.New("nodeagent", deps.Version, a.synchronize, a.update, opts...)
	if err != nil {
		return nil, fmt.Errorf("make NRI adaptation: %w", err)
	}
	return a, nil
}

// Start runs the plugins in PluginDir and lets others connect. The records have
// to be complete: plugins are synchronized with them. It may be tried again.
func (a *Adapter) Start(context.Context) error {
	if a == nil || a.started.Load() {
		return nil
	}
	if err := a.nri.Start(); err != nil {
		return fmt.Errorf("start NRI: %w", err)
	}
	a.started.Store(true)
	return nil
}

// Stop ends the plugins that Start ran; others notice that the daemon has gone.
func (a *Adapter) Stop(context.Context) error {
	if a == nil {
		return nil
	}
	a.cancel()
	a.running.Wait()
	if a.started.Swap(false) {
		a.nri.Stop()
	}
	return nil
}

// Status is what a person wants to know of the plugins.
type Status struct {
	// Socket is where plugins connect; empty when they cannot.
	Socket string `json:"socket,omitempty"`
	// Plugins are those connected and synchronized.
	Plugins int `json:"plugins"`
	// Failures are those of plugins since the daemon's start, by name.
	Failures map[string]Failure `json:"failures,omitempty"`
}

// Failure is what has become of requests to a plugin.
type Failure struct {
	Count int       `json:"count"`
	Last  string    `json:"last"`
	At    time.Time `json:"at"`
}

// Status is nil without plugins' interface.
func (a *Adapter) Status() *Status {
	if a == nil {
		return nil
	}
	a.metrics.mu.Lock()
	defer a.metrics.mu.Unlock()
	return &Status{Socket: a.cfg.Socket, Plugins: a.Plugins(), Failures: maps.Clone(a.metrics.failed)}
}

// Plugins counts the plugins that are connected and synchronized.
func (a *Adapter) Plugins() int {
	if a == nil {
		return 0
	}
	return int(a.plugins.Load())
}
