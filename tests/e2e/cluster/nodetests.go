// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	_ "embed" // the stand-in of systemd
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

//go:embed systemd.sh
var systemdScript string

// Alone starts one node with its runtime and no kubelet: Kubernetes' node tests bring one, with an
// API server beside it. The node sees its own cgroups as the root of all, for there the tests look.
func Alone(ctx context.Context, cfg Config) (*Cluster, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if err := cfg.checkPrograms(); err != nil {
		return nil, err
	}
	c := &Cluster{Config: cfg, dir: filepath.Join(cfg.Base, cfg.Name), bare: true, alone: true}
	return c.up(ctx, []step{
		{"certificates", c.makePKI},
		{"network switch", c.startControlBox},
		{"image registry", c.startRegistry},
		{c.Runtime, func(ctx context.Context) error {
			n, err := c.startBox(ctx, 1, c.Runtime)
			if err != nil {
				return err
			}
			return errors.Join(n.startAlone(ctx), c.saveState())
		}},
	})
}

// RunNodeTests runs Kubernetes' tests of a node in the node of Alone and writes what they say
// to out.
func (c *Cluster) RunNodeTests(ctx context.Context, r ConformanceRun, out io.Writer) error {
	for _, p := range []string{"ginkgo", "e2e_node.test", "kubelet"} {
		if _, err := os.Stat(c.tool(p)); err != nil {
			return fmt.Errorf("%w (make deps ONLY='ginkgo e2e_node.test regression-issue-74839')", err)
		}
	}
	n := c.Nodes[0]
	work, err := n.prepareTests(r)
	if err != nil {
		return err
	}
	argv := []string{
		c.tool("ginkgo"), fmt.Sprintf("--procs=%d", max(1, r.Procs)), "--no-color", "--silence-skips", "--timeout=3h",
		"--focus=" + r.Focus, "--skip=" + r.Skip, filepath.Join(work, "e2e_node.test"), "--",
		"--kubelet-config-file=" + filepath.Join(work, "kubelet.yaml"),
		"--container-runtime-endpoint=unix://" + n.CRISocket(), "--prepull-images=false", "--restart-kubelet=true",
		"--node-name=" + n.Name, "--dns-domain=" + clusterDomain, "--report-dir=" + r.Report,
	}
	if g := c.gates(); g != nil {
		argv = append(argv, slices.Concat(g, []string{strings.Replace(g[0], "--", "--service-", 1)})...)
	}
	argv = inSystemCgroup(argv)
	cmd := n.Command(ctx, argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), "TMPDIR="+work, "HOME="+work, "PATH="+filepath.Join(work, "bin")+":"+c.Bin+":"+c.Tools+":"+os.Getenv("PATH"))
	cmd.Dir, cmd.Stdout, cmd.Stderr = work, out, out
	if err := n.Start(cmd); err != nil {
		return err
	}
	if err := cmd.Wait(); err != nil {
		return errors.Join(errors.New("some of the tests failed, see "+r.Report), err)
	}
	return nil
}

// prepareTests makes the directory that the tests run in: the test program and the kubelet, which it
// looks for beside itself, what stands in for systemd, and the kubelet's configuration.
func (n *Node) prepareTests(r ConformanceRun) (string, error) {
	work := n.path("tests")
	for _, d := range []string{filepath.Join(work, "bin"), r.Report} {
		if err := os.MkdirAll(d, 0o755); err != nil {
			return "", err
		}
	}
	for _, name := range []string{"e2e_node.test", "kubelet"} {
		if err := os.Symlink(n.c.tool(name), filepath.Join(work, name)); err != nil {
			return "", err
		}
	}
	for _, name := range []string{"sudo", "systemctl", "systemd-run"} {
		if err := os.WriteFile(filepath.Join(work, "bin", name), []byte(systemdScript), 0o755); err != nil { //nolint:gosec // a program
			return "", err
		}
	}
	cfg := map[string]any{
		"apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
		"failCgroupV1": false, "cgroupDriver": "cgroupfs", "cgroupRoot": "/", "failSwapOn": false,
		"oomScoreAdj": 0, "maxOpenFiles": 20000, "serializeImagePulls": false,
		"resolvConf": "/etc/resolv.conf", "podCIDR": "10.100.0.0/24", "clusterDomain": clusterDomain,
		"volumeStatsAggPeriod": "10s", "fileCheckFrequency": "10s", "evictionPressureTransitionPeriod": "30s",
		"imageGCHighThresholdPercent": 100, "imageGCLowThresholdPercent": 99,
		"evictionHard": map[string]string{"memory.available": "100Mi", "nodefs.available": "1%", "nodefs.inodesFree": "1%"},
	}
	maps.Copy(cfg, n.c.KubeletExtra)
	return work, n.writeYAML(filepath.Join(work, "kubelet.yaml"), cfg)
}
