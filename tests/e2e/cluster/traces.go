// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// Traces is what to look for on the machine when a cluster is gone.
type Traces struct {
	dir        string
	cgroup     string
	namespaces map[string]string // "net:[4026532281]" to box
	// The kernel gives numbers of namespaces again, soon when another cluster
	// starts: of those with such a number only what was there at this moment counts.
	taken   uint64          // in ticks since boot
	mounts  map[string]bool // of namespaces, by id and target
	links   []string
	sysctls map[string]string
}

// Traces remembers what a running cluster could leave.
func (c *Cluster) Traces() (*Traces, error) {
	tr := &Traces{dir: c.dir, cgroup: cgroupName(c.dir), namespaces: map[string]string{}, mounts: map[string]bool{}, sysctls: c.state.Sysctls}
	for box, pid := range c.state.Boxes {
		for _, kind := range []string{"net", "mnt", "pid", "uts", "ipc"} {
			ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", pid, kind))
			if err != nil {
				return nil, err
			}
			tr.namespaces[ns] = box
		}
	}
	err := eachMount(func(f []string) error {
		if tr.namespaces[f[3]] != "" {
			tr.mounts[f[0]+f[4]] = true
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_BOOTTIME, &now); err != nil {
		return nil, err
	}
	tr.taken = uint64(time.Duration(now.Nano()) / tick)
	tr.links, err = machineLinks()
	return tr, err
}

// tick is the unit of a process's start time.
const tick = 10 * time.Millisecond

func machineLinks() ([]string, error) {
	return filepath.Glob("/sys/class/net/*")
}

// leftWithin is how long something may look like left: a process that was killed
// in the middle of a system call takes a moment, and what other clusters make for
// a moment comes and goes.
const leftWithin = 30 * time.Second

// Left reports what of the cluster stays on the machine.
func (tr *Traces) Left(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, leftWithin)
	defer cancel()
	return WaitFor(ctx, func(context.Context) error { return tr.left() })
}

func (tr *Traces) left() error {
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
	want := tr.sysctls
	if len(siblings(tr.dir)) > 0 {
		want = nil // the last one puts them back
	}
	for name, want := range want {
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
		box, ok := tr.namespaces[ns]
		if !ok {
			continue
		}
		pid, err := strconv.Atoi(strings.Split(path, "/")[2])
		if err != nil {
			return err
		}
		if began, err := startTime(pid); err == nil && began <= tr.taken {
			return fmt.Errorf("process %d is in %s of %s", pid, ns, box)
		}
	}
	return nil
}

func (tr *Traces) mountsLeft() error {
	return eachMount(func(f []string) error {
		if strings.Contains(strings.Join(f, " "), tr.dir+"/") || tr.mounts[f[0]+f[4]] && tr.namespaces[f[3]] != "" {
			return fmt.Errorf("mount %s", f[4])
		}
		return nil
	})
}

// eachMount calls fn with the fields of each line of mountinfo, until it fails.
func eachMount(fn func(fields []string) error) error {
	data, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return err
	}
	for line := range strings.Lines(string(data)) {
		if err := fn(strings.Fields(line)); err != nil {
			return err
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
