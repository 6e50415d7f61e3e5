// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"strings"
	"syscall"
	"testing"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
)

func TestRootPodLife(t *testing.T) {
	r := newRig(t)
	pod := r.pod("web")
	sb := r.runPod(pod)
	if len(sb) != 64 {
		t.Errorf("sandbox id %q", sb)
	}
	st, err := r.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sb, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	if st.Status.State != runtimeapi.PodSandboxState_SANDBOX_READY || st.Status.Network.Ip != "10.1.2.3" ||
		len(st.Status.Network.AdditionalIps) != 1 || st.Status.CreatedAt <= 0 || st.Status.Labels["app"] != "web" || st.Info["info"] == "" {
		t.Errorf("status %v", st)
	}
	out := r.sh(sb, pod, "hello", "hostname; cat /etc/resolv.conf; echo oops >&2; df -k /dev/shm | tail -n1")
	for _, want := range []string{"web\n", "nameserver 10.0.0.10\n", "search default.svc svc\n", "options ndots:5\n", "oops\n", "65536"} {
		if !strings.Contains(out, want) {
			t.Errorf("output %q has no %q", out, want)
		}
	}
	removeTwice(r, sb, stopped(r, sb, pod))
}

// stopped runs a container that ends with a code of its own when it is stopped.
func stopped(r *rig, sb string, pod *runtimeapi.PodSandboxConfig) string {
	t := r.t
	t.Helper()
	id := r.run(sb, pod, r.shell("sleeper", "trap 'exit 7' TERM; echo up; while true; do sleep 0.05; done"))
	r.eventually("trap is set", func() bool { return r.output("sleeper") == "up\n" })
	if st := r.status(id); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING || st.StartedAt < st.CreatedAt || st.ImageRef == "" || st.LogPath == "" {
		t.Errorf("status %v", st)
	}
	if _, err := r.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 30}); err != nil {
		t.Fatal(err)
	}
	if st := r.status(id); st.ExitCode != 7 || st.Reason != "Error" || st.FinishedAt < st.StartedAt {
		t.Errorf("status %v", st)
	}
	return id
}

// removeTwice ends everything, each verb twice.
func removeTwice(r *rig, sb, id string) {
	t := r.t
	t.Helper()
	for range 2 {
		if _, err := r.rt.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := r.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sb}); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if _, err := r.rt.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb}); err != nil {
			t.Fatal(err)
		}
	}
}

func TestRootStopShortensGrace(t *testing.T) {
	r := newRig(t)
	pod := r.pod("stubborn")
	sb := r.runPod(pod)
	id := r.run(sb, pod, r.shell("deaf", "trap '' TERM; echo up; while true; do sleep 0.05; done"))
	r.eventually("trap is set", func() bool { return r.output("deaf") == "up\n" })
	first := make(chan error, 1)
	go func() {
		_, err := r.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 3600})
		first <- err
	}()
	if _, err := r.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: 1}); err != nil {
		t.Fatal(err)
	}
	select {
	case err := <-first:
		if err != nil {
			t.Error(err)
		}
	case <-time.After(time.Minute):
		t.Fatal("the first call did not return")
	}
	if st := r.status(id); st.ExitCode != 137 {
		t.Errorf("exit code %d", st.ExitCode)
	}
}

func TestRootStartError(t *testing.T) {
	r := newRig(t)
	pod := r.pod("broken")
	sb := r.runPod(pod)
	cfg := r.shell("absent", "")
	cfg.Command = []string{"/no/such/program"}
	id := r.create(sb, pod, cfg)
	if _, err := r.rt.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id}); err == nil {
		t.Fatal("started")
	}
	st := r.status(id)
	if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 128 || st.Reason != "StartError" || !strings.Contains(st.Message, "/no/such/program") {
		t.Errorf("status %v", st)
	}
}

func TestRootExecSync(t *testing.T) {
	r := newRig(t)
	pod := r.pod("exec")
	sb := r.runPod(pod)
	id := r.run(sb, pod, r.shell("main", "sleep 1000"))
	resp, err := r.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"sh", "-c", "echo out; echo err >&2; exit 3"}, Timeout: 30})
	if err != nil {
		t.Fatal(err)
	}
	if string(resp.Stdout) != "out\n" || string(resp.Stderr) != "err\n" || resp.ExitCode != 3 {
		t.Errorf("%v", resp)
	}
}

func TestRootSharedProcessNamespace(t *testing.T) {
	r := newRig(t)
	pod := r.pod("shared")
	pod.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	sb := r.runPod(pod)
	inPod := func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	}
	cfg := r.shell("other", "sleep 4321")
	inPod(cfg)
	r.run(sb, pod, cfg)
	// An orphan is adopted and reaped by the first process.
	out := r.sh(sb, pod, "look", "(sleep 0 & ) ; ps; while ps | grep -q '[[]sleep]'; do sleep 0.05; done", inPod)
	if !strings.Contains(out, "sleep 4321") || !strings.Contains(out, "podinit") {
		t.Errorf("processes seen: %s", out)
	}
	st, err := r.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sb})
	if err != nil {
		t.Fatal(st, err)
	}
}

func TestRootPauseMode(t *testing.T) {
	r := newRig(t)
	pod := r.pod("paused")
	resp, err := r.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: "paused"})
	if err != nil {
		t.Fatal(err)
	}
	list, err := r.containerd.ListContainers(t.Context(), `labels."io.cri-containerd.kind"==sandbox`)
	if err != nil || len(list) != 1 || list[0].ID != resp.PodSandboxId || list[0].Labels["app"] != "paused" {
		t.Fatalf("sandbox containers %v, %v", list, err)
	}
	if out := r.sh(resp.PodSandboxId, pod, "c", "ps"); strings.Contains(out, "podinit") {
		t.Errorf("the process namespace is shared: %s", out)
	}
	// A sandbox whose process ends is not ready any more.
	if err := r.containerd.KillProcess(t.Context(), containerd.Process{ContainerID: resp.PodSandboxId}, syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	r.eventually("the sandbox is not ready", func() bool {
		st, err := r.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: resp.PodSandboxId})
		return err == nil && st.Status.State == runtimeapi.PodSandboxState_SANDBOX_NOTREADY
	})
}
