// SPDX-License-Identifier: Apache-2.0

// Package containerd is the only door to containerd: the rest of the CRI
// speaks of images, snapshots and tasks through the methods of this package.
package containerd

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/client"
	"go.opentelemetry.io/contrib/instrumentation/google.golang.org/grpc/otelgrpc"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/trace"
	"golang.org/x/mod/semver"
	"google.golang.org/grpc"
)

// Namespace is containerd's namespace of all objects that nodeagent makes; the
// kubelet's cAdvisor looks for containers only there.
const Namespace = "k8s.io"

// Config says how to reach containerd and, when it is managed, how to run it.
type Config struct {
	// Managed makes nodeagent start and supervise a containerd of its own.
	Managed bool `yaml:"managed"`
	// Address is the path of containerd's socket.
	Address string `yaml:"address"`
	// DialTimeout bounds one attempt to connect.
	DialTimeout time.Duration `yaml:"dialTimeout"`
	// Snapshotter names the snapshotter for containers' root file systems.
	Snapshotter string `yaml:"snapshotter"`
	// Binary is the managed containerd's program, looked up in Path and PATH.
	Binary string `yaml:"binary"`
	// Path is searched before PATH for containerd, shims and OCI runtimes.
	Path string `yaml:"path"`
	// Root holds the managed containerd's images, snapshots and metadata.
	Root string `yaml:"root"`
	// State holds the managed containerd's tasks; it must die with the boot.
	State string `yaml:"state"`
	// Imports are files of further configuration for the managed containerd, read when it starts: image verifiers,
	// stream processors that decrypt layers, proxy snapshotters.
	Imports []string `yaml:"imports"`
	// LayerFetchBuffer makes the managed containerd fetch a layer in pieces of so many bytes side by side; 0: as a whole.
	LayerFetchBuffer int64 `yaml:"layerFetchBuffer"`
	// StopTimeout bounds the managed containerd's own shutdown.
	StopTimeout time.Duration `yaml:"stopTimeout"`
}

// Default returns the configuration for a containerd that somebody else runs.
// The socket is the one that the kubelet's cAdvisor is compiled to use.
func Default() Config {
	return Config{
		Address:     "/run/containerd/containerd.sock",
		DialTimeout: 10 * time.Second,
		Snapshotter: "overlayfs",
		Binary:      "containerd",
		Root:        "/var/lib/containerd",
		State:       "/run/containerd",
		StopTimeout: 10 * time.Second,

		LayerFetchBuffer: 8 << 20,
	}
}

// Validate reports all faults at once, each prefixed with the field's path.
func (c Config) Validate() error {
	var errs []error
	for _, f := range []struct{ name, value string }{
		{"address", c.Address}, {"root", c.Root}, {"state", c.State},
	} {
		if !filepath.IsAbs(f.value) {
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path", f.name, f.value))
		}
	}
	if len(c.Address) > maxSocketPath {
		errs = append(errs, fmt.Errorf("address: longer than %d bytes", maxSocketPath))
	}
	for _, f := range []struct {
		name  string
		value time.Duration
	}{{"dialTimeout", c.DialTimeout}, {"stopTimeout", c.StopTimeout}} {
		if f.value <= 0 {
			errs = append(errs, fmt.Errorf("%s: %s is not positive", f.name, f.value))
		}
	}
	if c.Snapshotter == "" {
		errs = append(errs, errors.New("snapshotter: must not be empty"))
	}
	for i, path := range c.Imports {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("imports[%d]: %q is not an absolute path", i, path))
		}
	}
	if c.LayerFetchBuffer < 0 {
		errs = append(errs, fmt.Errorf("layerFetchBuffer: %d is negative", c.LayerFetchBuffer))
	}
	if c.Managed && c.Binary == "" {
		errs = append(errs, errors.New("binary: must not be empty when managed"))
	}
	return errors.Join(errs...)
}

// maxSocketPath is the longest path a unix socket address holds (unix(7)).
const maxSocketPath = 107

// Deps of a Client; the zero value will do.
type Deps struct {
	// Tracing makes the spans of calls and hands their trace on to containerd; nil makes none.
	Tracing trace.TracerProvider
}

// Client is a connection to one containerd. It survives containerd's restart.
type Client struct {
	cfg  Config
	deps Deps
	c    *client.Client
}

// New makes an unconnected client.
func New(cfg Config, deps Deps) (*Client, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Client{cfg: cfg, deps: deps}, nil
}

// Address is the path of containerd's socket.
func (c *Client) Address() string { return c.cfg.Address }

// MinVersion is the oldest containerd that has all that is used here: the
// transfer service with hosts directories and progress.
const MinVersion = "2.1.0"

// ErrTooOld says that the containerd that answers is older than MinVersion.
var ErrTooOld = errors.New("containerd is too old")

func (d Deps) dialOptions() []grpc.DialOption {
	if d.Tracing == nil {
		return nil
	}
	return []grpc.DialOption{grpc.WithStatsHandler(otelgrpc.NewClientHandler(
		otelgrpc.WithTracerProvider(d.Tracing), otelgrpc.WithPropagators(propagation.TraceContext{}),
	))}
}

// Start connects; it fails when containerd does not answer within DialTimeout
// or is older than MinVersion.
func (c *Client) Start(ctx context.Context) error {
	cc, err := client.New(c.cfg.Address,
		client.WithDefaultNamespace(Namespace), client.WithTimeout(c.cfg.DialTimeout),
		client.WithExtraDialOpts(append(dialOptions(), c.deps.dialOptions()...)))
	if err != nil {
		return fmt.Errorf("connect to containerd at %s: %w", c.cfg.Address, err)
	}
	ctx, cancel := context.WithTimeout(ctx, c.cfg.DialTimeout)
	defer cancel()
	v, err := cc.Version(ctx)
	if err != nil {
		return errors.Join(fmt.Errorf("ask containerd at %s for its version: %w", c.cfg.Address, err), cc.Close())
	}
	if semver.Compare(canonical(v.Version), "v"+MinVersion) < 0 {
		return errors.Join(fmt.Errorf("%w: %s answers at %s, %s or newer is needed",
			ErrTooOld, v.Version, c.cfg.Address, MinVersion), cc.Close())
	}
	c.c = cc
	return nil
}

// canonical turns "2.4.2", "v2.4.2" and "1.6.20~ds1" into what semver compares.
func canonical(version string) string {
	v := "v" + strings.TrimPrefix(version, "v")
	if i := strings.IndexAny(v, "~+"); i >= 0 {
		v = v[:i]
	}
	return v
}

// Stop closes the connection; containerd and all it runs go on.
func (c *Client) Stop(_ context.Context) error {
	if c.c == nil {
		return nil
	}
	return c.c.Close()
}
