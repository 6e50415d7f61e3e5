// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri"
)

func TestPolicyFaults(t *testing.T) {
	c := cri.Default()
	c.Policy = cri.Policy{
		Rlimits: map[string]string{"nofile": "10:5", "colour": "1"}, ShmSize: -1, UnsetSeccomp: "strict",
		RejectMissingHostPaths: []string{"data"}, Env: map[string]string{"A=B": "c"}, Umask: "0088", Timezone: "../../etc/passwd",
	}
	err := c.Validate()
	for _, want := range []string{
		"policy.rlimits[nofile]: ", "policy.rlimits[colour]: ", "policy.shmSize: ", "policy.unsetSeccomp: ", "policy.rejectMissingHostPaths[0]: ",
		"policy.env[A=B]: ", "policy.umask: ", "policy.timezone: ",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v has no %q", err, want)
		}
	}
}

func TestRootPolicy(t *testing.T) {
	r := newShimRigWith(t, func(r *rig) {
		r.cfg.Policy = cri.Policy{
			Rlimits: map[string]string{"nofile": "1111:2222"}, UnsetSeccomp: "runtime/default",
			Env: map[string]string{"PROXY": "none", "SET": "node"}, Umask: "0027", Timezone: "Asia/Tokyo",
		}
	})
	pod := r.pod("p")
	sb := r.runPod(pod)
	out := r.sh(sb, pod, "c", "ulimit -Sn; ulimit -Hn; while read k v; do test $k = Seccomp: && echo $v; done </proc/self/status; true")
	if out != "1111\n2222\n2\n" {
		t.Errorf("output %q", out)
	}
	const script = "echo $PROXY $SET; umask; date +%z; touch /etc/localtime 2>/dev/null && echo written; true"
	const want = "none pod\n0027\n+0900\n"
	set := func(c *runtimeapi.ContainerConfig) {
		c.Envs = []*runtimeapi.KeyValue{{Key: "SET", Value: []byte("pod")}}
	}
	if out := r.sh(sb, pod, "defaults", script, set); out != want {
		t.Errorf("output %q, want %q", out, want)
	}
	cfg := r.shell("exec", "sleep 1000")
	set(cfg)
	resp, err := r.rt.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: r.run(sb, pod, cfg), Cmd: []string{"/bin/sh", "-c", script}})
	if err != nil || string(resp.GetStdout()) != want {
		t.Errorf("exec: %q, %v", resp.GetStdout(), err)
	}
}
