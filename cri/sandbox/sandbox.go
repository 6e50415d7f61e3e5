// SPDX-License-Identifier: Apache-2.0

// Package sandbox owns the life of pod sandboxes: a set of pinned namespaces
// with a directory of files and a network attachment, and no process. Only
// pods that share their process namespace have one, see process.go.
//
// It promises that a sandbox is made wholly or not at all, that what could not
// be taken back stays listed as not ready until stop or remove finish it, that
// every verb may be called twice, and that a call repeated while it runs joins
// the first one.
package sandbox

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/flight"
	"github.com/nodeagent/nodeagent/cri/nri"
	"github.com/nodeagent/nodeagent/cri/spec"
	"github.com/nodeagent/nodeagent/cri/steps"
	"github.com/nodeagent/nodeagent/cri/store"
)

// Config of the sandbox room.
type Config struct {
	// StateDir holds ns/<id>/ and sandboxes/<id>/; it lies on a tmpfs.
	StateDir string `yaml:"stateDir"`
	// RootDir holds the root of sandbox processes; programs must be allowed to run there.
	RootDir string `yaml:"rootDir"`
	// Mode says which pods have a process of their own: see ModePauseless, ModePause and ModeShim.
	Mode string `yaml:"mode"`
	// ShmSize is the size of a pod's /dev/shm in bytes.
	ShmSize int64 `yaml:"shmSize"`
	// Sysctls are set in every pod network that is not the host's, before the pod's own.
	Sysctls map[string]string `yaml:"sysctls"`
	// WarmPool is how many sandboxes are at most made ahead of need; 0 makes none. How many it is depends on how many pods come.
	WarmPool int `yaml:"warmPool"`
	// CallTimeout bounds one call, also when its caller has given up.
	CallTimeout time.Duration `yaml:"callTimeout"`
}

// Modes of sandboxes.
const (
	// ModePauseless gives a process only to pods that share their process namespace.
	ModePauseless = "pauseless"
	// ModePause gives one to every pod, for tools that look for a container that
	// stands for the pod: the kubelet's cAdvisor reads a pod's network there.
	ModePause = "pause"
	// ModeShim has the handler's shim make the sandbox by containerd's Sandbox API,
	// as those of virtual machines do.
	ModeShim = "shim"
)

// Default returns the configuration in which unprivileged pods may bind any
// port and send pings, as under other runtimes.
func Default() Config {
	return Config{
		StateDir: "/run/nodeagent",
		RootDir:  "/var/lib/nodeagent",
		Mode:     ModePauseless,
		ShmSize:  64 << 20,
		Sysctls: map[string]string{
			"net.ipv4.ip_unprivileged_port_start": "0",
			"net.ipv4.ping_group_range":           "0 2147483647",
		},
		CallTimeout: 10 * time.Minute,
	}
}

// Validate reports all faults at once.
func (c Config) Validate() error {
	var errs []error
	for _, d := range []struct{ name, path string }{{"stateDir", c.StateDir}, {"rootDir", c.RootDir}} {
		if !filepath.IsAbs(d.path) {
			errs = append(errs, fmt.Errorf("%s: %q is not an absolute path", d.name, d.path))
		}
	}
	if err := CheckMode(c.Mode); err != nil {
		errs = append(errs, fmt.Errorf("mode: %w", err))
	}
	if c.ShmSize <= 0 {
		errs = append(errs, fmt.Errorf("shmSize: %d is not positive", c.ShmSize))
	}
	if c.WarmPool < 0 {
		errs = append(errs, fmt.Errorf("warmPool: %d is negative", c.WarmPool))
	}
	if c.CallTimeout <= 0 {
		errs = append(errs, fmt.Errorf("callTimeout: %s is not positive", c.CallTimeout))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Sysctls)) {
		if err := checkSysctls(map[string]string{name: c.Sysctls[name]}, wanted(nil)); err != nil {
			errs = append(errs, fmt.Errorf("sysctls[%s]: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// CheckMode refuses what is not a mode.
func CheckMode(mode string) error {
	if mode != ModePauseless && mode != ModePause && mode != ModeShim {
		return fmt.Errorf("%q is none of %s, %s, %s: %w", mode, ModePauseless, ModePause, ModeShim, errdefs.ErrInvalidArgument)
	}
	return nil
}

// Containers are the sandbox's containers as far as the sandbox ends them.
type Containers interface {
	// StopAll kills all containers of a sandbox and waits for their ends.
	StopAll(ctx context.Context, sandboxID string) error
	// RemoveAll removes all containers of a sandbox.
	RemoveAll(ctx context.Context, sandboxID string) error
}

// Volumes are the images that a sandbox's containers mount.
type Volumes interface {
	// UnmountVolumes unmounts all of a sandbox's; none is success.
	UnmountVolumes(ctx context.Context, sandboxID string) error
}

// Plugins see sandboxes.
type Plugins interface {
	// TellSandbox tells of a moment in a sandbox's life.
	TellSandbox(ctx context.Context, e nri.SandboxEvent, sb *store.Sandbox) error
}

var _ Plugins = (*nri.Adapter)(nil)

// Shims are the shims of pods that the daemon starts.
type Shims interface {
	// Prepare begins to start the shim of a sandbox that is being made; there may be none to start.
	Prepare(ctx context.Context, sandboxID, handler string)
	// Release lets go of it: it ends if it has no container.
	Release(sandboxID string)
}

// Deps are what the sandbox room needs of others.
type Deps struct {
	Store   *store.Store
	Network Network
	// Warm is the network that can be prepared ahead, nil when it cannot.
	Warm       Warmer
	Containers Containers
	Volumes    Volumes
	Shims      Shims
	// Containerd runs the process of those sandboxes that have one.
	Containerd *containerd.Client
	// Handler finds a runtime handler; "" is the default one.
	Handler func(name string) (Handler, error)
	// Spec holds what is the same for all processes: Host, Policy and System.
	Spec spec.Input
	// Plugins may be nil, for none.
	Plugins Plugins
	// Notify is told of each change of a sandbox's state; it must not block.
	Notify func(sb *store.Sandbox, kind runtimeapi.ContainerEventType)
	// Stages times the stages of calls; nil times none.
	Stages *steps.Stages
	Log    *slog.Logger
}

// Manager runs, stops and removes sandboxes.
type Manager struct {
	cfg  Config
	deps Deps

	runs  *flight.Group[string]
	ends  *flight.Group[struct{}]
	locks *flight.Locks

	pool *pool // nil without one

	// background runs what outlives a call, under a context that ends with Close.
	background func(fn func(ctx context.Context))
	cancel     context.CancelFunc
	running    sync.WaitGroup
}

// New makes a manager; ctx carries values only, Close ends what it starts.
// Recover has to run before its first call.
func New(ctx context.Context, cfg Config, deps Deps) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Plugins == nil {
		deps.Plugins = (*nri.Adapter)(nil)
	}
	base, cancel := context.WithCancel(context.WithoutCancel(ctx))
	m := &Manager{
		cfg: cfg, deps: deps,
		runs:   flight.NewGroup[string](cfg.CallTimeout),
		ends:   flight.NewGroup[struct{}](cfg.CallTimeout),
		locks:  flight.NewLocks(),
		cancel: cancel,
	}
	m.background = func(fn func(ctx context.Context)) { m.running.Go(func() { fn(base) }) }
	m.pool = newPool(m)
	return m, nil
}

// Close cancels the calls that run, which undo what they did, and waits.
func (m *Manager) Close() {
	m.runs.Close()
	m.ends.Close()
	m.cancel()
	m.running.Wait()
}

// Dir is the directory of a sandbox.
func (m *Manager) Dir(id string) Dir { return Dir(filepath.Join(m.cfg.StateDir, "sandboxes", id)) }

// pins is the directory of a sandbox's namespaces.
func (m *Manager) pins(id string) string { return filepath.Join(m.cfg.StateDir, "ns", id) }

// NetworkStatus says why pods cannot get a network now, or nil.
func (m *Manager) NetworkStatus(ctx context.Context) error { return m.deps.Network.Status(ctx) }
