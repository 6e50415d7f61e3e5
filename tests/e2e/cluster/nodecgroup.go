// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// CgroupRoot is the node's subtree in every cgroup hierarchy: "pods" below it is the
// kubelet's, "system" has the node's own programs in the v2 hierarchy.
func (n *Node) CgroupRoot() string { return cgroupName(n.c.dir) + "/" + n.Name }

// UnifiedCgroup is the cgroup v2 directory that every process of the node, its pods'
// included, is in: BPF programs on it see this node and no other.
func (n *Node) UnifiedCgroup() string { return filepath.Join(unifiedRoot(), n.CgroupRoot()) }

// ownCgroup makes the cgroup that a node takes for the root of all.
func (n *Node) ownCgroup(name string) (string, error) {
	root := cgroupName(n.c.dir) + "/" + name
	for _, h := range hierarchies() {
		if err := makeCgroup(h, root); err != nil {
			return "", err
		}
	}
	return root, nil
}

// makeCgroups makes what CgroupRoot promises. A node that sees it as the root gets "system" in all
// hierarchies instead, and its init moves there: v2 wants no process where there are children.
func (n *Node) makeCgroups() error {
	if n.c.alone {
		for _, h := range hierarchies() {
			if err := n.settle(filepath.Join(h, n.CgroupRoot())); err != nil {
				return err
			}
		}
	}
	for _, h := range hierarchies() {
		if err := makeCgroup(h, n.CgroupRoot()+"/pods"); err != nil {
			return err
		}
	}
	if err := makeCgroup(unifiedRoot(), n.CgroupRoot()+"/system"); err != nil {
		return err
	}
	n.cgroup = filepath.Join(n.UnifiedCgroup(), "system")
	return nil
}

func (n *Node) settle(root string) error {
	system := filepath.Join(root, "system")
	if err := os.Mkdir(system, 0o755); err != nil {
		return err
	}
	for _, f := range []string{"cpuset.cpus", "cpuset.mems"} {
		data, err := os.ReadFile(filepath.Join(root, f))
		if err != nil || strings.HasPrefix(root, unifiedRoot()+"/") {
			continue // not the v1 cpuset hierarchy
		}
		if err := os.WriteFile(filepath.Join(system, f), data, 0); err != nil {
			return err
		}
	}
	return os.WriteFile(filepath.Join(system, "cgroup.procs"), fmt.Append(nil, n.PID), 0)
}
