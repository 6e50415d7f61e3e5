// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"

	"github.com/nodeagent/nodeagent/cri/container"
	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/image"
	"github.com/nodeagent/nodeagent/cri/nri"
	"github.com/nodeagent/nodeagent/cri/sandbox"
	"github.com/nodeagent/nodeagent/cri/spec"
	"github.com/nodeagent/nodeagent/cri/stats"
	"github.com/nodeagent/nodeagent/cri/stream"
)

// Cgroup drivers, as the kubelet is told by RuntimeConfig.
const (
	CgroupDriverCgroupfs = "cgroupfs"
	CgroupDriverSystemd  = "systemd"
)

// Config of the CRI room.
type Config struct {
	// Socket is where the kubelet connects.
	Socket string `yaml:"socket"`
	// CgroupDriver is "cgroupfs" or "systemd"; the kubelet follows it. Empty in the file: systemd's where systemd runs the node.
	CgroupDriver string `yaml:"cgroupDriver"`
	// DefaultHandler names the runtime handler of pods without a RuntimeClass.
	DefaultHandler string `yaml:"defaultHandler"`
	// Handlers are the runtime handlers by name.
	Handlers map[string]Handler `yaml:"handlers"`
	// Sandbox, Container, Image, Stream and Stats are the rooms' own settings.
	Sandbox   sandbox.Config   `yaml:"sandbox"`
	Container container.Config `yaml:"container"`
	Image     image.Config     `yaml:"image"`
	Stream    stream.Config    `yaml:"stream"`
	Stats     stats.Config     `yaml:"stats"`
	// Policy is the administrator's defaults for all containers.
	Policy Policy `yaml:"policy"`
	// NRI is the plugins' interface.
	NRI nri.Config `yaml:"nri"`
}

// Handler is one way to run containers.
type Handler struct {
	// Type is the runtime type of a containerd shim: "io.containerd.nodeagent.v1" is nodeagent's own, which writes logs
	// itself, "io.containerd.runc.v2" containerd's.
	Type string `yaml:"type"`
	// Path is the shim's binary; empty lets containerd find it by Type, and nodeagent find its own.
	Path string `yaml:"path"`
	// Binary is the OCI runtime that a shim of the runc family calls; empty means runc.
	Binary string `yaml:"binary"`
	// Root is the OCI runtime's state directory; empty is the shim's default.
	Root string `yaml:"root"`
	// Snapshotter makes root file systems; empty means containerd's configured one.
	Snapshotter string `yaml:"snapshotter"`
	// Sandbox is the mode of the handler's sandboxes, "pauseless", "pause" or "shim"; empty means sandbox.mode.
	Sandbox string `yaml:"sandbox"`
	// PodAnnotations and ContainerAnnotations are patterns of annotations passed to the OCI runtime.
	PodAnnotations       []string `yaml:"podAnnotations"`
	ContainerAnnotations []string `yaml:"containerAnnotations"`
	// PrivilegedWithoutHostDevices keeps the node's devices out of privileged containers.
	PrivilegedWithoutHostDevices bool `yaml:"privilegedWithoutHostDevices"`
	// CgroupWritable mounts cgroups writable into unprivileged containers.
	CgroupWritable bool `yaml:"cgroupWritable"`
	// Exec says who makes the processes of exec: see ExecDirect and ExecRuntime; empty means ExecDirect.
	Exec string `yaml:"exec"`
	// PodsPerShim lets that many pods have one process of nodeagent's own shim; 0 and 1 give each its own. When a shim
	// dies, all containers of its pods die.
	PodsPerShim int `yaml:"podsPerShim"`
}

// Ways to make the process of an exec.
const (
	// ExecDirect lets nodeagent's own shim make it, confined as runc would, where nothing about the container is unusual.
	ExecDirect = "direct"
	// ExecRuntime has the OCI runtime make it.
	ExecRuntime = "runtime"
)

// Default returns the configuration of a node with runc.
func Default() Config {
	return Config{
		Socket:         "/run/nodeagent/cri.sock",
		CgroupDriver:   CgroupDriverCgroupfs,
		DefaultHandler: "runc",
		Handlers:       map[string]Handler{"runc": {Type: containerd.ShimType}},
		Sandbox:        sandbox.Default(),
		Container:      container.Default(),
		Image:          image.Default(),
		Stream:         stream.Default(),
		Stats:          stats.Default(),
		NRI:            nri.Default(),
	}
}

// Validate reports all faults at once, each prefixed with the field's path.
func (c Config) Validate() error {
	var errs []error
	if !filepath.IsAbs(c.Socket) {
		errs = append(errs, fmt.Errorf("socket: %q is not an absolute path", c.Socket))
	}
	if c.CgroupDriver != CgroupDriverCgroupfs && c.CgroupDriver != CgroupDriverSystemd {
		errs = append(errs, fmt.Errorf("cgroupDriver: %q is neither %s nor %s", c.CgroupDriver, CgroupDriverCgroupfs, CgroupDriverSystemd))
	}
	if _, ok := c.Handlers[c.DefaultHandler]; !ok {
		errs = append(errs, fmt.Errorf("defaultHandler: %q is not among the handlers", c.DefaultHandler))
	}
	for _, name := range slices.Sorted(maps.Keys(c.Handlers)) {
		h := c.Handlers[name]
		if name == "" {
			errs = append(errs, errors.New("handlers: a handler has no name"))
		}
		errs = append(errs, h.validate(name)...)
	}
	errs = append(errs, within("sandbox", c.Sandbox.Validate()), within("container", c.Container.Validate()),
		within("image", c.Image.Validate()), within("stream", c.Stream.Validate()),
		within("stats", c.Stats.Validate()), within("nri", c.NRI.Validate()),
		within("policy", c.Policy.Validate()))
	return errors.Join(errs...)
}

// validate reports the faults of the handler with a name.
func (h Handler) validate(name string) []error {
	var errs []error
	if h.Type == "" {
		errs = append(errs, fmt.Errorf("handlers[%s].type: must not be empty", name))
	}
	if h.Sandbox != "" {
		if err := sandbox.CheckMode(h.Sandbox); err != nil {
			errs = append(errs, fmt.Errorf("handlers[%s].sandbox: %w", name, err))
		}
	}
	if h.PodsPerShim < 0 {
		errs = append(errs, fmt.Errorf("handlers[%s].podsPerShim: %d is negative", name, h.PodsPerShim))
	}
	if h.Exec != "" && h.Exec != ExecDirect && h.Exec != ExecRuntime {
		errs = append(errs, fmt.Errorf("handlers[%s].exec: %q is neither %s nor %s", name, h.Exec, ExecDirect, ExecRuntime))
	}
	if h.Path != "" && !filepath.IsAbs(h.Path) {
		errs = append(errs, fmt.Errorf("handlers[%s].path: %q is not an absolute path", name, h.Path))
	}
	return errs
}

// within prefixes each of the joined faults with the field that holds them.
func within(field string, err error) error {
	if err == nil {
		return nil
	}
	var errs []error
	if j, ok := err.(interface{ Unwrap() []error }); ok {
		for _, e := range j.Unwrap() {
			errs = append(errs, within(field, e))
		}
		return errors.Join(errs...)
	}
	return fmt.Errorf("%s.%w", field, err)
}

// snapshotters are those that images are unpacked for, by handler; a handler's own wins.
func (c Config) snapshotters() map[string]string {
	out := maps.Clone(c.Image.Snapshotters)
	if out == nil {
		out = map[string]string{}
	}
	for name, h := range c.Handlers {
		if h.Snapshotter == "" {
			continue
		}
		out[name] = h.Snapshotter
		if name == c.DefaultHandler {
			out[""] = h.Snapshotter
		}
	}
	return out
}

// runtime is what containerd is told to run the handler with.
func (h Handler) runtime(cgroupDriver string) containerd.Runtime {
	return containerd.Runtime{
		Type: h.Type, Path: h.Path, Binary: h.Binary, Root: h.Root,
		SystemdCgroup: cgroupDriver == CgroupDriverSystemd, Joins: h.Type == containerd.ShimType,
		PodsPerShim: h.PodsPerShim,
	}
}

// specHandler is what the OCI spec depends on; features are added when they are known.
func (h Handler) specHandler(name string) spec.Handler {
	return spec.Handler{
		Name: name, CgroupWritable: h.CgroupWritable, PrivilegedWithoutHostDevices: h.PrivilegedWithoutHostDevices,
		PodAnnotations: h.PodAnnotations, ContainerAnnotations: h.ContainerAnnotations,
	}
}

// isRunc tells whether the shim calls an OCI runtime of runc's kind.
func (h Handler) isRunc() bool {
	return containerd.Runtime{Type: h.Type}.RunsHere()
}
