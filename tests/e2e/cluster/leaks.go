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

// Traces is what to look for on the machine when a cluster is gone.
type Traces struct {
	dir        string
	cgroup     string
	namespaces map[string]string // "net:[4026532281]" to box
	links      []string
	sysctls    map[string]string
}

// Traces remembers what a running cluster could leave.
func (c *Cluster) Traces() (*Traces, error) {
	tr := &Traces{dir: c.dir, cgroup: cgroupName(c.dir), namespaces: map[string]string{}, sysctls: c.state.Sysctls}
	for box, pid := range c.state.Boxes {
		for _, kind := range []string{"net", "mnt", "pid", "uts", "ipc"} {
			ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
			if err != nil {
				return nil, err
			}
			tr.namespaces[ns] = box
		}
	}
	var err error
	tr.links, err = machineLinks()
	return tr, err
}

func machineLinks() ([]string, error) {
	return filepath.Glob("/sys/class/net/*")
}

// Left reports what of the cluster is still on the machine.
func (tr *Traces) Left() error {
	errs := []error{tr.processesLeft(), tr.mountsLeft(), tr.linksLeft()}
	for dev, file := range loopsIn(tr.dir) {
		errs = append(errs, fmt.Errorf("loop device /dev/%s of %s", dev, file))
	}
	paths := []string{tr.dir}
	for _, h := range hierarchies() {
		paths = append(paths, filepath.Join(h, tr.cgroup))
	}
	for _, p := range paths {
		if _, err := os.Stat(p); !errors.Is(err, fs.ErrNotExist) {
			errs = append(errs, fmt.Errorf("%s exists: %w", p, err))
		}
	}
	for name, want := range tr.sysctls {
		if got, err := os.ReadFile(filepath.Join("/proc/sys", name)); err != nil || strings.TrimSpace(string(got)) != want {
			errs = append(errs, fmt.Errorf("sysctl %s is %s, not %s: %w", name, got, want, err))
		}
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("the cluster left: %w", err)
	}
	return nil
}

// processesLeft looks for processes in the boxes' namespaces.
func (tr *Traces) processesLeft() error {
	all, err := filepath.Glob("/proc/[0-9]*/ns/*")
	if err != nil {
		return err
	}
	for _, path := range all {
		ns, err := os.Readlink(path)
		if err != nil {
			continue // just ended
		}
		if box, ok := tr.namespaces[ns]; ok {
			return fmt.Errorf("process %s is in %s of %s", strings.Split(path, "/")[2], ns, box)
		}
	}
	return nil
}

func (tr *Traces) mountsLeft() error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		f := strings.Fields(line)
		if strings.Contains(line, tr.dir+"/") || tr.namespaces[f[3]] != "" {
			return fmt.Errorf("mount %s", f[4])
		}
	}
	return nil
}

func (tr *Traces) linksLeft() error {
	now, err := machineLinks()
	if err == nil && !slices.Equal(now, tr.links) {
		err = fmt.Errorf("network devices %v instead of %v", now, tr.links)
	}
	return err
}
