// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestRootLargeAnnotations: annotations of a megabyte come back as they were given, over
// a restart, too.
func TestRootLargeAnnotations(t *testing.T) {
	r := newRig(t)
	big := strings.Repeat("x", 1<<20)
	pod := r.pod("big")
	pod.Annotations["big"] = big
	sb := r.runPod(pod)
	cfg := r.shell("c", "sleep 1000")
	cfg.Annotations = map[string]string{"big": big}
	id := r.run(sb, pod, cfg)
	r.stop()
	r.start()
	if st := r.status(id); st.Annotations["big"] != big || st.State != runtimeapi.ContainerState_CONTAINER_RUNNING {
		t.Errorf("container: %d bytes, %v", len(st.Annotations["big"]), st.State)
	}
	ps, err := r.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sb})
	if err != nil || ps.Status.Annotations["big"] != big {
		t.Errorf("sandbox: %v", err)
	}
}

// TestRootAmbiguousIDs: the beginning of two ids names neither.
func TestRootAmbiguousIDs(t *testing.T) {
	r := newRig(t)
	first := map[byte]string{}
	prefix := ""
	for i := uint32(0); prefix == ""; i++ { // two of seventeen ids begin alike
		pod := r.pod("twin")
		pod.Metadata.Attempt = i
		id := r.runPod(pod)
		if first[id[0]] != "" {
			prefix = id[:1]
		}
		first[id[0]] = id
	}
	if _, err := r.rt.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: prefix}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("status: %v", err)
	}
	if _, err := r.rt.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: prefix}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("remove: %v", err)
	}
}

// TestRootUnbalancedMappings: mappings of a user namespace that do not fit each other are refused.
func TestRootUnbalancedMappings(t *testing.T) {
	r := newRig(t)
	m := func(host, container, length uint32) []*runtimeapi.IDMapping {
		return []*runtimeapi.IDMapping{{HostId: host, ContainerId: container, Length: length}}
	}
	for name, u := range map[string]*runtimeapi.UserNamespace{
		"no group":   {Mode: runtimeapi.NamespaceMode_POD, Uids: m(1<<20, 0, 65536)},
		"no length":  {Mode: runtimeapi.NamespaceMode_POD, Uids: m(1<<20, 0, 0), Gids: m(1<<20, 0, 0)},
		"not root":   {Mode: runtimeapi.NamespaceMode_POD, Uids: m(1<<20, 1, 65536), Gids: m(1<<20, 1, 65536)},
		"two":        {Mode: runtimeapi.NamespaceMode_POD, Uids: append(m(1<<20, 0, 10), m(1<<21, 10, 10)...), Gids: m(1<<20, 0, 10)},
		"of another": {Mode: runtimeapi.NamespaceMode_TARGET},
	} {
		pod := r.pod("p")
		pod.Linux.SecurityContext.NamespaceOptions.UsernsOptions = u
		if _, err := r.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod}); status.Code(err) != codes.InvalidArgument {
			t.Errorf("%s: %v", name, err)
		}
	}
}

// TestRootLinkedLog: a log that has become a link is not written through.
func TestRootLinkedLog(t *testing.T) {
	r := newRig(t)
	pod := r.pod("p")
	sb := r.runPod(pod)
	victim := filepath.Join(r.daemon.Dir, "victim")
	if err := os.WriteFile(victim, []byte("mine"), 0o600); err != nil {
		t.Fatal(err)
	}
	id := r.create(sb, pod, r.shell("c", "echo theirs"))
	if err := os.Symlink(victim, filepath.Join(r.logs, "c.log")); err != nil {
		t.Fatal(err)
	}
	_, err := r.rt.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
	if err == nil {
		r.exited(id)
	}
	if b, rerr := os.ReadFile(victim); rerr != nil || string(b) != "mine" {
		t.Errorf("start: %v; the link's target has %q, %v", err, b, rerr)
	}
}

// TestRootLinkedMount: where a mount belongs, another container makes and takes away a link that leads out, as fast
// as it can. No mount ends anywhere but in the container, and on the host nothing is made or changed.
func TestRootLinkedMount(t *testing.T) {
	r := newRig(t)
	pod := r.pod("p")
	sb := r.runPod(pod)
	shared, outside, inside := filepath.Join(r.daemon.Dir, "shared"), filepath.Join(r.daemon.Dir, "outside"), filepath.Join(r.daemon.Dir, "inside")
	for _, dir := range []string{filepath.Join(shared, "at"), outside, inside} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink(strings.Repeat("../", 20)+outside, filepath.Join(shared, "link")); err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(t.Context())
	swapped := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			_ = unix.Renameat2(unix.AT_FDCWD, filepath.Join(shared, "at"), unix.AT_FDCWD, filepath.Join(shared, "link"), unix.RENAME_EXCHANGE)
		}
		swapped <- n
	}()
	for i := range 8 {
		cfg := r.shell(fmt.Sprintf("c%d", i), "exit 0")
		cfg.Mounts = []*runtimeapi.Mount{
			{HostPath: shared, ContainerPath: "/shared"},
			{HostPath: inside, ContainerPath: "/shared/at/deep"},
		}
		// That the OCI runtime refuses what moves under its hands is as good.
		_, _ = r.rt.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: r.create(sb, pod, cfg)})
	}
	stop()
	if n := <-swapped; n < 100 {
		t.Errorf("only %d changes", n)
	}
	left, err := os.ReadDir(outside)
	if err != nil || len(left) != 0 {
		t.Errorf("made on the host: %v, %v", left, err)
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil || strings.Contains(string(mounts), outside) || strings.Contains(string(mounts), shared) {
		t.Errorf("mounted on the host: %v\n%s", err, mounts)
	}
}

// TestRootLogCap: what a container prints between two rotations by the kubelet takes no more of the disk than
// twice the limit.
func TestRootLogCap(t *testing.T) {
	const limit = 64 << 10
	small := func(r *rig) { r.cfg.Container.MaxLogSize = limit }
	for _, name := range []string{"containerds", "ours"} {
		t.Run(name, func(t *testing.T) {
			var r *rig
			if name == "ours" {
				r = newShimRigWith(t, small)
			} else {
				r = newRigWith(t, small)
			}
			pod := r.pod("loud")
			id := r.run(r.runPod(pod), pod, r.shell("c", "seq 1 50000; echo the end"))
			r.exited(id)
			files, err := filepath.Glob(filepath.Join(r.logs, "c.log*"))
			if err != nil || len(files) != 2 {
				t.Errorf("files %v, %v", files, err)
			}
			for _, file := range files {
				if st, err := os.Stat(file); err != nil || st.Size() > limit {
					t.Errorf("%s: %v, %v", file, st, err)
				}
			}
			if b, err := os.ReadFile(filepath.Join(r.logs, "c.log")); err != nil || !strings.HasSuffix(string(b), " F the end\n") {
				t.Errorf("the end is not there: %v", err)
			}
		})
	}
}
