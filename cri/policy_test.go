// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/cri"
)

func TestPolicyFaults(t *testing.T) {
	c := cri.Default()
	c.Policy = cri.Policy{
		Rlimits: map[string]string{"nofile": "10:5", "colour": "1"}, ShmSize: -1, UnsetSeccomp: "strict",
		RejectMissingHostPaths: []string{"data"},
	}
	err := c.Validate()
	for _, want := range []string{
		"policy.rlimits[nofile]: ", "policy.rlimits[colour]: ", "policy.shmSize: ", "policy.unsetSeccomp: ", "policy.rejectMissingHostPaths[0]: ",
	} {
		if err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%v has no %q", err, want)
		}
	}
}

func TestRootPolicy(t *testing.T) {
	r := newRigWith(t, func(r *rig) {
		r.cfg.Policy = cri.Policy{Rlimits: map[string]string{"nofile": "1111:2222"}, UnsetSeccomp: "runtime/default"}
	})
	pod := r.pod("p")
	sb := r.runPod(pod)
	out := r.sh(sb, pod, "c", "ulimit -Sn; ulimit -Hn; while read k v; do test $k = Seccomp: && echo $v; done </proc/self/status; true")
	if out != "1111\n2222\n2\n" {
		t.Errorf("output %q", out)
	}
}
