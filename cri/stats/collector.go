// SPDX-License-Identifier: Apache-2.0

// Package stats measures containers and pods from the kernel's own files: no
// shim, no runtime and no process in the pod is asked. Files that every
// reading needs stay open, so that a reading costs a few pread calls a
// container.
package stats

import (
	"context"
	"fmt"
	"path/filepath"
	"sync"
	"time"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Container says which container to measure.
type Container struct {
	ID string
	// Cgroup is the container's path below the cgroup root, as in
	// /proc/<pid>/cgroup. Empty, or not there: no cpu and memory.
	Cgroup string
	// Snapshotter and SnapshotKey name the writable layer.
	Snapshotter string
	SnapshotKey string
	// Attributes go into the answer unchanged.
	Attributes *runtimeapi.ContainerAttributes
	// Image is the user's reference, for the label of metrics.
	Image string
	// Started is zero for a container that has not started.
	Started time.Time
	// Pid of the container's first process; zero when it does not run.
	Pid int
}

// Pod says which sandbox to measure.
type Pod struct {
	ID string
	// Cgroup is the pod's cgroup, the parent of its containers'.
	Cgroup string
	// NetNS is the path of the pod's network namespace; empty for the host's,
	// whose traffic is not the pod's.
	NetNS      string
	Attributes *runtimeapi.PodSandboxAttributes
	Containers []Container
	// Created is when the sandbox became ready.
	Created time.Time
}

// Layer is what a writable layer occupied when it was last measured.
type Layer struct {
	Bytes, Inodes uint64
	// At is when it was measured.
	At time.Time
	// Mountpoint and Device name the file system.
	Mountpoint, Device string
}

// Layers knows the writable layers' sizes without measuring them in the call.
type Layers interface {
	Layer(snapshotter, key string) (Layer, bool)
}

// Config of the collector.
type Config struct {
	// CgroupRoot is where the cgroup file system is mounted.
	CgroupRoot string `yaml:"cgroupRoot"`
}

// Default returns the configuration for every ordinary Linux.
func Default() Config { return Config{CgroupRoot: "/sys/fs/cgroup"} }

// Validate reports all faults at once.
func (c Config) Validate() error {
	if !filepath.IsAbs(c.CgroupRoot) {
		return fmt.Errorf("cgroupRoot: %q is not absolute", c.CgroupRoot)
	}
	return nil
}

// Collector reads statistics. Its methods may be called concurrently.
type Collector struct {
	cfg    Config
	layers Layers
	tree   tree
	bufs   sync.Pool
	budget *budget

	// diskMu guards disks; it is taken under a group's lock.
	diskMu sync.Mutex
	disks  map[string]string // "major:minor" -> device path

	// mu guards the maps. A group has its own lock, which may be taken under
	// mu, never the reverse.
	mu     sync.Mutex
	groups map[string]*group // by cgroup
	owners map[string]string // container or pod id -> cgroup
	nets   map[string]*file  // open counters by pod id
	procs  map[string]procCount
}

// New makes a collector. layers may be nil: then there are no writable layers.
func New(cfg Config, layers Layers) (*Collector, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	return &Collector{
		cfg: cfg, layers: layers,
		bufs:   sync.Pool{New: func() any { b := make([]byte, maxFile); return &b }},
		groups: map[string]*group{}, owners: map[string]string{}, nets: map[string]*file{},
		procs: map[string]procCount{}, disks: map[string]string{},
	}, nil
}

// Start looks at the machine's cgroups.
func (c *Collector) Start(_ context.Context) error {
	t, err := findTree(c.cfg.CgroupRoot)
	if err != nil {
		return fmt.Errorf("statistics: %w", err)
	}
	c.tree, c.budget = t, newBudget()
	return nil
}

// Stop closes all descriptors.
func (c *Collector) Stop(_ context.Context) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, g := range c.groups {
		g.close()
	}
	for _, f := range c.nets {
		f.close()
	}
	clear(c.groups)
	clear(c.owners)
	clear(c.nets)
	clear(c.procs)
	return nil
}

// Forget closes what is open for a container or pod. Call it when one stops:
// a pod's open counters keep its network namespace alive. A measurement of a
// forgotten id simply opens it again.
func (c *Collector) Forget(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.procs, id)
	if f, ok := c.nets[id]; ok {
		f.close()
		delete(c.nets, id)
	}
	if cg, ok := c.owners[id]; ok {
		delete(c.owners, id)
		if g := c.groups[cg]; g != nil {
			g.close()
			delete(c.groups, cg)
		}
	}
}

// group returns the open group of an owner's cgroup, nil without one.
func (c *Collector) group(owner, cgroup string) *group {
	if cgroup == "" || c.tree.root == "" {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if old := c.owners[owner]; old != cgroup && c.groups[old] != nil {
		c.groups[old].close()
		delete(c.groups, old)
	}
	g := c.groups[cgroup]
	if g == nil {
		g = newGroup(c.tree, cgroup, c.budget)
		c.groups[cgroup] = g
	}
	c.owners[owner] = cgroup
	return g
}

// links reads a pod's interfaces; nil when there are none to read.
func (c *Collector) links(p *Pod, buf []byte) []link {
	if p.NetNS == "" {
		return nil
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	f := c.nets[p.ID]
	if f == nil {
		fd, err := openNetDev(p.NetNS)
		if err != nil {
			return nil // the sandbox is going away
		}
		f = &file{path: p.NetNS, fd: fd}
		c.nets[p.ID] = f
	}
	n, err := pread(f.fd, buf)
	if err != nil {
		return nil
	}
	return parseNetDev(buf[:n])
}

// Containers measures containers, in the order given.
func (c *Collector) Containers(list []Container) []*runtimeapi.ContainerStats {
	buf, put := c.buffer()
	defer put()
	out := make([]*runtimeapi.ContainerStats, len(list))
	for i := range list {
		out[i] = c.container(&list[i], buf)
	}
	return out
}

// Pods measures pods with their containers, in the order given.
func (c *Collector) Pods(list []Pod) []*runtimeapi.PodSandboxStats {
	buf, put := c.buffer()
	defer put()
	out := make([]*runtimeapi.PodSandboxStats, len(list))
	for i := range list {
		out[i] = c.pod(&list[i], buf)
	}
	return out
}

// buffer lends a buffer of maxFile.
func (c *Collector) buffer() ([]byte, func()) {
	b, ok := c.bufs.Get().(*[]byte)
	if !ok {
		return make([]byte, maxFile), func() {}
	}
	return *b, func() { c.bufs.Put(b) }
}
