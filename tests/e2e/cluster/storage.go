// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// applyStorage makes the driver and its class known, with the objects of nodeagent's
// own packages, which `make` renders into Bin.
func (c *Cluster) applyStorage(ctx context.Context) error {
	manifest, err := os.ReadFile(filepath.Join(c.Bin, "storage.yaml"))
	if err != nil {
		return err
	}
	return c.Apply(ctx, string(manifest))
}

// startSnapshots gives the cluster what a driver cannot bring: the snapshot API and the
// upstream snapshot-controller, which is not told about nodes.
func (c *Cluster) startSnapshots(ctx context.Context) error {
	tool, err := filepath.EvalSymlinks(c.tool("snapshot-controller"))
	if err != nil {
		return err
	}
	crds := filepath.Join(filepath.Dir(tool), "crd")
	if _, err := c.Kubectl(ctx, "apply", "--server-side", "-k", crds); err != nil {
		return err
	}
	kubeconfig, err := c.pki.kubeconfig("snapshot-controller", controlURL, "system:snapshot-controller", "system:masters")
	if err != nil {
		return err
	}
	_, err = c.Control.Spawn(procSpec{
		Name: "snapshot-controller", Log: c.logPath("control", "snapshot-controller"), Restart: true,
		Argv: []string{tool, "--kubeconfig=" + kubeconfig, "--kube-api-qps=100", "--kube-api-burst=200", "--v=4"},
	})
	return err
}

// poolSize is what the nodes' own file systems for volumes hold; nothing is taken before
// it is written.
const poolSize = 24 << 30

// poolDir is where they are.
const poolDir = "/var/lib/pools"

// makePools mounts a file system of each kind that pools of volumes can be on. They go
// with the box's mounts, and their loop devices with them.
func (n *Node) makePools(ctx context.Context) error {
	for _, kind := range []string{"xfs", "btrfs"} {
		img := filepath.Join(n.c.dir, "pools", n.Name+"-"+kind+".img")
		if err := writeFile(img, nil); err != nil {
			return err
		}
		if err := os.Truncate(img, poolSize); err != nil {
			return err
		}
		dir := filepath.Join(poolDir, kind)
		if err := n.InMount(func() error { return os.MkdirAll(dir, 0o755) }); err != nil {
			return err
		}
		_, err := n.Run(ctx, "mkfs."+kind, "-q", img)
		if err == nil {
			_, err = n.Run(ctx, "mount", "-o", "loop", img, dir)
		}
		if err != nil {
			return errors.Join(errors.New("pool on "+kind), err)
		}
	}
	return nil
}

// pools are the agent's: the usual one, one on each file system of makePools, and memory.
func (n *Node) pools() map[string]any {
	return map[string]any{"pools": []map[string]any{
		{"name": "default", "backend": "file", "path": "/var/lib/nodeagent/pools/default", "reserve": "5%", "overcommit": 2},
		{"name": "xfs", "backend": "file", "path": poolDir + "/xfs", "requireMount": true, "overcommit": 2},
		{"name": "btrfs", "backend": "btrfs", "path": poolDir + "/btrfs", "requireMount": true},
		{"name": "memory", "backend": "tmpfs", "path": poolDir + "/memory"},
	}}
}

// IOLimits is what the block I/O controller allows the cgroups of a pod, as the kernel says it.
func (n *Node) IOLimits(podUID string) (string, error) {
	var out strings.Builder
	for _, h := range hierarchies() {
		err := filepath.WalkDir(filepath.Join(h, n.CgroupRoot()), func(path string, d fs.DirEntry, err error) error {
			if err != nil || d.IsDir() || !strings.Contains(path, "pod"+podUID) ||
				d.Name() != "io.max" && !strings.HasPrefix(d.Name(), "blkio.throttle.write_iops") {
				return nil //nolint:nilerr // a cgroup that goes meanwhile
			}
			data, err := os.ReadFile(path)
			out.Write(data)
			return err
		})
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return "", err
		}
	}
	return out.String(), nil
}

// testDrivers runs Kubernetes' tests of storage drivers once with each description of
// one; the classes that they name are beside them.
func (c *Cluster) testDrivers(ctx context.Context, r ConformanceRun, out io.Writer) error {
	var errs []error
	for _, file := range r.Drivers {
		driver, err := filepath.Abs(file)
		if err != nil {
			return err
		}
		if _, err := c.Kubectl(ctx, "apply", "-f", filepath.Join(filepath.Dir(driver), "classes.yaml")); err != nil {
			return err
		}
		one, name := r, strings.TrimSuffix(filepath.Base(driver), ".yaml")
		one.Report = filepath.Join(r.Report, name)
		c.Progress.Say("\nStorage driver %s", name)
		if err := c.runConformance(ctx, one, out, "--storage.testdriver="+driver); err != nil {
			errs = append(errs, fmt.Errorf("driver %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}
