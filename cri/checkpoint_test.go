// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/checkpoint"
)

// countUp counts in memory and on disk, and prints both.
const countUp = "n=0; while true; do n=$((n+1)); echo $n >/tmp/n; echo $n; sleep 0.02; done"

// criuWorks tells whether CRIU works on this kernel; see docs/cri.md for those on which Debian 12's does not.
func criuWorks(t *testing.T) bool {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "criu", "check").CombinedOutput()
	if err != nil {
		t.Logf("CRIU does not work here, and the refusal is tested: %v: %s", err, out)
	}
	return err == nil
}

// last is the last number that a counter has printed.
func (r *rig) last(name string) int {
	r.t.Helper()
	lines := strings.Fields(r.output(name))
	if len(lines) == 0 {
		return 0
	}
	n, err := strconv.Atoi(lines[len(lines)-1])
	if err != nil {
		r.t.Fatal(err)
	}
	return n
}

// counts waits until a counter has gone on.
func (r *rig) counts(name string) {
	r.t.Helper()
	from := r.last(name)
	r.eventually(name+" counts", func() bool { return r.last(name) > from })
}

func TestRootCheckpointContainer(t *testing.T) {
	t.Run("containerd's shim", func(t *testing.T) { checkpointContainer(t, newRig(t)) })
	t.Run("own shim", func(t *testing.T) { checkpointContainer(t, newShimRig(t)) })
}

func checkpointContainer(t *testing.T, r *rig) {
	t.Helper()
	works := criuWorks(t)
	pod := r.pod("p")
	sb := r.runPod(pod)
	id := r.run(sb, pod, r.shell("counter", countUp))
	r.counts("counter")
	archive := filepath.Join(r.daemon.Dir, "counter.tar")
	_, err := r.rt.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: archive, Timeout: 60})
	r.counts("counter") // whatever became of the checkpoint
	if !works {
		if status.Code(err) != codes.FailedPrecondition {
			t.Errorf("got %v", err)
		}
		if _, err := os.Stat(archive); err == nil {
			t.Error("an archive is left")
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	_, err = r.rt.CheckpointContainer(t.Context(), &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: archive})
	if status.Code(err) != codes.AlreadyExists {
		t.Errorf("written over: %v", err)
	}
	at := r.last("counter")
	if _, err := r.rt.RemoveContainer(t.Context(), &runtimeapi.RemoveContainerRequest{ContainerId: id}); err != nil {
		t.Fatal(err)
	}
	r.goesOn(sb, pod, "restored", archive, at)
	if data, err := os.ReadFile(archive); err != nil {
		t.Error(err)
	} else {
		const image = "registry.test/checkpoint:1"
		r.daemon.ImportLayer(t, image, data, map[string]string{checkpoint.AnnotationName: "counter"})
		r.goesOn(sb, pod, "from-image", image, at)
	}
}

// goesOn makes a container from a checkpoint, which is where it was, at about that count.
func (r *rig) goesOn(sb string, pod *runtimeapi.PodSandboxConfig, name, image string, at int) {
	t := r.t
	t.Helper()
	cfg := r.shell(name, "echo anew")
	cfg.Image.Image = image
	again := r.create(sb, pod, cfg)
	if st := r.status(again); st.State != runtimeapi.ContainerState_CONTAINER_CREATED {
		t.Errorf("state %v before the start", st.State)
	}
	r.startContainer(again)
	r.counts(name)
	first, err := strconv.Atoi(strings.Fields(r.output(name))[0])
	if err != nil || first < 2 || first > at+1 {
		t.Errorf("went on with %d, %v; it was stopped after %d", first, err, at)
	}
	if _, err := r.rt.StopContainer(t.Context(), &runtimeapi.StopContainerRequest{ContainerId: again}); err != nil {
		t.Fatal(err)
	}
	if st := r.status(again); st.ExitCode != 137 {
		t.Errorf("status %v", st)
	}
}

func TestRootCheckpointPod(t *testing.T) {
	r := newRig(t)
	works := criuWorks(t)
	pod := r.pod("p")
	sb := r.runPod(pod)
	a, b := r.shell("a", countUp), r.shell("b", countUp)
	ids := []string{r.run(sb, pod, a), r.run(sb, pod, b)}
	r.counts("a")
	r.counts("b")
	dir := filepath.Join(r.daemon.Dir, "pod")
	if err := os.Mkdir(dir, 0o700); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	_, err := r.rt.CheckpointPod(ctx, &runtimeapi.CheckpointPodRequest{PodSandboxId: sb, OutputPath: dir, ContainerIds: ids})
	r.counts("a")
	r.counts("b")
	if !works {
		entries, rerr := os.ReadDir(dir)
		if status.Code(err) != codes.FailedPrecondition || rerr != nil || len(entries) > 0 {
			t.Errorf("got %v; left %v, %v", err, entries, rerr)
		}
		return
	}
	if err != nil {
		t.Fatal(err)
	}
	r.remove(sb)
	pod.Metadata.Uid = "another"
	a.LogPath, b.LogPath = "a2.log", "b2.log"
	other := r.shell("b", "something else")
	if _, err := r.rt.RestorePod(ctx, &runtimeapi.RestorePodRequest{
		CheckpointPath: dir, Config: pod, ContainerConfigs: []*runtimeapi.ContainerConfig{a, other},
	}); status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "command") {
		t.Errorf("another command: %v", err)
	}
	if list, err := r.rt.ListPodSandbox(ctx, &runtimeapi.ListPodSandboxRequest{}); err != nil || len(list.Items) != 0 {
		t.Errorf("left after a failure: %v, %v", list, err)
	}
	resp, err := r.rt.RestorePod(ctx, &runtimeapi.RestorePodRequest{
		CheckpointPath: dir, Config: pod, ContainerConfigs: []*runtimeapi.ContainerConfig{a, b},
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range resp.RestoredContainers {
		r.startContainer(c.ContainerId)
		r.counts(c.Name + "2")
		if first := strings.Fields(r.output(c.Name + "2"))[0]; first == "1" {
			t.Errorf("%s began anew", c.Name)
		}
	}
}

func TestRootBadCheckpoints(t *testing.T) {
	r := newRig(t)
	pod := r.pod("p")
	sb := r.runPod(pod)
	created := r.create(sb, pod, r.shell("created", "true"))
	running := r.run(sb, pod, r.shell("running", "sleep 1000"))
	dir := t.TempDir()
	full := t.TempDir()
	if err := os.WriteFile(filepath.Join(full, "pod.json"), []byte(`{"version":1,"containers":{"a":"../a.tar"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	container := func(id, location string, timeout int64) error {
		_, err := r.rt.CheckpointContainer(ctx, &runtimeapi.CheckpointContainerRequest{ContainerId: id, Location: location, Timeout: timeout})
		return err
	}
	save := func(q *runtimeapi.CheckpointPodRequest) error {
		_, err := r.rt.CheckpointPod(ctx, q)
		return err
	}
	restore := func(path string, names ...string) error {
		q := &runtimeapi.RestorePodRequest{CheckpointPath: path, Config: r.pod("q")}
		for _, n := range names {
			q.ContainerConfigs = append(q.ContainerConfigs, r.shell(n, "true"))
		}
		_, err := r.rt.RestorePod(ctx, q)
		return err
	}
	from := func(image string) error {
		cfg := r.shell("c", "true")
		cfg.Image.Image = image
		_, err := r.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sb, Config: cfg, SandboxConfig: pod})
		return err
	}
	_, endless := r.rt.CheckpointPod(t.Context(), &runtimeapi.CheckpointPodRequest{PodSandboxId: sb, OutputPath: dir, ContainerIds: []string{running}})
	for _, tc := range []struct {
		name string
		err  error
		want codes.Code
		text string
	}{
		{"unknown container", container("absent", dir+"/a.tar", 0), codes.NotFound, "absent"},
		{"not running", container(created, dir+"/a.tar", 0), codes.FailedPrecondition, "not running"},
		{"relative location", container(running, "a.tar", 0), codes.InvalidArgument, "location"},
		{"negative timeout", container(running, dir+"/a.tar", -1), codes.InvalidArgument, "timeout"},
		{"no deadline", endless, codes.InvalidArgument, "deadline"},
		{"unknown option", save(&runtimeapi.CheckpointPodRequest{PodSandboxId: sb, OutputPath: dir, ContainerIds: []string{running}, Options: map[string]string{"x": "y"}}), codes.InvalidArgument, "options[x]"},
		{"full directory", save(&runtimeapi.CheckpointPodRequest{PodSandboxId: sb, OutputPath: full, ContainerIds: []string{running}}), codes.InvalidArgument, "not empty"},
		{"no containers", save(&runtimeapi.CheckpointPodRequest{PodSandboxId: sb, OutputPath: dir}), codes.InvalidArgument, "container_ids"},
		{"container twice", save(&runtimeapi.CheckpointPodRequest{PodSandboxId: sb, OutputPath: dir, ContainerIds: []string{running, running}}), codes.InvalidArgument, "twice"},
		{"one not running", save(&runtimeapi.CheckpointPodRequest{PodSandboxId: sb, OutputPath: dir, ContainerIds: []string{running, created}}), codes.FailedPrecondition, "container_ids[1]"},
		{"no checkpoint", restore(dir, "a"), codes.InvalidArgument, "pod.json"},
		{"escaping archive", restore(full, "a"), codes.InvalidArgument, "leaves"},
		{"missing container", restore(full), codes.InvalidArgument, "missing"},
		{"unknown name", restore(full, "a", "b"), codes.InvalidArgument, `"b"`},
		{"absent archive", from("/nowhere.tar"), codes.NotFound, "nowhere"},
		{"no archive", from("/etc/passwd"), codes.InvalidArgument, "config.dump"},
	} {
		if status.Code(tc.err) != tc.want || !strings.Contains(status.Convert(tc.err).Message(), tc.text) {
			t.Errorf("%s: got %v, want %s with %q", tc.name, tc.err, tc.want, tc.text)
		}
	}
}
