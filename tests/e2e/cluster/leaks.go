// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Quiet reports what a node without pods still has of pods that it had: processes,
// mounts, links, leases, loop devices, cgroups. Call it until it is nil.
func (n *Node) Quiet(ctx context.Context) error {
	var errs []error
	for _, look := range []func(context.Context) error{
		n.quietProcesses, n.quietMounts, n.quietLinks, n.quietLeases, n.quietCgroups,
	} {
		errs = append(errs, look(ctx))
	}
	for dev, file := range loopsIn(n.dir) {
		errs = append(errs, fmt.Errorf("loop device /dev/%s of %s", dev, file))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("%s still has: %w", n.Name, err)
	}
	return nil
}

func (n *Node) quietProcesses(context.Context) error {
	pids, err := n.Processes("")
	if err != nil {
		return err
	}
	own := []int{n.PID}
	for _, p := range n.procs {
		pid, _ := p.PID()
		own = append(own, pid)
	}
	for _, pid := range pids {
		cmdline, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
		argv := strings.Split(string(cmdline), "\x00")
		if err != nil || argv[0] == "" || slices.Contains(own, pid) || filepath.Base(argv[0]) == "containerd" {
			continue // one of the node's own, or it just ended
		}
		return fmt.Errorf("process %d: %s", pid, strings.Join(argv, " "))
	}
	return nil
}

// quietMounts looks for mounts of pods, of namespaces and of volumes.
func (n *Node) quietMounts(context.Context) error {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/mountinfo", n.PID))
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		target := strings.Fields(line)[4]
		for _, dir := range []string{"/var/lib/kubelet/", "/run/nodeagent/", "/run/netns/", "/run/containerd/", "/var/lib/nodeagent/"} {
			if strings.HasPrefix(target, dir) {
				return fmt.Errorf("mount %s", target)
			}
		}
	}
	return nil
}

// quietLinks expects no more devices than the node began with; containerd's bridge stays.
func (n *Node) quietLinks(ctx context.Context) error {
	out, err := n.Run(ctx, "ip", "-json", "link")
	if err != nil {
		return err
	}
	var links []struct {
		Name string `json:"ifname"`
	}
	if err := json.Unmarshal([]byte(out), &links); err != nil {
		return err
	}
	for _, l := range links {
		if !slices.Contains([]string{"lo", "eth0", "cni0"}, l.Name) {
			return fmt.Errorf("network device %s", l.Name)
		}
	}
	return nil
}

func (n *Node) quietLeases(ctx context.Context) error {
	if n.c.Runtime != RuntimeNodeagent {
		return nil
	}
	out, err := n.Run(ctx, filepath.Join(n.c.Bin, "nodeagent"), "ipam", "leases", "-o", "json")
	if err != nil {
		return err
	}
	var leases []json.RawMessage
	if err := json.Unmarshal([]byte(out), &leases); err != nil {
		return err
	}
	for _, l := range leases {
		if !bytes.Contains(l, []byte(`"quarantine`)) {
			return fmt.Errorf("address lease %s", bytes.TrimSpace(l))
		}
	}
	return nil
}

func (n *Node) quietCgroups(context.Context) error {
	for _, h := range hierarchies() {
		err := filepath.WalkDir(filepath.Join(h, n.CgroupRoot()), func(path string, d fs.DirEntry, err error) error {
			if err == nil && d.IsDir() && strings.HasPrefix(d.Name(), "pod") && d.Name() != "pods" {
				return fmt.Errorf("cgroup %s", path)
			}
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		})
		if err != nil {
			return err
		}
	}
	return nil
}
