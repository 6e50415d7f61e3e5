// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/nri/pkg/api"
	"github.com/containerd/nri/pkg/stub"
	"go.uber.org/goleak"
)

// TestMain runs the tests, or, started by a daemon under test, an NRI plugin.
func TestMain(m *testing.M) {
	if os.Getenv(api.PluginIdxEnvVar) != "" {
		if err := runPlugin(); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1) //nolint:forbidigo // this is a plugin's main
		}
		os.Exit(0) //nolint:forbidigo // as above
	}
	goleak.VerifyTestMain(m)
}

// Environment of a plugin that the tests start themselves.
const (
	envPluginSocket = "NRI_TEST_SOCKET"
	envPluginConfig = "NRI_TEST_CONFIG"
)

// pluginConfig says how a plugin behaves.
type pluginConfig struct {
	// Log gets a line for each request: "<operation> <pod or container name>".
	Log string
	// Env and Hook are added to each container.
	Env  string
	Hook string
	// Limit is the memory limit that the container named "other" gets with each creation, and each updated one gets.
	Limit int64
	// Refuse, Hang and Crash name operations.
	Refuse, Hang, Crash string
	// Gate is a file whose presence ends the wait of Synchronize.
	Gate string
}

// plugin is an NRI plugin as others write them.
type plugin struct {
	cfg pluginConfig
	// mu guards the log and others.
	mu     sync.Mutex
	others string
	end    chan struct{}
}

func runPlugin() error {
	p := &plugin{end: make(chan struct{})}
	opts := []stub.Option{stub.WithOnClose(func() { close(p.end) })}
	if s := os.Getenv(envPluginSocket); s != "" {
		opts = append(opts, stub.WithSocketPath(s))
	}
	s, err := stub.New(p, opts...)
	if err != nil {
		return err
	}
	if err := s.Start(context.Background()); err != nil {
		return err
	}
	<-p.end
	return nil
}

// asked notes a request and behaves as configured.
func (p *plugin) asked(op, name string) error {
	p.mu.Lock()
	f, err := os.OpenFile(p.cfg.Log, os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err == nil {
		_, err = fmt.Fprintf(f, "%s %s\n", op, name)
		err = errors.Join(err, f.Close())
	}
	p.mu.Unlock()
	switch op {
	case p.cfg.Refuse:
		return errors.New("not on my watch")
	case p.cfg.Hang:
		<-p.end
	case p.cfg.Crash:
		os.Exit(3) //nolint:forbidigo // as a plugin that crashes
	}
	return err
}

func (p *plugin) Configure(_ context.Context, config, _, _ string) (api.EventMask, error) {
	if c := os.Getenv(envPluginConfig); c != "" {
		config = c
	}
	return 0, json.Unmarshal([]byte(config), &p.cfg)
}

func (p *plugin) Synchronize(_ context.Context, pods []*api.PodSandbox, cs []*api.Container) ([]*api.ContainerUpdate, error) {
	var names []string
	for _, pod := range pods {
		names = append(names, pod.Name)
	}
	for _, c := range cs {
		names = append(names, c.Name+"="+strings.TrimPrefix(c.State.String(), "CONTAINER_"))
		p.meet(c)
	}
	err := p.asked("Synchronize", strings.Join(names, " "))
	for p.cfg.Gate != "" {
		if _, err := os.Stat(p.cfg.Gate); err == nil {
			break
		}
	}
	return p.updates(), err
}

func (p *plugin) meet(c *api.Container) {
	if c.Name == "other" {
		p.mu.Lock()
		p.others = c.Id
		p.mu.Unlock()
	}
}

// updates are what the plugin wants of the container "other".
func (p *plugin) updates() []*api.ContainerUpdate {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.others == "" || p.cfg.Limit == 0 {
		return nil
	}
	u := &api.ContainerUpdate{ContainerId: p.others}
	u.SetLinuxMemoryLimit(p.cfg.Limit)
	return []*api.ContainerUpdate{u}
}

func (p *plugin) RunPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.asked("RunPodSandbox", fmt.Sprint(pod.Name, " ", strings.Join(pod.Ips, " ")))
}

func (p *plugin) StopPodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.asked("StopPodSandbox", pod.Name)
}

func (p *plugin) RemovePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.asked("RemovePodSandbox", pod.Name)
}

func (p *plugin) UpdatePodSandbox(_ context.Context, pod *api.PodSandbox, _, _ *api.LinuxResources) error {
	return p.asked("UpdatePodSandbox", pod.Name)
}

func (p *plugin) PostUpdatePodSandbox(_ context.Context, pod *api.PodSandbox) error {
	return p.asked("PostUpdatePodSandbox", pod.Name)
}

func (p *plugin) CreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) (*api.ContainerAdjustment, []*api.ContainerUpdate, error) {
	a := &api.ContainerAdjustment{}
	if k, v, ok := strings.Cut(p.cfg.Env, "="); ok {
		a.AddEnv(k, v)
		a.AddAnnotation("plugin.test/env", v)
	}
	if p.cfg.Hook != "" {
		a.AddHooks(&api.Hooks{CreateRuntime: []*api.Hook{{Path: p.cfg.Hook}}})
	}
	updates := p.updates()
	p.meet(c)
	return a, updates, p.asked("CreateContainer", c.Name)
}

func (p *plugin) PostCreateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.asked("PostCreateContainer", c.Name)
}

func (p *plugin) StartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.asked("StartContainer", c.Name)
}

func (p *plugin) PostStartContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.asked("PostStartContainer", c.Name)
}

func (p *plugin) UpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container, _ *api.LinuxResources) ([]*api.ContainerUpdate, error) {
	u := &api.ContainerUpdate{ContainerId: c.Id}
	u.SetLinuxMemoryLimit(p.cfg.Limit)
	return []*api.ContainerUpdate{u}, p.asked("UpdateContainer", c.Name)
}

func (p *plugin) PostUpdateContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.asked("PostUpdateContainer", c.Name)
}

func (p *plugin) StopContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) ([]*api.ContainerUpdate, error) {
	return nil, p.asked("StopContainer", c.Name)
}

func (p *plugin) RemoveContainer(_ context.Context, _ *api.PodSandbox, c *api.Container) error {
	return p.asked("RemoveContainer", c.Name)
}

// install puts a plugin where the daemon starts it from.
func (r *rig) install(name string, cfg pluginConfig) *pluginConfig {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	for _, dir := range []string{r.cfg.NRI.PluginDir, r.cfg.NRI.ConfigDir} {
		if err := os.MkdirAll(dir, 0o700); err != nil {
			r.t.Fatal(err)
		}
	}
	cfg.Log = filepath.Join(r.daemon.Dir, name+".plugin")
	b, err := json.Marshal(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(r.cfg.NRI.ConfigDir, name+".conf"), b, 0o600); err != nil {
		r.t.Fatal(err)
	}
	if err := os.Symlink(self, filepath.Join(r.cfg.NRI.PluginDir, name)); err != nil {
		r.t.Fatal(err)
	}
	return &cfg
}

// requests are what a plugin was asked.
func (c *pluginConfig) requests(tb testing.TB) string {
	tb.Helper()
	b, err := os.ReadFile(c.Log)
	if err != nil && !os.IsNotExist(err) {
		tb.Fatal(err)
	}
	return string(b)
}
