// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cni"
)

func TestRootDaemonRestart(t *testing.T) {
	r := newRig(t)
	pod := r.pod("lasting")
	pod.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	sb := r.runPod(pod)
	// The script goes on writing while the daemon is away.
	run := r.run(sb, pod, r.shell("run", "i=0; while true; do i=$((i+1)); echo line $i; sleep 0.02; done"))
	ends := r.run(sb, pod, r.shell("ends", "while [ ! -e /data/go ]; do sleep 0.02; done; exit 42"))
	created := r.create(sb, pod, r.shell("created", "echo late"))
	done := r.run(sb, pod, r.shell("done", "exit 5"))
	if st := r.exited(done); st.ExitCode != 5 {
		t.Fatalf("exit code %d", st.ExitCode)
	}
	root := fmt.Sprintf("/proc/%s/root", r.pid(ends))
	r.stop()
	stray := cni.Request{Key: cni.Key{ContainerID: "stray", IfName: "eth0"}}
	if _, err := r.net.Attach(t.Context(), stray); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(root, "data/go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.eventually("the process ends while the daemon is away", func() bool {
		_, err := os.Stat(root)
		return err != nil
	})
	r.start()
	if n := r.net.size(); n != 1 {
		t.Errorf("%d attachments for one sandbox", n)
	}
	if st := r.exited(ends); st.ExitCode != 42 {
		t.Errorf("an exit while the daemon was away: %v", st)
	}
	if st := r.status(done); st.ExitCode != 5 || st.State != runtimeapi.ContainerState_CONTAINER_EXITED {
		t.Errorf("an exit before the restart: %v", st)
	}
	if st := r.status(run); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("a running container: %v", st)
	}
	before := strings.Count(r.output("run"), "\n")
	r.eventually("the log goes on", func() bool { return strings.Count(r.output("run"), "\n") > before+3 })
	for i, line := range strings.Split(strings.TrimSuffix(r.output("run"), "\n"), "\n") {
		if line != fmt.Sprintf("line %d", i+1) {
			t.Fatalf("log line %d is %q", i+1, line)
		}
	}
	r.startContainer(created)
	r.exited(created)
	if out := r.output("created"); out != "late\n" {
		t.Errorf("output of a container created before the restart: %q", out)
	}
	resp, err := r.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: run, Cmd: []string{"echo", "hi"}, Timeout: 20})
	if err != nil || string(resp.Stdout) != "hi\n" {
		t.Errorf("exec after the restart: %v, %v", resp, err)
	}
}

// pid is the first process of a container.
func (r *rig) pid(id string) string {
	r.t.Helper()
	task, err := r.containerd.Task(r.t.Context(), id)
	if err != nil {
		r.t.Fatal(err)
	}
	return fmt.Sprint(task.PID)
}

// creating are the directories of containers that are being made or known.
func (r *rig) creating() []string {
	r.t.Helper()
	all, err := filepath.Glob(filepath.Join(r.cfg.Sandbox.StateDir, "sandboxes", "*", "containers", "*"))
	if err != nil {
		r.t.Fatal(err)
	}
	return all
}

func TestRootContainerdRestart(t *testing.T) {
	r := newRig(t)
	pod := r.pod("steady")
	sb := r.runPod(pod)
	run := r.run(sb, pod, r.shell("run", "while true; do sleep 0.1; done"))
	ends := r.run(sb, pod, r.shell("ends", "while [ ! -e /data/go ]; do sleep 0.02; done; exit 42"))
	root := fmt.Sprintf("/proc/%s/root", r.pid(ends))
	r.daemon.Stop(t)
	if err := os.WriteFile(filepath.Join(root, "data/go"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	r.eventually("the process ends while containerd is away", func() bool {
		_, err := os.Stat(root)
		return err != nil
	})
	if st := r.status(run); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("without containerd: %v", st)
	}
	asked := make(chan error, 1)
	go func() { // what comes while containerd is away waits for it
		_, err := r.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sb, Config: r.shell("meanwhile", "true"), SandboxConfig: pod})
		asked <- err
	}()
	r.eventually("the call waits", func() bool { return len(r.creating()) == 3 })
	r.daemon.Run(t)
	if err := <-asked; err != nil {
		t.Errorf("a call while containerd was away: %v", err)
	}
	if st := r.exited(ends); st.ExitCode != 42 {
		t.Errorf("an exit while containerd was away: %v", st)
	}
	if st := r.status(run); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("after containerd's restart: %v", st)
	}
	if _, err := r.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: run, Timeout: 0}); err != nil {
		t.Error(err)
	}
	if st := r.status(run); st.ExitCode != 137 {
		t.Errorf("stopped after containerd's restart: %v", st)
	}
}

func TestRootReboot(t *testing.T) {
	r := newRig(t)
	pod := r.pod("old")
	sb := r.runPod(pod)
	run := r.run(sb, pod, r.shell("run", "sleep 1000"))
	r.stop()
	reboot(r, sb, run)
	r.start()
	st := r.status(run)
	if st.State != runtimeapi.ContainerState_CONTAINER_EXITED || st.ExitCode != 255 || st.Reason != "Unknown" || st.Metadata.Name != "run" {
		t.Errorf("container after a reboot: %v", st)
	}
	ss, err := r.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sb})
	if err != nil {
		t.Fatal(err)
	}
	if ss.Status.State != runtimeapi.PodSandboxState_SANDBOX_NOTREADY || ss.Status.Metadata.Name != "old" {
		t.Errorf("sandbox after a reboot: %v", ss)
	}
	if _, err := r.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sb}); err != nil {
		t.Error(err)
	}
}

// reboot does what a reboot does: processes, /run and its mounts are gone.
func reboot(r *rig, sb, run string) {
	t := r.t
	t.Helper()
	var pid int
	if _, err := fmt.Sscan(r.pid(run), &pid); err != nil {
		t.Fatal(err)
	}
	if err := unix.Kill(pid, unix.SIGKILL); err != nil {
		t.Fatal(err)
	}
	for _, p := range []string{"net", "ipc", "uts"} {
		if err := unix.Unmount(filepath.Join(r.daemon.Dir, "na/ns", sb, p), unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
	}
	if err := unix.Unmount(filepath.Join(r.daemon.Dir, "na/sandboxes", sb, "shm"), unix.MNT_DETACH); err != nil {
		t.Error(err)
	}
	for _, p := range []string{"na", "state.db"} {
		if err := os.RemoveAll(filepath.Join(r.daemon.Dir, p)); err != nil {
			t.Error(err)
		}
	}
}

// The daemon starts before containerd, which goes away again at once.
func TestRootStartBeforeContainerd(t *testing.T) {
	r := newRig(t)
	pod := r.pod("early")
	sb := r.runPod(pod)
	run := r.run(sb, pod, r.shell("run", "sleep 1000"))
	r.stop()
	r.daemon.Stop(t)
	r.serve()
	if _, err := r.rt.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{}); status.Code(err) != codes.Unavailable {
		t.Errorf("a list before recovery: %v", err)
	}
	if v, err := r.rt.Version(t.Context(), &runtimeapi.VersionRequest{}); err != nil || v.RuntimeName != "nodeagent" {
		t.Errorf("the version before recovery: %v, %v", v, err)
	}
	r.daemon.Run(t)
	r.eventually("the CRI serves", r.server.Ready)
	if st := r.status(run); st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("status %v", st)
	}
}
