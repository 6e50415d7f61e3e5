// SPDX-License-Identifier: Apache-2.0

// Package container owns the life of containers: create, start, stop, remove,
// exec, and the watch over each running one.
//
// It promises that a container is made wholly or not at all; that a container
// that ran has an exit code, also when it ended while the daemon or containerd
// was away; that stop ends within its grace even when its caller has gone; and
// that every verb may be called twice.
package container

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/flight"
	"github.com/nodeagent/nodeagent/cri/hooks"
	"github.com/nodeagent/nodeagent/cri/nri"
	"github.com/nodeagent/nodeagent/cri/sandbox"
	"github.com/nodeagent/nodeagent/cri/spec"
	"github.com/nodeagent/nodeagent/cri/steps"
	"github.com/nodeagent/nodeagent/cri/store"
)

// Config of the container room.
type Config struct {
	// RootDir holds what must not lie in memory, the volumes that images declare.
	RootDir string `yaml:"rootDir"`
	// CallTimeout bounds one call, also when its caller has given up.
	CallTimeout time.Duration `yaml:"callTimeout"`
	// DrainTimeout is how long output is read after a container's end when
	// something keeps its streams open.
	DrainTimeout time.Duration `yaml:"drainTimeout"`
	// MaxLogSize limits a log file between two rotations by the kubelet; 0 means no limit.
	MaxLogSize int64 `yaml:"maxLogSize"`
	// HooksDirs are directories of OCI hooks, as oci-hooks(5) describes them; a later one's file wins.
	HooksDirs []string `yaml:"hooksDirs"`
}

// Default returns the configuration for a node.
func Default() Config {
	return Config{
		RootDir:      "/var/lib/nodeagent/containers",
		CallTimeout:  10 * time.Minute,
		DrainTimeout: 5 * time.Second,
	}
}

// Validate reports all faults at once.
func (c Config) Validate() error {
	var errs []error
	if !filepath.IsAbs(c.RootDir) {
		errs = append(errs, fmt.Errorf("rootDir: %q is not an absolute path", c.RootDir))
	}
	for _, d := range []struct {
		name  string
		value time.Duration
	}{{"callTimeout", c.CallTimeout}, {"drainTimeout", c.DrainTimeout}} {
		if d.value <= 0 {
			errs = append(errs, fmt.Errorf("%s: %s is not positive", d.name, d.value))
		}
	}
	for i, dir := range c.HooksDirs {
		if !filepath.IsAbs(dir) {
			errs = append(errs, fmt.Errorf("hooksDirs[%d]: %q is not an absolute path", i, dir))
		}
	}
	if c.MaxLogSize < 0 {
		errs = append(errs, fmt.Errorf("maxLogSize: %d is negative", c.MaxLogSize))
	}
	return errors.Join(errs...)
}

// Image is an image that is present on the node.
type Image struct {
	// ID is the digest of its configuration, Ref a repository digest or the ID.
	ID  string
	Ref string
	// Name is the name by which containerd knows it; Tag is what people call
	// it, a tag when it has one.
	Name string
	Tag  string
	// ChainID is the key of its topmost layer's snapshot; "" without layers.
	ChainID string
	Config  ocispec.ImageConfig
	// Checkpoint means that it holds a container's checkpoint rather than a root file system.
	Checkpoint bool
}

// Images finds images.
type Images interface {
	// Resolve finds a present image by id, tag or digest; ErrNotFound when it is not there.
	Resolve(ctx context.Context, ref string) (Image, error)
	// Unpack makes the image's snapshots, which normally a pull has done.
	Unpack(ctx context.Context, i Image, snapshotter string) error
	// MountVolume mounts an image for all containers of a sandbox, until the
	// sandbox is stopped, and returns the path and the image's digest.
	MountVolume(ctx context.Context, sb *store.Sandbox, m *runtimeapi.Mount) (path, ref string, err error)
}

// Plugins see containers and change them.
type Plugins interface {
	// Adjust may change the specification of a container that is being made.
	Adjust(ctx context.Context, sb *store.Sandbox, c *store.Container, s *specs.Spec) error
	// Resize may change an update of a container's resources.
	Resize(ctx context.Context, sb *store.Sandbox, c *store.Container, r *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error)
	// Tell tells of a moment in a container's life.
	Tell(ctx context.Context, e nri.ContainerEvent, sb *store.Sandbox, c *store.Container) error
}

var _ Plugins = (*nri.Adapter)(nil)

// Shims are the shims of pods that the daemon starts.
type Shims interface {
	// Join returns the address of a sandbox's shim for a container that is about to be made, or "" when containerd has to find it.
	Join(ctx context.Context, sandboxID, handler string) string
	// Joined says that the container was made, or was not.
	Joined(sandboxID string)
}

// Deps are what the container room needs of others.
type Deps struct {
	Store      *store.Store
	Containerd *containerd.Client
	Images     Images
	Streams    Opener
	Shims      Shims
	// SandboxDir is the directory of a sandbox's files.
	SandboxDir func(id string) sandbox.Dir
	// Handler finds a runtime handler; "" is the default one.
	Handler func(name string) (sandbox.Handler, error)
	// Spec holds what is the same for all containers: Host, Policy, System and CDI.
	Spec spec.Input
	// Plugins may be nil, for none.
	Plugins Plugins
	// Notify is told of each change of a container's state; it must not block.
	Notify func(c *store.Container, kind runtimeapi.ContainerEventType)
	// Stages times the stages of calls; nil times none.
	Stages *steps.Stages
	Log    *slog.Logger
}

// Manager is the room.
type Manager struct {
	cfg  Config
	deps Deps

	hooks   *hooks.Directory
	creates *flight.Group[string]
	calls   *flight.Group[struct{}]
	locks   *flight.Locks
	// frozen is locked by who freezes a container, in the order of ids.
	frozen *flight.Locks
	// accounts and mounts spare containerd and the kernel questions.
	accounts accountFiles
	mounts   mountsKnown
	oom      *oomLedger

	// background runs what outlives a call, under a context that ends with
	// Close; closing tells that it has ended.
	background func(fn func(ctx context.Context))
	closing    func() bool
	stop       context.CancelFunc
	running    sync.WaitGroup

	// mu guards lives.
	mu    sync.Mutex
	lives map[string]*life
}

// life is what the daemon holds of a container that has a task.
type life struct {
	id      string
	streams Streams
	exited  chan struct{} // closed when the record says exited

	// mu guards what follows.
	mu sync.Mutex
	// process is the first process's specification, nil until an exec asked for it.
	process *specs.Process
	// killAt is when the stop that is under way kills.
	killAt time.Time
	rearm  chan struct{} // tells the stopper that killAt moved; nil: no stopper
}

// stopping says that a stop was asked for.
func (l *life) stopping() bool {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.rearm != nil
}

// New makes a manager; ctx carries values only, Close ends what it starts.
// Recover has to run before the first call.
func New(ctx context.Context, cfg Config, deps Deps) (*Manager, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Plugins == nil {
		deps.Plugins = (*nri.Adapter)(nil)
	}
	base, stop := context.WithCancel(context.WithoutCancel(ctx))
	m := &Manager{
		cfg: cfg, deps: deps,
		hooks:   hooks.New(cfg.HooksDirs),
		creates: flight.NewGroup[string](cfg.CallTimeout),
		calls:   flight.NewGroup[struct{}](cfg.CallTimeout),
		locks:   flight.NewLocks(),
		frozen:  flight.NewLocks(),
		oom:     &oomLedger{root: cgroupRoot, containers: deps.Store.Containers, log: deps.Log},
		stop:    stop,
		lives:   map[string]*life{},
	}
	m.background = func(fn func(ctx context.Context)) { m.running.Go(func() { fn(base) }) }
	m.closing = func() bool { return base.Err() != nil }
	return m, nil
}

// Close cancels the calls that run, ends the watches and closes the daemon's
// ends of the containers' streams. The containers go on.
func (m *Manager) Close() {
	m.creates.Close()
	m.calls.Close()
	m.stop()
	m.running.Wait()
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, l := range m.lives {
		if err := l.streams.Close(); err != nil {
			m.deps.Log.Warn("close streams of container", "container", l.id, "err", err)
		}
	}
	m.lives = map[string]*life{}
}

// life returns the container's, or nil when it has no task.
func (m *Manager) life(id string) *life {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.lives[id]
}

// begin registers the life of a container that is about to get a task.
func (m *Manager) begin(id string, s Streams) *life {
	l := &life{id: id, streams: s, exited: make(chan struct{})}
	m.mu.Lock()
	defer m.mu.Unlock()
	m.lives[id] = l
	return l
}

// end forgets a life.
func (m *Manager) end(l *life) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.lives[l.id] == l {
		delete(m.lives, l.id)
	}
	close(l.exited)
}

// locked runs fn for a container of which nobody else changes the state.
// ErrNotFound when it has gone meanwhile.
func (m *Manager) locked(ctx context.Context, id string, fn func(context.Context, *store.Container) error) error {
	unlock, err := m.locks.Lock(ctx, id)
	if err != nil {
		return err
	}
	defer unlock()
	c, ok := m.deps.Store.Containers.Get(id)
	if !ok || c.State == store.ContainerCreating {
		return fmt.Errorf("container %q: %w", id, errdefs.ErrNotFound)
	}
	return fn(ctx, c)
}

// Running finds a container that has a running first process.
func (m *Manager) Running(ref string) (*store.Container, error) {
	c, err := m.deps.Store.Containers.Find(ref)
	if err != nil {
		return nil, err
	}
	if c.State != store.ContainerRunning {
		return nil, fmt.Errorf("container %s is %s, not running: %w", c.ID, c.State, errdefs.ErrFailedPrecondition)
	}
	return c, nil
}

// closer closes what is not needed after an error that is reported anyway.
func closer(c io.Closer) { _ = c.Close() }
