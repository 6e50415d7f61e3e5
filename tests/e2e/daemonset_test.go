// SPDX-License-Identifier: Apache-2.0

package e2e

import (
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// TestDaemonSet packages nodeagent and deploys it beside containerd's own CRI
// plugin: the DaemonSet in mode pod is the network, the services and the volumes of
// the node, without bridge, kube-proxy or a sidecar.
func TestDaemonSet(t *testing.T) {
	dist := t.TempDir()
	build := exec.CommandContext(t.Context(), "go", "run", "./packaging/build", "--version", "v0.0.0-test", "--bin", "bin", "--out", dist)
	build.Dir = "../.."
	build.Env = append(os.Environ(), "SOURCE_DATE_EPOCH=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("make the package: %v\n%s", err, out)
	}
	cfg := config("daemonset")
	cfg.Runtime, cfg.Dist = cluster.RuntimeContainerd, dist
	c, err := cluster.Up(t.Context(), cfg)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { // the nodes are not quiet: the DaemonSet is on them
		ctx := context.WithoutCancel(t.Context())
		traces, err := c.Traces()
		err = errors.Join(err, c.Down(ctx))
		if traces != nil {
			err = errors.Join(err, traces.Left(ctx))
		}
		if err != nil {
			t.Error(err)
		}
	})
	if err := c.Demo(t.Context()); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Nodes[0].ReadFile(filepath.Join("/etc/cni/net.d", "05-nodeagent.conflist")); err != nil {
		t.Errorf("the runtime was told of the network by another file: %v", err)
	}
}
