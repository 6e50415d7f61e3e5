// SPDX-License-Identifier: Apache-2.0

// Package lab gives the benchmarks nodes to measure on: boxes of namespaces,
// runtimes in them, or a whole cluster, as bin/cluster makes them. It enters
// them, counts what their processes use, and ends them; nothing is left.
package lab

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Config says where the programs are.
type Config struct {
	// Bin holds the programs of this repository, Tools those of `make deps`.
	Bin, Tools string
	// Base is where the clusters keep their files.
	Base string
	// Log receives what the cluster says while it starts and ends; nil: nobody.
	Log *os.File
}

// Lab is what one bin/cluster keeps until Close.
type Lab struct {
	Config
	// Boxes are the nodes by name, "control" beside them.
	Boxes map[string]*Box
	// Kubeconfig is the administrator's; empty without a control plane.
	Kubeconfig string

	args []string
	dir  string
	cmd  *exec.Cmd
	out  bytes.Buffer
	done chan struct{} // closed when the keeper has ended
	err  error         // of the keeper; read after done
	free chan struct{} // closed lets the thread that started the keeper go
}

// Start runs "cluster COMMAND --name NAME args..." and waits until it is ready.
// A cluster of that name whose owner died is swept first, by the command.
func Start(ctx context.Context, cfg Config, name, command string, args ...string) (_ *Lab, retErr error) {
	argv := append([]string{command, "--name", name, "--base", cfg.Base, "--bin", cfg.Bin, "--tools", cfg.Tools}, args...)
	l := &Lab{
		Config: cfg, args: args, dir: filepath.Join(cfg.Base, name),
		done: make(chan struct{}), free: make(chan struct{}),
		cmd: exec.Command(filepath.Join(cfg.Bin, "cluster"), argv...), //nolint:noctx // Close ends it in order
	}
	l.cmd.Stderr = &l.out
	if cfg.Log != nil {
		l.cmd.Stderr = cfg.Log
	}
	// In a process group of its own, that Ctrl-C reaches us alone, and ended by
	// the kernel should we be killed.
	l.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true, Pdeathsig: unix.SIGTERM}
	if err := l.spawn(); err != nil {
		return nil, fmt.Errorf("start cluster %s: %w", command, err)
	}
	defer func() {
		if retErr != nil {
			retErr = errors.Join(retErr, l.Close())
		}
	}()
	return l, l.await(ctx)
}

// spawn starts the keeper from a thread that stays: the death of the thread
// would be taken for ours.
func (l *Lab) spawn() error {
	started := make(chan error)
	go func() {
		runtime.LockOSThread()
		err := l.cmd.Start()
		started <- err
		if err == nil {
			<-l.free
		}
	}()
	if err := <-started; err != nil {
		return err
	}
	go func() {
		l.err = l.cmd.Wait()
		close(l.done)
	}()
	return nil
}

// state is what bin/cluster writes for other processes.
type state struct {
	PID        int            `json:"pid"`
	Ready      bool           `json:"ready"`
	Kubeconfig string         `json:"kubeconfig"`
	Boxes      map[string]int `json:"boxes"`
}

func (l *Lab) await(ctx context.Context) error {
	tick := time.NewTicker(50 * time.Millisecond)
	defer tick.Stop()
	for {
		var s state
		data, err := os.ReadFile(filepath.Join(l.dir, "state.json"))
		if err == nil && json.Unmarshal(data, &s) == nil && s.Ready && s.PID == l.cmd.Process.Pid {
			l.adopt(&s)
			return nil
		}
		select {
		case <-l.done:
			return fmt.Errorf("the cluster did not come up: %w: %s", l.err, bytes.TrimSpace(l.out.Bytes()))
		case <-ctx.Done():
			return ctx.Err()
		case <-tick.C:
		}
	}
}

func (l *Lab) adopt(s *state) {
	l.Kubeconfig = s.Kubeconfig
	l.Boxes = map[string]*Box{}
	for name, pid := range s.Boxes {
		group := "nodeagent-cluster-" + filepath.Base(l.dir) + "/" + name
		l.Boxes[name] = &Box{Name: name, PID: pid, Group: group, Cgroup: filepath.Join(unified(), group)}
	}
}

// Nodes are the boxes but the control plane's, in order.
func (l *Lab) Nodes() []*Box {
	var out []*Box
	for _, name := range slices.Sorted(maps.Keys(l.Boxes)) {
		if name != "control" {
			out = append(out, l.Boxes[name])
		}
	}
	return out
}

// Has says whether the lab was started with a flag.
func (l *Lab) Has(flag string) bool { return slices.Contains(l.args, "--"+flag) }

// Close ends everything and reports what is left of it.
func (l *Lab) Close() error {
	for _, b := range l.Boxes {
		b.stop()
	}
	err := l.cmd.Process.Signal(unix.SIGTERM)
	if errors.Is(err, os.ErrProcessDone) {
		err = nil
	}
	<-l.done
	close(l.free)
	if l.err != nil && l.Boxes != nil {
		err = errors.Join(err, fmt.Errorf("end cluster: %w: %s", l.err, bytes.TrimSpace(l.out.Bytes())))
	}
	return err
}

// unified is where cgroup v2 is mounted: by itself, or beside v1.
func unified() string {
	const root = "/sys/fs/cgroup"
	if _, err := os.Stat(root + "/cgroup.controllers"); err == nil {
		return root
	}
	return root + "/unified"
}

// Kernel names the machine's kernel.
func Kernel() string {
	data, err := os.ReadFile("/proc/sys/kernel/osrelease")
	if err != nil {
		return "unknown"
	}
	return strings.TrimSpace(string(data))
}

// KernelAtLeast says whether the kernel is of a version, as "6.19", or newer.
func KernelAtLeast(version string) bool {
	var have, want [2]int
	_, err1 := fmt.Sscanf(Kernel(), "%d.%d", &have[0], &have[1])
	_, err2 := fmt.Sscanf(version, "%d.%d", &want[0], &want[1])
	return err1 == nil && err2 == nil && slices.Compare(have[:], want[:]) >= 0
}
