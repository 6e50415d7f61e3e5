// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestRootHooks(t *testing.T) {
	var dir, ran string
	r := newRigWith(t, func(r *rig) {
		dir, ran = filepath.Join(r.daemon.Dir, "hooks.d"), filepath.Join(r.daemon.Dir, "ran")
		r.cfg.Container.HooksDirs = []string{dir}
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
	})
	hook := fmt.Sprintf(`{"version":"1.0.0","hook":{"path":"/bin/sh","args":["sh","-c","cat >%s"]},
		"when":{"annotations":{"^hook$":"^me$"}},"stages":["createRuntime"]}`, ran)
	if err := os.WriteFile(filepath.Join(dir, "h.json"), []byte(hook), 0o600); err != nil {
		t.Fatal(err)
	}
	pod := r.pod("p")
	sb := r.runPod(pod)
	r.sh(sb, pod, "plain", "true")
	if _, err := os.Stat(ran); err == nil {
		t.Error("the hook ran for a container without the annotation")
	}
	r.sh(sb, pod, "marked", "true", func(c *runtimeapi.ContainerConfig) { c.Annotations = map[string]string{"hook": "me"} })
	if b, err := os.ReadFile(ran); err != nil || !strings.Contains(string(b), `"bundle"`) {
		t.Errorf("the hook was given %q, %v", b, err)
	}
	if err := os.WriteFile(filepath.Join(dir, "bad.json"), []byte("{}"), 0o600); err != nil {
		t.Fatal(err)
	}
	_, err := r.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sb, Config: r.shell("c", "true"), SandboxConfig: pod})
	if status.Code(err) != codes.FailedPrecondition || !strings.Contains(err.Error(), "bad.json") {
		t.Errorf("got %v", err)
	}
}
