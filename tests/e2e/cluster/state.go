// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

const downDeadline = 60 * time.Second

// state is what another process must know to show a cluster or to clean up after it.
type state struct {
	Name    string            `json:"name"`
	PID     int               `json:"pid"`
	Started uint64            `json:"started"` // of PID, in ticks since boot: tells a reused id
	Runtime string            `json:"runtime"`
	Sysctls map[string]string `json:"sysctls"`
	// Ready says that the owner finished what it set out to do.
	Ready      bool              `json:"ready"`
	Kubeconfig string            `json:"kubeconfig,omitempty"`
	Boxes      map[string]int    `json:"boxes,omitempty"` // name to init's process id
	Notes      map[string]string `json:"notes,omitempty"`
}

func statePath(dir string) string { return filepath.Join(dir, "state.json") }

// cgroupName is the cluster's subtree in every hierarchy.
func cgroupName(dir string) string { return "nodeagent-cluster-" + filepath.Base(dir) }

// claim takes the cluster's directory, after cleaning up a cluster of the same
// name whose owner is dead.
func (c *Cluster) claim(ctx context.Context) error {
	if old, err := readState(c.dir); err == nil && old.alive() {
		return fmt.Errorf("cluster %s is already running (process %d); stop it first", c.Name, old.PID)
	}
	if err := Sweep(ctx, c.dir); err != nil {
		return fmt.Errorf("clean up after an earlier %s: %w", c.Name, err)
	}
	if err := os.MkdirAll(filepath.Join(c.Logs(), "control"), 0o700); err != nil {
		return err
	}
	started, err := startTime(os.Getpid())
	if err != nil {
		return err
	}
	before, err := sysctlsBefore(c.dir)
	if err != nil {
		return err
	}
	c.state = &state{Name: c.Name, PID: os.Getpid(), Started: started, Runtime: c.Runtime, Sysctls: before}
	return c.saveState()
}

func (c *Cluster) saveState() error {
	c.state.Kubeconfig = c.Kubeconfig
	c.state.Boxes = map[string]int{}
	if c.Control != nil {
		c.state.Boxes[c.Control.Name] = c.Control.PID
	}
	for _, n := range c.Nodes {
		c.state.Boxes[n.Name] = n.PID
	}
	data, err := json.MarshalIndent(c.state, "", "  ")
	if err != nil {
		return err
	}
	tmp := statePath(c.dir) + ".new"
	if err := os.WriteFile(tmp, data, 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, statePath(c.dir))
}

// MarkReady lets other processes see that the owner is done with starting.
func (c *Cluster) MarkReady() error {
	c.state.Ready = true
	return c.saveState()
}

func readState(dir string) (*state, error) {
	data, err := os.ReadFile(statePath(dir))
	if err != nil {
		return nil, err
	}
	s := new(state)
	return s, json.Unmarshal(data, s)
}

func (s *state) alive() bool {
	t, err := startTime(s.PID)
	return err == nil && t == s.Started
}

// startTime is field 22 of /proc/PID/stat.
func startTime(pid int) (uint64, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	_, rest, ok := strings.Cut(string(data), ") ")
	f := strings.Fields(rest)
	if ok && strings.HasPrefix(rest, "Z") {
		return 0, fmt.Errorf("process %d: %w", pid, fs.ErrNotExist) // dead, its parent has not noticed
	}
	if !ok || len(f) < 20 {
		return 0, fmt.Errorf("process %d: odd stat line", pid)
	}
	return strconv.ParseUint(f[19], 10, 64)
}

// Sweep removes what a cluster in dir left: loop devices, cgroups, files; and the
// last one puts the sysctls back. Its boxes must be gone. Nothing there is no error.
func Sweep(ctx context.Context, dir string) error {
	var errs []error
	if s, err := readState(dir); err == nil {
		if s.PID != os.Getpid() && s.alive() {
			return fmt.Errorf("cluster %s is running (process %d)", s.Name, s.PID)
		}
		if len(siblings(dir)) == 0 {
			for name, want := range s.Sysctls {
				errs = append(errs, restoreSysctl(name, want))
			}
		}
	} else if !errors.Is(err, fs.ErrNotExist) {
		errs = append(errs, err)
	}
	errs = append(errs, detachLoops(dir), removeCgroups(ctx, cgroupName(dir)))
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.RemoveAll(dir); err != nil {
		return err
	}
	_ = os.Remove(filepath.Dir(dir)) // the last cluster takes the base with it
	return nil
}

// keepLogs copies the logs of a cluster that failed out of the directory that is
// about to be removed.
func (c *Cluster) keepLogs() error {
	keep := filepath.Join(os.TempDir(), "nodeagent-cluster-"+c.Name+"-logs")
	if err := os.RemoveAll(keep); err != nil {
		return err
	}
	if err := os.CopyFS(keep, os.DirFS(c.Logs())); err != nil {
		return err
	}
	return fmt.Errorf("logs are kept in %s", keep)
}
