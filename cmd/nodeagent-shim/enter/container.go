// SPDX-License-Identifier: Apache-2.0

// Package enter makes further processes in a container without the OCI runtime: for a probe that runs every second, the three
// processes and the compiled seccomp profile of each `runc exec` are most of its cost.
//
// It promises that such a process is confined exactly as the OCI runtime's would be, or is not made: whatever is not known
// here, or fails before the program is looked for, is ErrUnable, and the OCI runtime is asked instead. See DESIGN.md.
package enter

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
)

// ErrUnable says that the OCI runtime has to make the process.
var ErrUnable = errors.New("not without the OCI runtime")

// Container is what is known of a container in which processes are made.
type Container struct {
	id      string
	program *Program
	// keyring says that processes join the container's own session keyring.
	keyring bool
	// clone are the flags of the namespaces to enter.
	clone   uint64
	uids    []mapping // of the user namespace; empty on the host's
	oom     *int
	umask   *uint32
	seccomp *Filter

	mu      sync.Mutex // guards cgroups
	cgroups []string
}

// Options say where a container comes from.
type Options struct {
	// ID is the container's, Bundle its directory, Runtime the path of the OCI runtime, which is runc.
	ID, Bundle, Runtime string
	// Filters is where compiled seccomp filters are kept.
	Filters string
	// NoKeyring is the OCI runtime's option of that name.
	NoKeyring bool
	Program   *Program
}

// Read reads a container's specification. ErrUnable when something in it is not known here.
func Read(o Options) (*Container, error) {
	raw, err := os.ReadFile(filepath.Join(o.Bundle, "config.json"))
	if err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	var s spec
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("read spec: %w", err)
	}
	if s.Process.ApparmorProfile != "" || s.Process.SelinuxLabel != "" {
		return nil, unable("container with a label")
	}
	for _, j := range []json.RawMessage{s.Linux.Personality, s.Linux.MemoryPolicy, s.Linux.IntelRdt} {
		if len(j) > 0 && string(j) != "null" {
			return nil, unable("container with a personality, a memory policy or an RDT group")
		}
	}
	c := &Container{
		id: o.ID, program: o.Program, keyring: !o.NoKeyring, uids: s.Linux.UIDMappings, oom: s.Process.OOMScoreAdj, umask: s.Process.User.Umask,
	}
	var names []string
	for _, ns := range s.Linux.Namespaces {
		flag := clone(ns.Type)
		if flag == 0 {
			return nil, unable("%s namespace", ns.Type)
		}
		c.clone |= flag
		names = append(names, ns.Type)
	}
	if !slices.Contains(names, "mount") {
		return nil, unable("container in the host's mount namespace")
	}
	c.seccomp, err = findFilter(s.Linux.Seccomp, o.Runtime, o.Filters)
	return c, err
}

// Filter is the container's seccomp filter; nil when it has none.
func (c *Container) Filter() *Filter { return c.seccomp }

// paths are the container's cgroups as the OCI runtime recorded them. They do not change.
func (c *Container) paths(state string) ([]string, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if len(c.cgroups) > 0 {
		return c.cgroups, nil
	}
	raw, err := os.ReadFile(filepath.Join(state, "state.json"))
	if err != nil {
		return nil, unable("%w", err)
	}
	var s struct {
		CgroupPaths map[string]string `json:"cgroup_paths"`
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, unable("%w", err)
	}
	for _, p := range s.CgroupPaths {
		c.cgroups = append(c.cgroups, p)
	}
	if len(c.cgroups) == 0 {
		return nil, unable("no cgroups are recorded")
	}
	slices.Sort(c.cgroups)
	return c.cgroups, nil
}

// hostUID is a user of the container as the host knows it.
func (c *Container) hostUID(uid uint32) (uint32, bool) {
	if len(c.uids) == 0 {
		return uid, true
	}
	for _, m := range c.uids {
		if uid >= m.ContainerID && uid-m.ContainerID < m.Size {
			return m.HostID + uid - m.ContainerID, true
		}
	}
	return 0, false
}
