// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"testing"

	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestRootShimPrestarted follows the shim that the daemon starts with a sandbox: it takes the pod's containers, and without one it
// ends with the sandbox, with the daemon, and is replaced when it dies.
func TestRootShimPrestarted(t *testing.T) {
	r := newShimRig(t)
	shims := func(sandbox string) []int { return processes(t, "-lifeline", sandbox) }
	made := func(name string) (*runtimeapi.PodSandboxConfig, string) {
		pod := r.pod(name)
		sb := r.runPod(pod)
		r.eventually("the pod's shim runs", func() bool { return len(shims(sb)) == 1 })
		return pod, sb
	}
	pod, sb := made("joins")
	mine := shims(sb)[0]
	for _, name := range []string{"one", "two"} {
		id := r.run(sb, pod, r.shell(name, "sleep 1000"))
		if got := parent(t, r.pid(id)); got != mine {
			t.Errorf("container %s has shim %d, not the pod's %d", name, got, mine)
		}
		recorded, err := filepath.Glob(filepath.Join(r.daemon.Dir, "*", "io.containerd.runtime.v2.task", "k8s.io", id, "shim-binary-path"))
		if err != nil || len(recorded) != 1 {
			t.Errorf("a containerd that starts anew does not find the shim's program: %v, %v", recorded, err)
		}
	}
	if score, err := os.ReadFile(fmt.Sprintf("/proc/%d/oom_score_adj", mine)); err != nil || bytes.HasPrefix(score, []byte("0")) {
		t.Errorf("score of the shim: %s, %v", score, err)
	}

	_, sb = made("stops")
	if _, err := r.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sb}); err != nil {
		t.Fatal(err)
	}
	r.eventually("the shim of a stopped sandbox ends", func() bool { return len(shims(sb)) == 0 })

	pod, sb = made("dies")
	if err := unix.Kill(shims(sb)[0], unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	r.run(sb, pod, r.shell("later", "sleep 1000"))

	pod, sb = made("outlives")
	r.stop()
	r.eventually("the shim ends with the daemon", func() bool { return len(shims(sb)) == 0 })
	r.start()
	id := r.run(sb, pod, r.shell("after", "sleep 1000"))
	if got := shims(sb); len(got) != 1 || parent(t, r.pid(id)) != got[0] {
		t.Errorf("shims of the sandbox: %v", got)
	}
}
