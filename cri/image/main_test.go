// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"context"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	"go.uber.org/goleak"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/image"
)

func TestMain(m *testing.M) {
	goleak.VerifyTestMain(m, goleak.IgnoreTopFunction("internal/poll.runtime_pollWait"))
}

// needRoot fails without root, or skips when that was asked for.
func needRoot(t *testing.T) {
	t.Helper()
	if os.Getuid() == 0 {
		return
	}
	if os.Getenv("NODEAGENT_SKIP_ROOT") == "1" {
		t.Skip("needs root, and NODEAGENT_SKIP_ROOT=1")
	}
	t.Fatal("needs root; set NODEAGENT_SKIP_ROOT=1 to leave the root tests out")
}

// cache is where `make deps` puts the programs that tests run.
func cache() string {
	if dir := os.Getenv("NODEAGENT_CACHE"); dir != "" {
		return dir
	}
	return "/var/cache/nodeagent"
}

// node is a real containerd with the image service on it.
type node struct {
	ctrd     *containerd.Client
	images   *image.Service
	cfg      image.Config
	socket   string
	hostsDir string
	boot     string
	metrics  *prometheus.Registry
}

func startContainerd(t *testing.T, change ...func(*containerd.Config)) containerd.Config {
	t.Helper()
	needRoot(t)
	dir := t.TempDir()
	cfg := containerd.Default()
	cfg.Managed = true
	cfg.Path = filepath.Join(cache(), "bin")
	cfg.Address = filepath.Join(dir, "c.sock")
	cfg.Root = filepath.Join(dir, "root")
	cfg.State = filepath.Join(dir, "state")
	for _, f := range change {
		f(&cfg)
	}
	sup, err := containerd.NewSupervisor(cfg, containerd.SupervisorDeps{Log: slog.New(slog.DiscardHandler), Dir: filepath.Join(dir, "sup")})
	if err != nil {
		t.Fatal(err)
	}
	if err := sup.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := sup.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return cfg
}

// newNode starts containerd and the service.
func newNode(t *testing.T, change ...func(*image.Config)) *node {
	t.Helper()
	return nodeOn(t, startContainerd(t), change...)
}

// nodeOn starts the service on a containerd.
func nodeOn(t *testing.T, ccfg containerd.Config, change ...func(*image.Config)) *node {
	t.Helper()
	n := &node{socket: ccfg.Address, hostsDir: t.TempDir()}
	n.ctrd = connect(t, ccfg)
	n.cfg = image.Default()
	n.cfg.HostsDir = n.hostsDir
	n.cfg.StateDir = t.TempDir()
	n.cfg.UsageInterval = 50 * time.Millisecond
	for _, f := range change {
		f(&n.cfg)
	}
	n.start(t)
	return n
}

func connect(t *testing.T, cfg containerd.Config) *containerd.Client {
	t.Helper()
	c, err := containerd.New(cfg, containerd.Deps{})
	if err != nil {
		t.Fatal(err)
	}
	if err := c.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = c.Stop(context.Background()) })
	return c
}

func (n *node) start(t *testing.T) {
	t.Helper()
	n.metrics = prometheus.NewRegistry()
	s, err := image.New(n.cfg, image.Deps{
		Records: n.ctrd, Puller: n.ctrd, Snapshots: n.ctrd, Views: n.ctrd, Content: n.ctrd, BootID: n.boot, Snapshotter: "overlayfs",
		KnownHandler: func(h string) bool { return h == "runc" },
		Metrics:      n.metrics,
		Log:          slog.New(slog.NewTextHandler(&testLog{t: t}, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	n.images = s
	t.Cleanup(func() {
		if err := s.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
}

// testLog writes into the test's log for as long as the test lives.
type testLog struct {
	mu sync.Mutex
	t  *testing.T
}

func (l *testLog) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if l.t.Context().Err() == nil {
		l.t.Logf("%s", p)
	}
	return len(p), nil
}

// eventually waits for a condition, a minute at most.
func eventually(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	tick := time.NewTicker(5 * time.Millisecond)
	defer tick.Stop()
	for !cond() {
		select {
		case <-tick.C:
		case <-ctx.Done():
			t.Fatalf("waited in vain for %s", what)
		}
	}
}

func pullRequest(ref string, auth *runtimeapi.AuthConfig) *runtimeapi.PullImageRequest {
	return &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}, Auth: auth}
}
