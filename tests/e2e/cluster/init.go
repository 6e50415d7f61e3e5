// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/signal"
	"path/filepath"

	"golang.org/x/sys/unix"
)

// Init runs as a box's init, or as a process in a box that makes a connection, and
// returns true when it was that; every program that calls Up calls it before anything
// else and ends when it is true.
func Init() bool {
	switch {
	case len(os.Args) == 3 && os.Args[1] == initArg:
		return boxInit()
	case len(os.Args) == 4 && os.Args[1] == dialArg:
		return boxDial(os.Args[2], os.Args[3])
	}
	return false
}

func boxInit() bool {
	life, ready := os.NewFile(3, "life"), os.NewFile(4, "ready")
	if err := prepareBox(os.Args[2]); err != nil {
		_, _ = fmt.Fprintln(ready, err)
		return true
	}
	children := make(chan os.Signal, 16)
	signal.Notify(children, unix.SIGCHLD)
	_, _ = fmt.Fprint(ready, "ready")
	_ = ready.Close()
	go func() {
		for range children {
			reap()
		}
	}()
	_, _ = io.Copy(io.Discard, life) // ends when the maker closes the pipe or dies
	return true
}

// reap collects the orphans of the box that have ended.
func reap() {
	for {
		pid, err := unix.Wait4(-1, nil, unix.WNOHANG, nil)
		if pid <= 0 && !errors.Is(err, unix.EINTR) {
			return
		}
	}
}

func prepareBox(data string) error {
	var spec boxSpec
	if err := json.Unmarshal([]byte(data), &spec); err != nil {
		return err
	}
	if err := unix.Sethostname([]byte(spec.Hostname)); err != nil {
		return fmt.Errorf("set host name: %w", err)
	}
	// First cut off from the machine, then shared among the box's own: CSI needs
	// mounts to travel from the kubelet's directory into containers and back.
	for _, flag := range []uintptr{unix.MS_PRIVATE, unix.MS_SHARED} {
		if err := unix.Mount("", "/", "", unix.MS_REC|flag, ""); err != nil {
			return fmt.Errorf("change propagation of /: %w", err)
		}
	}
	for _, m := range spec.Mounts {
		if err := m.mount(); err != nil {
			return err
		}
	}
	if spec.Sysfs {
		if err := freshSysfs(); err != nil {
			return err
		}
	}
	if spec.Cgroup != "" {
		if err := rootCgroups(spec.Cgroup); err != nil {
			return err
		}
	}
	if err := unix.Mount("proc", "/proc", "proc", unix.MS_NOSUID|unix.MS_NODEV|unix.MS_NOEXEC, ""); err != nil {
		return fmt.Errorf("mount /proc: %w", err)
	}
	return nil
}

func (m mountSpec) mount() error {
	var err error
	switch m.Type {
	case "bind":
		err = unix.Mount(m.Source, m.Target, "", unix.MS_BIND|unix.MS_REC, "")
	case "tmpfs":
		err = unix.Mount("tmpfs", m.Target, "tmpfs", unix.MS_NOSUID|unix.MS_NODEV, "mode=755")
	case "overlay":
		upper, work := filepath.Join(m.Source, "upper"), filepath.Join(m.Source, "work")
		for _, d := range []string{upper, work} {
			if err := os.MkdirAll(d, 0o755); err != nil {
				return err
			}
		}
		opts := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s", m.Target, upper, work)
		err = unix.Mount("overlay", m.Target, "overlay", 0, opts)
	default:
		return fmt.Errorf("mount %s: no type %q", m.Target, m.Type)
	}
	if err != nil {
		return fmt.Errorf("mount %s on %s: %w", m.Type, m.Target, err)
	}
	return nil
}

// freshSysfs shows the box its own network devices under /sys/class/net, which
// cAdvisor reads, and keeps the machine's cgroup hierarchies where they were.
func freshSysfs() error {
	const keep = "/run/.cgroup"
	if err := os.MkdirAll(keep, 0o700); err != nil {
		return err
	}
	steps := []struct {
		source, target, fstype string
		flags                  uintptr
	}{
		{"/sys/fs/cgroup", keep, "", unix.MS_BIND | unix.MS_REC},
		{"", keep, "", unix.MS_PRIVATE | unix.MS_REC},
		{"", "/run", "", unix.MS_PRIVATE},
		{"sysfs", "/sys", "sysfs", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
		{"", "/sys", "", unix.MS_PRIVATE},
		{keep, "/sys/fs/cgroup", "", unix.MS_MOVE},
		{"", "/run", "", unix.MS_SHARED},
		{"", "/sys", "", unix.MS_SHARED | unix.MS_REC},
		{"bpf", "/sys/fs/bpf", "bpf", unix.MS_NOSUID | unix.MS_NODEV | unix.MS_NOEXEC},
	}
	for _, s := range steps {
		if err := unix.Mount(s.source, s.target, s.fstype, s.flags, ""); err != nil {
			return fmt.Errorf("mount %s on %s: %w", s.source, s.target, err)
		}
	}
	return os.Remove(keep)
}
