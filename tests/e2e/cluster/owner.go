// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// Info is a cluster of this machine as another process sees it.
type Info struct {
	Name, Runtime, Kubeconfig string
	// PID is the process that owns the cluster; Alive whether it still runs.
	PID   int
	Alive bool
	// Ready says that the owner is done with starting.
	Ready bool
	// Boxes maps nodes, and "control", to the process id of their init.
	Boxes map[string]int
}

// String is one line about the cluster.
func (i Info) String() string {
	what := "starting"
	switch {
	case !i.Alive:
		what = "dead, `cluster down` removes the rest"
	case i.Ready:
		what = "up"
	}
	return fmt.Sprintf("%s: %s, on %s, owner %d, KUBECONFIG=%s", i.Name, what, i.Runtime, i.PID, i.Kubeconfig)
}

// Find returns a cluster below base; fs.ErrNotExist when there is none.
func Find(base, name string) (*Info, error) {
	s, err := readState(filepath.Join(base, name))
	if err != nil {
		return nil, err
	}
	return &Info{
		Name: s.Name, Runtime: s.Runtime, Kubeconfig: s.Kubeconfig,
		PID: s.PID, Alive: s.alive(), Ready: s.Ready, Boxes: s.Boxes,
	}, nil
}

// List returns the clusters below base.
func List(base string) ([]Info, error) {
	dirs, err := os.ReadDir(base)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, err
	}
	var out []Info
	for _, d := range dirs {
		if i, err := Find(base, d.Name()); err == nil {
			out = append(out, *i)
		}
	}
	return out, nil
}

// Stop ends a cluster that another process owns, waits until it is gone and removes
// what is left of it. A cluster that is not there is no error.
func Stop(ctx context.Context, base, name string) error {
	dir := filepath.Join(base, name)
	s, err := readState(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return Sweep(ctx, dir)
	}
	if err != nil {
		return err
	}
	if s.alive() {
		if err := unix.Kill(s.PID, unix.SIGTERM); err != nil {
			return fmt.Errorf("signal the owner %d: %w", s.PID, err)
		}
	}
	err = waitFor(ctx, func(context.Context) error {
		if s.alive() {
			return fmt.Errorf("process %d is still running", s.PID)
		}
		for name, pid := range s.Boxes {
			if isInit(pid) {
				return fmt.Errorf("%s is still running", name)
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	return Sweep(ctx, dir)
}

// JoinNode puts the calling process into the node's cgroup, where services
// of the cluster are reached.
func (i Info) JoinNode(node string) error {
	procs := filepath.Join(unifiedRoot(), cgroupName(i.Name), node, "system/cgroup.procs")
	err := os.WriteFile(procs, []byte("0"), 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil // the control plane has none
	}
	return err
}

// isInit tells whether a process is a box's init rather than one with its reused id.
func isInit(pid int) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/cmdline", pid))
	return err == nil && strings.Contains(string(data), initArg)
}
