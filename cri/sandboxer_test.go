// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// shimPod runs a sandbox that its shim makes.
func (r *rig) shimPod(pod *runtimeapi.PodSandboxConfig) string {
	r.t.Helper()
	resp, err := r.rt.RunPodSandbox(r.t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: "machine"})
	if err != nil {
		r.t.Fatal(err)
	}
	return resp.PodSandboxId
}

// shimOf is the one process that serves a sandbox and its containers.
func (r *rig) shimOf(sb string) int {
	r.t.Helper()
	pids := processes(r.t, "nodeagent-shim", sb)
	if len(pids) != 1 {
		r.t.Fatalf("%d shims of sandbox %s", len(pids), sb)
	}
	return pids[0]
}

func (r *rig) sandboxIs(sb string, want runtimeapi.PodSandboxState) bool {
	st, err := r.rt.PodSandboxStatus(r.t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sb})
	return err == nil && st.GetStatus().GetState() == want
}

// TestRootShimSandbox has nodeagent's shim make the sandbox by containerd's Sandbox API, as shims of virtual machines do.
func TestRootShimSandbox(t *testing.T) {
	r := newShimRig(t)
	pod := r.pod("machine")
	sb := r.shimPod(pod)
	if kept, err := r.containerd.Sandboxes(t.Context(), "io.cri-containerd.kind", "sandbox"); err != nil || len(kept) != 1 || kept[sb] == nil {
		t.Fatalf("sandboxes of containerd: %v, %v", kept, err)
	}
	pid := r.shimOf(sb)
	run := r.run(sb, pod, r.shell("run", "while true; do echo on; sleep 0.1; done"))
	if out := r.sh(sb, pod, "c", "hostname; ps"); !strings.HasPrefix(out, "machine\n") {
		t.Errorf("in the pod: %s", out)
	}
	if again := r.shimOf(sb); again != pid {
		t.Errorf("containers have shim %d, the sandbox %d", again, pid)
	}
	resp, err := r.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: run, Cmd: []string{"echo", "hi"}, Timeout: 20})
	if err != nil || string(resp.GetStdout()) != "hi\n" {
		t.Errorf("exec: %v, %v", resp, err)
	}
	r.describesShim(sb)
	// Neither daemon is missed.
	r.stop()
	r.daemon.Stop(t)
	r.daemon.Run(t)
	r.start()
	if s := r.status(run); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING || !r.sandboxIs(sb, runtimeapi.PodSandboxState_SANDBOX_READY) {
		t.Errorf("after the daemons' restart: %v", s)
	}
	r.sh(sb, pod, "later", "true")
	if _, err := r.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sb}); err != nil {
		t.Fatal(err)
	}
	r.eventually("the shim ends with its sandbox", func() bool { return len(processes(t, "nodeagent-shim", sb)) == 0 })
	r.remove(sb)
	if kept, err := r.containerd.Sandboxes(t.Context(), "io.cri-containerd.kind", "sandbox"); err != nil || len(kept) != 0 {
		t.Errorf("left: %v, %v", kept, err)
	}
}

// describesShim looks at the status and the statistics of a sandbox with one running container.
func (r *rig) describesShim(sb string) {
	t := r.t
	t.Helper()
	st, err := r.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sb, Verbose: true})
	if err != nil || !strings.Contains(st.GetInfo()["info"], "SANDBOX_READY") {
		t.Errorf("verbose status: %v, %v", st, err)
	}
	stats, err := r.rt.ListPodSandboxStats(t.Context(), &runtimeapi.ListPodSandboxStatsRequest{})
	if err != nil || len(stats.GetStats()) != 1 || len(stats.GetStats()[0].GetLinux().GetContainers()) != 1 {
		t.Errorf("statistics: %v, %v", stats, err)
	}
}

// TestRootShimSandboxDies kills the shim of a sandbox, with the daemon there and away.
func TestRootShimSandboxDies(t *testing.T) {
	r := newShimRig(t)
	for _, away := range []bool{false, true} {
		pod := r.pod(map[bool]string{false: "there", true: "away"}[away])
		sb := r.shimPod(pod)
		cfg := r.shell(pod.GetMetadata().GetName(), "sleep 1000")
		run := r.run(sb, pod, cfg)
		if away {
			r.stop()
		}
		if err := unix.Kill(r.shimOf(sb), unix.SIGKILL); err != nil {
			t.Fatal(err)
		}
		if away {
			r.start()
		}
		r.eventually("the sandbox is not ready", func() bool { return r.sandboxIs(sb, runtimeapi.PodSandboxState_SANDBOX_NOTREADY) })
		r.exited(run)
		r.remove(sb)
	}
}

// TestRootShimSandboxReboot comes back as one that is not ready when only containerd's store has it.
func TestRootShimSandboxReboot(t *testing.T) {
	r := newShimRig(t)
	pod := r.pod("old")
	sb := r.shimPod(pod)
	pid := r.shimOf(sb)
	r.stop()
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"ns/" + sb + "/net", "ns/" + sb + "/ipc", "ns/" + sb + "/uts", "sandboxes/" + sb + "/shm"} {
		if err := unix.Unmount(filepath.Join(r.daemon.Dir, "na", p), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
	for _, p := range []string{"na", "state.db"} {
		if err := os.RemoveAll(filepath.Join(r.daemon.Dir, p)); err != nil {
			t.Error(err)
		}
	}
	r.start()
	if !r.sandboxIs(sb, runtimeapi.PodSandboxState_SANDBOX_NOTREADY) {
		t.Error("the sandbox is not known as not ready")
	}
	r.remove(sb)
	shared := r.pod("shared")
	shared.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	_, err := r.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: shared, RuntimeHandler: "machine"})
	if status.Code(err) != codes.FailedPrecondition {
		t.Errorf("a process namespace that the shim does not make: %v", err)
	}
	r.eventually("its shim ends", func() bool { return len(processes(t, "nodeagent-shim", r.daemon.Dir)) == 0 })
}
