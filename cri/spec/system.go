// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/pkg/oci"
	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
	"github.com/opencontainers/selinux/go-selinux"
	"github.com/opencontainers/selinux/go-selinux/label"
	"golang.org/x/sys/unix"
)

// maxProfile bounds what ReadFile reads.
const maxProfile = 16 << 20

// NewSystem is the machine nodeagent runs on.
func NewSystem() System { return machine{} }

type machine struct{}

var _ System = machine{}

func (machine) Source(path string, create bool) (string, error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err == nil {
		return resolved, nil
	}
	if !errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("resolve %s: %w", path, err)
	}
	if !create {
		return "", fmt.Errorf("%s: no such file or directory: %w", path, errdefs.ErrNotFound)
	}
	if err := os.MkdirAll(path, 0o755); err != nil { //nolint:gosec // what the kubelet's own DirectoryOrCreate makes
		return "", fmt.Errorf("make absent host path: %w", err)
	}
	return filepath.EvalSymlinks(path)
}

func (machine) Propagation(path string) (Propagation, string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.ParentsFilter(path))
	if err != nil {
		return Private, "", fmt.Errorf("find the mount of %s: %w", path, err)
	}
	var holds *mountinfo.Info
	for _, m := range mounts {
		// Of mounts over each other the last one listed is on top.
		if holds == nil || len(m.Mountpoint) >= len(holds.Mountpoint) {
			holds = m
		}
	}
	if holds == nil {
		return Private, "", fmt.Errorf("find the mount of %s: %w", path, errdefs.ErrNotFound)
	}
	switch {
	case strings.Contains(holds.Optional, "shared:"):
		return Shared, holds.Mountpoint, nil
	case strings.Contains(holds.Optional, "master:"):
		return Slave, holds.Mountpoint, nil
	}
	return Private, holds.Mountpoint, nil
}

func (machine) Devices(path string) ([]specs.LinuxDevice, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.IsDir() {
		d, err := oci.DeviceFromPath(path)
		if errors.Is(err, oci.ErrNotADevice) {
			return nil, fmt.Errorf("%s: not a device node: %w", path, errdefs.ErrInvalidArgument)
		}
		if err != nil {
			return nil, err
		}
		return []specs.LinuxDevice{*d}, nil
	}
	return nodesBelow(path)
}

// nodesBelow lists the device nodes of a directory; those that vanish meanwhile are left out.
func nodesBelow(dir string) ([]specs.LinuxDevice, error) {
	ofItsOwn := []string{"pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev"}
	var out []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(p string, e fs.DirEntry, err error) error {
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil
		case err != nil:
			return err
		case e.IsDir() && p != dir && slices.Contains(ofItsOwn, e.Name()):
			return fs.SkipDir
		case e.IsDir() || e.Name() == "console" || e.Type()&fs.ModeDevice == 0:
			return nil
		}
		d, err := oci.DeviceFromPath(p)
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, oci.ErrNotADevice) {
			return nil
		}
		if err == nil {
			out = append(out, *d)
		}
		return err
	})
	return out, err
}

func (machine) ReadFile(path string) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer func() { _ = f.Close() }()
	info, err := f.Stat()
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxProfile {
		return nil, fmt.Errorf("%s: not a regular file of at most %d MiB: %w", path, maxProfile>>20, errdefs.ErrInvalidArgument)
	}
	return os.ReadFile(path)
}

func (machine) Labels(options []string) (Labels, error) {
	process, mount, err := label.InitLabels(options)
	return Labels{Process: process, Mount: mount}, err
}

func (machine) Release(process string) { selinux.ReleaseLabel(process) }

func (machine) Relabel(path, l string) error {
	if err := label.Relabel(path, l, false); err != nil && !errors.Is(err, unix.ENOTSUP) {
		return err
	}
	return nil
}
