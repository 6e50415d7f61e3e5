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

// TestRootShimShared puts two pods under each shim, over a restart of the daemon, and kills one shim: its pods' containers end and
// no other's.
func TestRootShimShared(t *testing.T) {
	r := newShimRig(t)
	r.stop()
	h := r.cfg.Handlers["runc"]
	h.PodsPerShim = 2
	r.cfg.Handlers["dense"] = h
	r.start()
	shims := func() int { return len(processes(t, "-lifeline", "-id\x00dense-")) }
	var sandboxes, ids []string
	run := func(name string) int {
		pod := r.pod(name)
		resp, err := r.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: "dense"})
		if err != nil {
			t.Fatal(err)
		}
		id := r.run(resp.PodSandboxId, pod, r.shell(name, "echo hello; exec sleep 1000"))
		sandboxes, ids = append(sandboxes, resp.PodSandboxId), append(ids, id)
		return parent(t, r.pid(id))
	}
	one, two, three := run("one"), run("two"), run("three")
	r.stop()
	r.start()
	four := run("four")
	if one != two || three != four || one == three || shims() != 2 {
		t.Errorf("shims %d %d %d %d, %d processes", one, two, three, four, shims())
	}
	r.killShim(one, ids[:2], ids[2:])
	if five := run("five"); five == one || five == three {
		t.Errorf("the fifth pod has shim %d of %d and %d", five, one, three)
	}
	r.removePods(sandboxes)
	r.eventually("the shims end with their last pods", func() bool { return shims() == 0 })
	if left, err := filepath.Glob(filepath.Join(r.daemon.Dir, "na/shims/*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}

func (r *rig) removePods(ids []string) {
	r.t.Helper()
	for _, id := range ids {
		if _, err := r.rt.RemovePodSandbox(r.t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: id}); err != nil {
			r.t.Fatal(err)
		}
	}
}

// killShim kills a shim with its containers, and sees that others live.
func (r *rig) killShim(pid int, its, others []string) {
	r.t.Helper()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		r.t.Fatal(err)
	}
	for _, id := range its {
		if st := r.exited(id); st.ExitCode != 137 && st.ExitCode != 255 { // known to the shim's delete, or to nobody
			r.t.Errorf("container of a killed shim: %v", st)
		}
	}
	for _, id := range others {
		resp, err := r.rt.ExecSync(r.t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"echo", "hi"}, Timeout: 20})
		if err != nil || string(resp.Stdout) != "hi\n" {
			r.t.Errorf("container of another shim: %v, %v", resp, err)
		}
	}
}
