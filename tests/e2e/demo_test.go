// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"strings"
	"testing"

	corev1 "k8s.io/api/core/v1"
)

func TestNodeIsReady(t *testing.T) {
	node, err := shared.Nodes[0].Object(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if got := node.Status.NodeInfo.ContainerRuntimeVersion; !strings.HasPrefix(got, shared.Runtime+"://") {
		t.Errorf("runtime is %q", got)
	}
	if len(node.Spec.PodCIDRs) != 2 {
		t.Errorf("pod ranges are %v", node.Spec.PodCIDRs)
	}
	for _, c := range node.Status.Conditions {
		if (c.Type == corev1.NodeReady) != (c.Status == corev1.ConditionTrue) {
			t.Errorf("condition %s is %s: %s", c.Type, c.Status, c.Message)
		}
	}
}

// TestDemo is what `make run` shows.
func TestDemo(t *testing.T) {
	if err := shared.Demo(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := shared.Kubectl(t.Context(), "delete", "namespace", "demo", "--timeout=60s"); err != nil {
		t.Fatal(err)
	}
}
