// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri"
	"github.com/nodeagent/nodeagent/cri/containerd"
)

// crun returns Debian's crun as a handler's OCI runtime. On hosts with both cgroup
// versions crun refuses controllers in the second one; there it is run where that one
// looks empty.
func (r *rig) crun() string {
	r.t.Helper()
	path, err := exec.LookPath("crun")
	if err != nil {
		r.t.Fatalf("the package crun is needed: %v", err)
	}
	const controllers = "/sys/fs/cgroup/unified/cgroup.controllers"
	if b, err := os.ReadFile(controllers); err != nil || len(b) < 2 {
		return path
	}
	wrapper := filepath.Join(r.daemon.Dir, "crun")
	script := "#!/bin/sh\nexec unshare -m sh -c 'mount --bind /dev/null " + controllers + " && exec " + path + " \"$@\"' crun \"$@\"\n"
	if err := os.WriteFile(wrapper, []byte(script), 0o700); err != nil { //nolint:gosec // a program
		r.t.Fatal(err)
	}
	return wrapper
}

// TestRootReload adds a handler with another OCI runtime to a running server, runs a
// pod with it, and finds that it cannot be taken away from the pod.
func TestRootReload(t *testing.T) {
	r := newRig(t)
	run := func(name string) (string, error) {
		resp, err := r.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: r.pod(name), RuntimeHandler: "crun"})
		return resp.GetPodSandboxId(), err
	}
	if _, err := run("early"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("before the reload: %v", err)
	}
	with := r.cfg
	with.Handlers = maps.Clone(r.cfg.Handlers)
	with.Handlers["crun"] = cri.Handler{Type: containerd.RuncType, Binary: r.crun(), Root: filepath.Join(r.daemon.Dir, "crun.state")}
	if err := r.server.Reload(t.Context(), with); err != nil {
		t.Fatal(err)
	}
	sb, err := run("late")
	if err != nil {
		t.Fatal(err)
	}
	if out := r.sh(sb, r.pod("late"), "c", "echo hello from crun"); out != "hello from crun\n" {
		t.Errorf("output %q", out)
	}
	st, err := r.rt.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil || !strings.Contains(st.String(), "crun") {
		t.Errorf("status %v, %v", st, err)
	}
	if err := r.server.Reload(t.Context(), r.cfg); err == nil || !strings.Contains(err.Error(), "handlers[crun]: 1 pods use it") {
		t.Errorf("taken away: %v", err)
	}
	other := with
	other.Handlers = maps.Clone(with.Handlers)
	other.Handlers["crun"] = cri.Handler{Type: containerd.RuncType}
	if err := r.server.Reload(t.Context(), other); err == nil || !strings.Contains(err.Error(), "its type, path, binary or root") {
		t.Errorf("changed: %v", err)
	}
	r.remove(sb)
	if err := r.server.Reload(t.Context(), r.cfg); err != nil {
		t.Errorf("taken away when nobody uses it: %v", err)
	}
	if _, err := run("again"); status.Code(err) != codes.InvalidArgument {
		t.Errorf("after it was taken away: %v", err)
	}
	bad := r.cfg
	bad.Handlers = map[string]cri.Handler{"runc": {}}
	if err := r.server.Reload(t.Context(), bad); err == nil || !strings.Contains(err.Error(), "handlers[runc].type") {
		t.Errorf("bad handlers: %v", err)
	}
}
