// SPDX-License-Identifier: Apache-2.0

// Package image is the CRI's ImageService: it pulls, lists, explains and
// removes images, knows what they occupy and mounts them as volumes.
//
// containerd's image store is the truth; an index in memory, kept right by
// containerd's events, answers all reads. An image counts once its content is
// complete, whoever pulled it. Errors are containerd's error kinds, except
// those that the kubelet recognizes by their text (k8s.io/cri-api/pkg/errors),
// which come first in the message.
package image

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/distribution/reference"
	"github.com/moby/locker"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/prometheus/client_golang/prometheus"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
)

// Labels of image records, as containerd's own CRI writes them.
const (
	labelManaged = "io.cri-containerd.image"
	labelPinned  = "io.cri-containerd.pinned"
	managed      = "managed"
	pinned       = "pinned"
)

// Config of the image service.
type Config struct {
	// HostsDir is the root of the registries' hosts.toml files, which
	// containerd reads at each pull; empty means none.
	HostsDir string `yaml:"hostsDir"`
	// NamespaceHostsDir holds <namespace>/<registry>/hosts.toml, which take the place of HostsDir's for the pods
	// of a namespace: mirrors, and in their headers credentials, that others do not have. Empty means none.
	NamespaceHostsDir string `yaml:"namespaceHostsDir"`
	// Snapshotters names the snapshotter of a runtime handler, where it is not
	// the default of the containerd room.
	Snapshotters map[string]string `yaml:"snapshotters"`
	// Pinned references are never removed by the kubelet's garbage collection.
	Pinned []string `yaml:"pinned"`
	// PullProgressTimeout ends a pull that fetches no byte for so long.
	PullProgressTimeout time.Duration `yaml:"pullProgressTimeout"`
	// PullRetries is how often a download that broke is continued.
	PullRetries int `yaml:"pullRetries"`
	// MaxParallelPulls limits the pulls that run at once; zero means no limit.
	MaxParallelPulls int `yaml:"maxParallelPulls"`
	// UsageInterval is the age at which disk usage is measured again.
	UsageInterval time.Duration `yaml:"usageInterval"`
	// StateDir holds files that live as long as a pull or an image mount.
	StateDir string `yaml:"stateDir"`
	// CheckContent says whether layers are verified at the first start after
	// an unclean shutdown of the machine.
	CheckContent bool `yaml:"checkContent"`
}

// Default returns the configuration of a node with containerd's usual paths.
func Default() Config {
	return Config{
		HostsDir:            "/etc/containerd/certs.d",
		PullProgressTimeout: 5 * time.Minute,
		PullRetries:         5,
		UsageInterval:       10 * time.Second,
		StateDir:            "/run/nodeagent/images",
		CheckContent:        true,
	}
}

// Validate reports all faults at once.
func (c Config) Validate() error {
	var errs []error
	for _, p := range []struct{ name, path string }{{"hostsDir", c.HostsDir}, {"namespaceHostsDir", c.NamespaceHostsDir}, {"stateDir", c.StateDir}} {
		if p.path != "" && !filepath.IsAbs(p.path) {
			errs = append(errs, fmt.Errorf("%s: %q is not absolute", p.name, p.path))
		}
	}
	if c.StateDir == "" {
		errs = append(errs, errors.New("stateDir: must not be empty"))
	}
	for i, ref := range c.Pinned {
		if _, err := reference.ParseDockerRef(ref); err != nil {
			errs = append(errs, fmt.Errorf("pinned[%d]: %q: %w", i, ref, err))
		}
	}
	for handler, s := range c.Snapshotters {
		if s == "" {
			errs = append(errs, fmt.Errorf("snapshotters[%s]: must not be empty", handler))
		}
	}
	if c.PullProgressTimeout < 0 {
		errs = append(errs, fmt.Errorf("pullProgressTimeout: %s is negative", c.PullProgressTimeout))
	}
	if c.PullRetries < 0 {
		errs = append(errs, fmt.Errorf("pullRetries: %d is negative", c.PullRetries))
	}
	if c.MaxParallelPulls < 0 {
		errs = append(errs, fmt.Errorf("maxParallelPulls: %d is negative", c.MaxParallelPulls))
	}
	if c.UsageInterval <= 0 {
		errs = append(errs, fmt.Errorf("usageInterval: %s is not positive", c.UsageInterval))
	}
	return errors.Join(errs...)
}

// Records is containerd's image store.
type Records interface {
	ImageRecords(ctx context.Context) ([]containerd.ImageRecord, error)
	ImageRecord(ctx context.Context, name string) (containerd.ImageRecord, error)
	PutImageRecord(ctx context.Context, rec containerd.ImageRecord) error
	DeleteImageRecord(ctx context.Context, name string, collect bool) error
	InspectImage(ctx context.Context, target ocispec.Descriptor) (containerd.ImageInfo, error)
	WatchImages(ctx context.Context, subscribed func(), changed func(name string)) error
}

// Puller fetches images; PullLeases protect what broken pulls have fetched.
type Puller interface {
	PullImage(ctx context.Context, p containerd.Pull) (containerd.ImageRecord, error)
	CreatePullLease(ctx context.Context, ref string) (string, error)
	PullLeases(ctx context.Context) ([]containerd.PullLease, error)
	DeleteLeases(ctx context.Context, ids ...string) error
}

// Snapshots is what the service needs of containerd's snapshotters.
type Snapshots interface {
	UnpackImage(ctx context.Context, rec containerd.ImageRecord, snapshotter string) error
	HasSnapshot(ctx context.Context, snapshotter, key string) (bool, error)
	SnapshotUsages(ctx context.Context, snapshotter string, known map[string]containerd.SnapshotUsage) ([]containerd.SnapshotUsage, error)
	SnapshotterRoot(ctx context.Context, snapshotter string) (string, error)
}

// The one door to containerd implements all of them.
var (
	_ Records   = (*containerd.Client)(nil)
	_ Puller    = (*containerd.Client)(nil)
	_ Snapshots = (*containerd.Client)(nil)
	_ Views     = (*containerd.Client)(nil)
	_ Content   = (*containerd.Client)(nil)
)

// Deps are the service's neighbours; all are needed.
type Deps struct {
	Records   Records
	Puller    Puller
	Snapshots Snapshots
	Views     Views
	Content   Content
	// Snapshotter is the default snapshotter.
	Snapshotter string
	// Metrics registers the service's metrics; nil: nobody sees them.
	Metrics prometheus.Registerer
	// BootID names the boot of the machine; empty: the kernel's.
	BootID string
	// KnownHandler says whether a runtime handler is configured; nil: all are.
	KnownHandler func(handler string) bool
	Log          *slog.Logger
}

// Service implements the CRI's ImageService.
type Service struct {
	runtimeapi.UnimplementedImageServiceServer

	cfg        Config
	deps       Deps
	log        *slog.Logger
	index      *index
	usage      *usage
	metrics    *metrics
	board      board
	volumeLock *locker.Locker // by owner
	slots      chan struct{}  // nil: no limit on parallel pulls
	// byHandler names the snapshotters of runtime handlers; the map is replaced as a whole.
	byHandler atomic.Pointer[map[string]string]

	cancel context.CancelFunc
	wg     sync.WaitGroup

	// mu guards the pulls in flight and dirty.
	mu     sync.Mutex
	runCtx context.Context //nolint:containedctx // the life of the service, which pulls outlive their callers in
	pulls  map[string]*pulling
	dirty  map[string]bool // names of images that a sync is due for

	boot string
	sync chan struct{} // asks for a sync; holds one
}

var _ runtimeapi.ImageServiceServer = (*Service)(nil)

// New makes a service that knows no image before Start.
func New(cfg Config, deps Deps) (*Service, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	s := &Service{
		cfg: cfg, deps: deps, log: deps.Log, index: newIndex(), usage: newUsage(), volumeLock: locker.New(), pulls: map[string]*pulling{},
		dirty: map[string]bool{}, sync: make(chan struct{}, 1), boot: deps.BootID,
	}
	s.SetSnapshotters(cfg.Snapshotters)
	if cfg.MaxParallelPulls > 0 {
		s.slots = make(chan struct{}, cfg.MaxParallelPulls)
	}
	m, err := newMetrics(deps.Metrics, s)
	if err != nil {
		return nil, err
	}
	s.metrics = m
	return s, nil
}
