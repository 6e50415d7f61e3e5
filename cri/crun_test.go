// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"encoding/json"
	"maps"
	"os/exec"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri"
	"github.com/nodeagent/nodeagent/cri/containerd"
)

// TestRootShimCrun takes a container of crun through its life under nodeagent's shim, which lets it run without calling crun: crun
// finds it in the state in which it would have left it.
func TestRootShimCrun(t *testing.T) {
	r := newShimRig(t)
	root, path := filepath.Join(r.daemon.Dir, "crun.state"), r.crun()
	with := r.cfg
	with.Handlers = maps.Clone(r.cfg.Handlers)
	with.Handlers["crun"] = cri.Handler{Type: containerd.ShimType, Binary: path, Root: root}
	if err := r.server.Reload(t.Context(), with); err != nil {
		t.Fatal(err)
	}
	pod := r.pod("crun")
	resp, err := r.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: "crun"})
	if err != nil {
		t.Fatal(err)
	}
	sb := resp.PodSandboxId
	if out := r.sh(sb, pod, "short", "echo hello from crun; exit 0"); out != "hello from crun\n" {
		t.Errorf("output %q", out)
	}
	id := r.run(sb, pod, r.shell("long", "trap 'exit 7' TERM; while :; do sleep 0.1; done"))
	var state struct{ Status string }
	out, err := exec.CommandContext(t.Context(), path, "--root", filepath.Join(root, "k8s.io"), "state", id).Output()
	if err != nil || json.Unmarshal(out, &state) != nil || state.Status != "running" {
		t.Errorf("crun says %s, %v", out, err)
	}
	done, err := r.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"echo", "in"}, Timeout: 60})
	if err != nil || string(done.Stdout) != "in\n" {
		t.Errorf("exec: %q, %v", done.GetStdout(), err)
	}
	if _, err := r.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 60}); err != nil {
		t.Fatal(err)
	}
	if st := r.exited(id); st.ExitCode != 7 {
		t.Errorf("exit code %d", st.ExitCode)
	}
	r.remove(sb)
}
