// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"errors"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
)

// Backends that a pool can name.
const (
	BackendFile      = "file"      // image files behind loop devices
	BackendBtrfs     = "btrfs"     // subvolumes with limits
	BackendDirectory = "directory" // directories with project quota
	BackendTmpfs     = "tmpfs"     // memory
	BackendImage     = "image"     // read-only file-system images
	BackendDisk      = "disk"      // whole disks and partitions
	BackendLVM       = "lvm"       // logical volumes, thick and thin
)

func backends() []string {
	return []string{BackendFile, BackendBtrfs, BackendDirectory, BackendTmpfs, BackendImage, BackendDisk, BackendLVM}
}

// PoolConfig is one place where volumes live.
type PoolConfig struct {
	// Name is what classes refer to.
	Name string `yaml:"name"`
	// Path is the pool's directory: payloads (or, for disks, LVM and memory, only
	// the records of them). It is made if absent unless RequireMount.
	Path string `yaml:"path"`
	// Backend is one of file, btrfs, directory, tmpfs, image, disk, lvm.
	Backend string `yaml:"backend"`
	// Reserve is what stays free of the pool's file system: "5%" or a size.
	Reserve string `yaml:"reserve,omitempty"`
	// Limit is the most the pool may promise in all; empty means what fits.
	Limit string `yaml:"limit,omitempty"`
	// RequireMount refuses the pool until Path is the root of a mount.
	RequireMount bool `yaml:"requireMount,omitempty"`
	// Overcommit is how many times the pool's size thin volumes may promise; 0
	// refuses thin volumes.
	Overcommit float64 `yaml:"overcommit,omitempty"`
	// Devices of a disk pool: block devices, one volume each.
	Devices []string `yaml:"devices,omitempty"`
	// VolumeGroup of an lvm pool.
	VolumeGroup string `yaml:"volumeGroup,omitempty"`
	// ThinPool in VolumeGroup; empty makes thick volumes.
	ThinPool string `yaml:"thinPool,omitempty"`
}

// ClassConfig is a named set of parameters that a StorageClass can refer to
// with `class: name`.
type ClassConfig struct {
	// Name is what the parameter "class" of a StorageClass says.
	Name string `yaml:"name"`
	// Parameters are those of a StorageClass, as they are on this node.
	Parameters map[string]string `yaml:"parameters"`
}

// Config of the volume room.
type Config struct {
	// NodeName goes into every volume id, so that two nodes never mean different
	// volumes by one id.
	NodeName string `yaml:"-"`
	// StateDir keeps what must survive a reboot outside the pools: which pools
	// were seen.
	StateDir string `yaml:"stateDir"`
	// CgroupRoot is where the cgroup hierarchies are mounted.
	CgroupRoot string        `yaml:"cgroupRoot"`
	Pools      []PoolConfig  `yaml:"pools"`
	Classes    []ClassConfig `yaml:"classes"`
}

// Default is one pool of image files on the host's file system.
func Default() Config {
	return Config{
		StateDir: "/var/lib/nodeagent/csi", CgroupRoot: "/sys/fs/cgroup",
		Pools: []PoolConfig{{Name: "default", Path: "/var/lib/nodeagent/pools/default", Backend: BackendFile, Reserve: "5%", Overcommit: 2}},
	}
}

// Validate reports every fault, each beginning with the path of its field.
func (c Config) Validate() error {
	var errs []error
	add := func(field, format string, args ...any) {
		errs = append(errs, fmt.Errorf("%s: %s", field, fmt.Sprintf(format, args...)))
	}
	if !filepath.IsAbs(c.StateDir) {
		add("stateDir", "must be an absolute path")
	}
	if !filepath.IsAbs(c.CgroupRoot) {
		add("cgroupRoot", "must be an absolute path")
	}
	for i, p := range c.Pools {
		p.validate(fmt.Sprintf("pools[%d]", i), add)
		for j, q := range c.Pools[:i] {
			if q.Name == p.Name {
				add(fmt.Sprintf("pools[%d].name", i), "same as pools[%d]", j)
			}
			if within(q.Path, p.Path) || within(p.Path, q.Path) {
				add(fmt.Sprintf("pools[%d].path", i), "lies in the same tree as pools[%d]", j)
			}
		}
	}
	for i, k := range c.Classes {
		field := fmt.Sprintf("classes[%d]", i)
		if !validName(k.Name) {
			add(field+".name", "%q is not a name (lower-case letters, digits, '-', at most 63)", k.Name)
		}
		if slices.ContainsFunc(c.Classes[:i], func(o ClassConfig) bool { return o.Name == k.Name }) {
			add(field+".name", "twice: %q", k.Name)
		}
		p, err := c.parameters(k.Parameters, nil)
		if err != nil {
			add(field+".parameters", "%v", err)
		} else if !slices.ContainsFunc(c.Pools, func(q PoolConfig) bool { return q.Name == p.Pool }) {
			add(field+".parameters.pool", "no pool %q", p.Pool)
		}
	}
	return errors.Join(errs...)
}

func (p PoolConfig) validate(field string, add func(field, format string, args ...any)) {
	if !validName(p.Name) {
		add(field+".name", "%q is not a name (lower-case letters, digits, '-', at most 63)", p.Name)
	}
	if !filepath.IsAbs(p.Path) || filepath.Clean(p.Path) == "/" {
		add(field+".path", "must be an absolute path below /")
	}
	if !slices.Contains(backends(), p.Backend) {
		add(field+".backend", "%q is none of %s", p.Backend, strings.Join(backends(), ", "))
	}
	if _, err := parseReserve(p.Reserve, 1); err != nil {
		add(field+".reserve", "%v", err)
	}
	if _, err := parseSize(p.Limit); err != nil {
		add(field+".limit", "%v", err)
	}
	if p.Overcommit < 0 || p.Overcommit > 1000 {
		add(field+".overcommit", "must be between 0 and 1000")
	}
	if (p.Backend == BackendDisk) != (len(p.Devices) > 0) {
		add(field+".devices", "belongs to backend disk, and only there")
	}
	if (p.Backend == BackendLVM) != (p.VolumeGroup != "") {
		add(field+".volumeGroup", "belongs to backend lvm, and only there")
	}
	if p.ThinPool != "" && p.Backend != BackendLVM {
		add(field+".thinPool", "belongs to backend lvm, and only there")
	}
}

func within(dir, path string) bool {
	rel, err := filepath.Rel(dir, path)
	return err == nil && rel != ".." && !strings.HasPrefix(rel, "../")
}

func validName(s string) bool {
	return regexp.MustCompile(`^[a-z0-9]([a-z0-9-]{0,61}[a-z0-9])?$`).MatchString(s)
}

// parseSize reads "10Gi", "500M" or plain bytes; "" is 0.
func parseSize(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	var n int64
	var err error
	if binary, ok := strings.CutSuffix(s, "i"); ok {
		n, err = units.RAMInBytes(binary)
	} else {
		n, err = units.FromHumanSize(s)
	}
	if err != nil || n < 0 {
		return 0, fmt.Errorf("%q is not a size", s)
	}
	return n, nil
}

// parseReserve reads "5%" of total, or a size.
func parseReserve(s string, total int64) (int64, error) {
	if pct, ok := strings.CutSuffix(s, "%"); ok {
		f, err := strconv.ParseFloat(pct, 64)
		if err != nil || f < 0 || f > 90 {
			return 0, fmt.Errorf("%q is not a percentage between 0%% and 90%%", s)
		}
		return int64(float64(total) * f / 100), nil
	}
	return parseSize(s)
}
