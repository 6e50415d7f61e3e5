// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/containerd/containerd/v2/pkg/apparmor"
	"github.com/containerd/containerd/v2/pkg/seccomp"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/selinux/go-selinux"
	"golang.org/x/sys/unix"
)

const cgroupRoot = "/sys/fs/cgroup"

// Probe reads what this machine can do. It is asked once, at start; a caller with SELinux support switched off clears that.
func Probe() (Host, error) {
	h := Host{
		Seccomp:  seccomp.IsEnabled(),
		AppArmor: apparmor.HostSupports(),
		SELinux:  selinux.GetEnabled(),

		NoForeign: noForeign(),

		NoUserNamespaces: ProbeUserNamespaces(),
	}
	var err error
	if h.Hostname, err = os.Hostname(); err != nil {
		return Host{}, fmt.Errorf("host name: %w", err)
	}
	if err := h.probeProcess(); err != nil {
		return Host{}, err
	}
	return h, h.probeCgroups()
}

// probeProcess reads the daemon's capabilities and its oom_score_adj.
func (h *Host) probeProcess() error {
	status, err := os.ReadFile("/proc/self/status")
	if err != nil {
		return fmt.Errorf("capabilities: %w", err)
	}
	var bits uint64
	for line := range strings.Lines(string(status)) {
		if hex, ok := strings.CutPrefix(line, "CapEff:"); ok {
			if bits, err = strconv.ParseUint(strings.TrimSpace(hex), 16, 64); err != nil {
				return fmt.Errorf("capabilities: %w", err)
			}
		}
	}
	h.MinOOMScoreAdj = -1000
	for i, name := range knownCapabilities() {
		if bits&(1<<i) != 0 {
			h.Capabilities = append(h.Capabilities, name)
		}
	}
	if bits&(1<<unix.CAP_SYS_RESOURCE) != 0 {
		return nil
	}
	raw, err := os.ReadFile("/proc/self/oom_score_adj")
	if err != nil {
		return fmt.Errorf("oom score: %w", err)
	}
	if h.MinOOMScoreAdj, err = strconv.Atoi(strings.TrimSpace(string(raw))); err != nil {
		return fmt.Errorf("oom score: %w", err)
	}
	return nil
}

func (h *Host) probeCgroups() error {
	var st unix.Statfs_t
	if err := unix.Statfs(cgroupRoot, &st); err != nil {
		return fmt.Errorf("stat %s: %w", cgroupRoot, err)
	}
	if st.Type != unix.CGROUP2_SUPER_MAGIC {
		h.Cgroup = CgroupV1
		if exists("unified/cgroup.procs") {
			h.Cgroup = CgroupHybrid
		}
		h.Swap = exists("memory/memory.memsw.limit_in_bytes")
		h.Hugetlb = exists("hugetlb")
		return nil
	}
	h.Cgroup = CgroupV2
	controllers, err := os.ReadFile(filepath.Join(cgroupRoot, "cgroup.controllers"))
	if err != nil {
		return fmt.Errorf("cgroup controllers: %w", err)
	}
	h.Hugetlb = strings.Contains(string(controllers), "hugetlb")
	// The root cgroup has no limits; the daemon's own cgroup, or any other below it, shows whether swap is accounted.
	found, err := filepath.Glob(filepath.Join(cgroupRoot, "*", "memory.swap.max"))
	h.Swap = err == nil && len(found) > 0
	h.CgroupMountOptions, err = cgroupMountOptions()
	return err
}

func exists(name string) bool {
	_, err := os.Stat(filepath.Join(cgroupRoot, name))
	return err == nil
}

func cgroupMountOptions() ([]string, error) {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter(cgroupRoot))
	if err != nil {
		return nil, fmt.Errorf("mount options of %s: %w", cgroupRoot, err)
	}
	var out []string
	for _, m := range mounts {
		for o := range strings.SplitSeq(m.VFSOptions, ",") {
			if o == "nsdelegate" || o == "memory_recursiveprot" {
				out = append(out, o)
			}
		}
	}
	return out, nil
}
