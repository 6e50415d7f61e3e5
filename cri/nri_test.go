// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/nri/pkg/api"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri"
)

// connect starts a plugin that comes to the daemon by itself, and returns what ends it.
func (r *rig) connect(name string, cfg *pluginConfig) (end func()) {
	r.t.Helper()
	self, err := os.Executable()
	if err != nil {
		r.t.Fatal(err)
	}
	cfg.Log = filepath.Join(r.daemon.Dir, name+".plugin")
	b, err := json.Marshal(cfg)
	if err != nil {
		r.t.Fatal(err)
	}
	idx, base, _ := strings.Cut(name, "-")
	cmd := exec.CommandContext(r.t.Context(), self)
	cmd.Env = []string{
		api.PluginIdxEnvVar + "=" + idx, api.PluginNameEnvVar + "=" + base,
		envPluginSocket + "=" + r.cfg.NRI.Socket, envPluginConfig + "=" + string(b),
	}
	cmd.Stderr = os.Stderr
	if err := cmd.Start(); err != nil {
		r.t.Fatal(err)
	}
	return sync.OnceFunc(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

func TestRootNRI(t *testing.T) {
	var seen *pluginConfig
	r := newRigWith(t, func(r *rig) {
		seen = r.install("10-observer", pluginConfig{Env: "SEEN=by plugin", Limit: 64 << 20})
	})
	pod := r.pod("watched")
	sb := r.runPod(pod)
	other := r.run(sb, pod, r.shell("other", "sleep 1000"))
	if out := r.sh(sb, pod, "c", "echo $SEEN"); out != "by plugin\n" {
		t.Errorf("output %q", out)
	}
	r.eventually("the end of c is told", func() bool { return strings.Contains(seen.requests(t), "StopContainer c\n") })
	if got := r.status(other).GetResources().GetLinux().GetMemoryLimitInBytes(); got != 64<<20 {
		t.Errorf("limit of the other container %d after the creation of one", got)
	}
	if _, err := r.rt.UpdateContainerResources(t.Context(), &runtimeapi.UpdateContainerResourcesRequest{
		ContainerId: other, Linux: &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 128 << 20, CpuShares: 512},
	}); err != nil {
		t.Fatal(err)
	}
	if got := r.status(other).GetResources().GetLinux(); got.GetMemoryLimitInBytes() != 64<<20 || got.GetCpuShares() != 512 {
		t.Errorf("resources %v: the plugin's limit and the kubelet's shares are wanted", got)
	}
	if _, err := r.rt.UpdatePodSandboxResources(t.Context(), &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: sb}); err != nil {
		t.Fatal(err)
	}
	r.create(sb, pod, r.shell("never", "true"))
	if _, err := r.rt.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb}); err != nil {
		t.Fatal(err)
	}
	text := seen.requests(t)
	want := "Synchronize |RunPodSandbox watched 10.1.2.3 fd00::3|" +
		"CreateContainer other|PostCreateContainer other|StartContainer other|PostStartContainer other|" +
		"CreateContainer c|PostCreateContainer c|StartContainer c|PostStartContainer c|StopContainer c|" +
		"UpdateContainer other|PostUpdateContainer other|UpdatePodSandbox watched|PostUpdatePodSandbox watched|" +
		"CreateContainer never|PostCreateContainer never|StopContainer other|StopPodSandbox watched|"
	if got := strings.ReplaceAll(text, "\n", "|"); !strings.HasPrefix(got, want) {
		t.Errorf("requests\n%s\nwant first\n%s", got, want)
	}
	for _, line := range []string{"RemoveContainer other", "RemoveContainer c", "StopContainer never", "RemoveContainer never", "RemovePodSandbox watched"} {
		if strings.Count(text, line+"\n") != 1 {
			t.Errorf("%q is not in the requests once:\n%s", line, text)
		}
	}
}

// TestRootNRILatePlugin connects plugins while containers are made and started:
// each plugin must have heard of each container, and of its end.
func TestRootNRILatePlugin(t *testing.T) {
	r := newRig(t)
	pod := r.pod("busy")
	sb := r.runPod(pod)
	gate := filepath.Join(r.daemon.Dir, "gate")
	var plugins []*pluginConfig
	for i := range 3 {
		p := &pluginConfig{Gate: gate}
		plugins = append(plugins, p)
		t.Cleanup(r.connect(fmt.Sprintf("1%d-late", i), p))
	}
	var names []string
	var wg sync.WaitGroup
	for i := range 12 {
		name := fmt.Sprintf("c%d", i)
		names = append(names, name)
		wg.Go(func() {
			id := r.create(sb, pod, r.shell(name, "true"))
			r.startContainer(id)
			r.exited(id)
		})
		if i == 3 { // some in a synchronization, some before and after
			r.eventually("a plugin is being synchronized", func() bool { return plugins[0].requests(t)+plugins[1].requests(t)+plugins[2].requests(t) != "" })
			if err := os.WriteFile(gate, nil, 0o600); err != nil {
				t.Fatal(err)
			}
		}
	}
	wg.Wait()
	r.eventually("all plugins are synchronized", func() bool { return r.server.Plugins() == len(plugins) })
	last := r.sh(sb, pod, "last", "echo end")
	if last != "end\n" {
		t.Errorf("output %q", last)
	}
	if _, err := r.rt.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb}); err != nil {
		t.Fatal(err)
	}
	for _, p := range plugins {
		p.knows(t, append(names, "last"))
	}
}

// knows fails when a plugin was told of the end of a container that it did not
// know, or not told of the end of one that it knew, or of its removal.
func (c *pluginConfig) knows(t *testing.T, names []string) {
	t.Helper()
	text := c.requests(t)
	for _, name := range names {
		synced := strings.Contains(text, " "+name+"=CREATED") || strings.Contains(text, " "+name+"=RUNNING")
		created := strings.Contains(text, "\nCreateContainer "+name+"\n")
		if synced && created {
			t.Errorf("told of %s twice", name)
		}
		ended := strings.Contains(text, "\nStopContainer "+name+"\n")
		if (synced || created) != ended {
			t.Errorf("%s known %v, its end told %v", name, synced || created, ended)
		}
		if !strings.Contains(text, "\nRemoveContainer "+name+"\n") {
			t.Errorf("not told of the removal of %s", name)
		}
	}
	if t.Failed() {
		t.Log(text)
	}
}

func TestRootNRIFailures(t *testing.T) {
	t.Run("refuses", func(t *testing.T) {
		var first *pluginConfig
		r := newRigWith(t, func(r *rig) {
			first = r.install("10-first", pluginConfig{})
			r.install("20-second", pluginConfig{Refuse: "CreateContainer"})
		})
		pod := r.pod("p")
		sb := r.runPod(pod)
		_, err := r.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sb, Config: r.shell("c", "true"), SandboxConfig: pod})
		if err == nil || !strings.Contains(err.Error(), "not on my watch") {
			t.Errorf("got %v", err)
		}
		if got := first.requests(t); !strings.Contains(got, "CreateContainer c\nStopContainer c\nRemoveContainer c\n") {
			t.Errorf("the first plugin was asked\n%s", got)
		}
	})
	for op, cfg := range map[string]pluginConfig{
		"hangs":   {Hang: "CreateContainer"},
		"crashes": {Crash: "StartContainer"},
	} {
		t.Run(op, func(t *testing.T) {
			r := newRigWith(t, func(r *rig) {
				r.cfg.NRI.RequestTimeout = 200 * time.Millisecond
				r.install("10-bad", cfg)
			})
			pod := r.pod("p")
			sb := r.runPod(pod)
			for _, name := range []string{"a", "b"} {
				if out := r.sh(sb, pod, name, "echo fine"); out != "fine\n" {
					t.Errorf("output %q", out)
				}
			}
			r.eventually("the plugin is left out", func() bool { return r.server.Plugins() == 0 })
			s := r.server.NRI()
			if len(s.Failures) != 1 || s.Plugins != 0 || s.Socket != r.cfg.NRI.Socket {
				t.Errorf("status %+v", s)
			}
			for _, f := range s.Failures {
				if f.Count < 1 || f.Last == "" || f.At.IsZero() {
					t.Errorf("failure %+v", f)
				}
			}
		})
	}
}

func TestRootNRIValidator(t *testing.T) {
	r := newRigWith(t, func(r *rig) {
		r.install("10-hooks", pluginConfig{Hook: "/bin/true"})
		r.cfg.NRI.Validator.Enable = true
		r.cfg.NRI.Validator.RejectOCIHookAdjustment = true
	})
	pod := r.pod("p")
	sb := r.runPod(pod)
	_, err := r.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sb, Config: r.shell("c", "true"), SandboxConfig: pod})
	if err == nil || !strings.Contains(err.Error(), "hook") {
		t.Errorf("got %v", err)
	}
}

// TestRootNRIBadDirectory finds that pods wait until the plugins that the
// administrator wants can start.
func TestRootNRIBadDirectory(t *testing.T) {
	r := newRig(t)
	r.stop()
	bad := filepath.Join(r.cfg.NRI.PluginDir, "nameless")
	if err := errors.Join(os.MkdirAll(r.cfg.NRI.PluginDir, 0o700), os.WriteFile(bad, nil, 0o700)); err != nil { //nolint:gosec // it has to look like a program
		t.Fatal(err)
	}
	r.serve()
	r.eventually("the reason is known", func() bool {
		err := r.server.Waiting()
		return err != nil && strings.Contains(err.Error(), "nameless")
	})
	if err := os.Remove(bad); err != nil {
		t.Fatal(err)
	}
	r.eventually("the CRI serves", r.server.Ready)
}

func TestNRIConfig(t *testing.T) {
	c := cri.Default()
	c.NRI.Socket, c.NRI.PluginDir, c.NRI.RequestTimeout = "nri.sock", "plugins", 0
	err := c.Validate()
	for _, want := range []string{"nri.socket: ", "nri.pluginDir: ", "nri.requestTimeout: "} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v has no %q", err, want)
		}
	}
}
