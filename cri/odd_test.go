// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

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
