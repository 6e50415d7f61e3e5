// SPDX-License-Identifier: Apache-2.0

package doctor

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/dataplane/attach"
)

func (o Options) cgroups(context.Context) []Finding {
	var st unix.Statfs_t
	if err := unix.Statfs(o.path("/sys/fs/cgroup"), &st); err != nil {
		return one("cgroups", Fail, "/sys/fs/cgroup: "+err.Error(), "mount the cgroup hierarchy")
	}
	if st.Type == unix.CGROUP2_SUPER_MAGIC {
		return o.cgroupControllers("v2", o.controllersV2())
	}
	return append(o.cgroupControllers("v1", o.controllersV1()),
		one("cgroups", Warn, "version 1 (or hybrid)", "the kubelet needs failCgroupV1: false; no memory QoS, no PSI, no swap limits")...)
}

func (o Options) cgroupControllers(mode string, have []string) []Finding {
	var missing []string
	for _, c := range []string{"cpu", "cpuset", "memory", "pids"} {
		if !slices.Contains(have, c) {
			missing = append(missing, c)
		}
	}
	if len(missing) > 0 {
		return one("cgroups", Fail, mode+" without "+strings.Join(missing, ", "), "enable the controllers; limits of pods need them")
	}
	return one("cgroups", OK, mode+" with "+strings.Join(have, ", "), "")
}

func (o Options) controllersV2() []string {
	data, err := os.ReadFile(o.path("/sys/fs/cgroup/cgroup.controllers"))
	if err != nil {
		return nil
	}
	return strings.Fields(string(data))
}

func (o Options) controllersV1() []string {
	entries, err := os.ReadDir(o.path("/sys/fs/cgroup"))
	if err != nil {
		return nil
	}
	var out []string
	for _, e := range entries {
		out = append(out, strings.Split(e.Name(), ",")...)
	}
	return out
}

func (o Options) filesystems(context.Context) []Finding {
	data, err := os.ReadFile(o.path("/proc/filesystems"))
	if err != nil {
		return one("file systems", Warn, err.Error(), "mount /proc")
	}
	have := strings.Fields(string(data))
	var out []Finding
	for _, f := range []struct {
		name  string
		level Level
		hint  string
	}{
		{"overlay", Fail, "images cannot be run with the overlayfs snapshotter; load the module"},
		{"ext4", Warn, "no ext4 volumes"},
		{"xfs", Warn, "no xfs volumes and no instant snapshots"},
	} {
		if !slices.Contains(have, f.name) && !o.module(f.name) {
			out = append(out, Finding{Check: "file systems", Level: f.level, Detail: "no " + f.name, Hint: f.hint})
		}
	}
	if len(out) == 0 {
		return one("file systems", OK, "overlay, ext4, xfs", "")
	}
	return out
}

// module tells whether the kernel can load one of that name, which mount(2) makes it do.
func (o Options) module(name string) bool {
	release, err := os.ReadFile(o.path("/proc/sys/kernel/osrelease"))
	if err != nil {
		return false
	}
	for _, dir := range []string{"/lib/modules", "/usr/lib/modules"} {
		deps, err := os.ReadFile(o.path(filepath.Join(dir, strings.TrimSpace(string(release)), "modules.dep")))
		if err == nil && strings.Contains(string(deps), "/"+name+".ko") {
			return true
		}
	}
	return false
}

func (o Options) bpffs(context.Context) []Finding {
	var st unix.Statfs_t
	path := o.path("/sys/fs/bpf")
	if err := unix.Statfs(path, &st); err != nil {
		return one("bpffs", Warn, err.Error(), "the daemon mounts it at start")
	}
	if st.Type != unix.BPF_FS_MAGIC {
		return one("bpffs", Warn, "not mounted on "+path, "the daemon mounts it at start")
	}
	return one("bpffs", OK, "mounted", "")
}

func (o Options) rootPropagation(context.Context) []Finding {
	mounts, err := mountinfo.GetMounts(mountinfo.SingleEntryFilter("/"))
	if err != nil || len(mounts) == 0 {
		return one("mount propagation", Warn, "cannot read that of /", "")
	}
	if !strings.Contains(mounts[0].Optional, "shared:") {
		return one("mount propagation", Warn, "/ is private", "Bidirectional mounts of CSI drivers fail; mount --make-rshared /")
	}
	return one("mount propagation", OK, "/ is shared", "")
}

func (o Options) loop(context.Context) []Finding {
	if _, err := os.Stat(o.path("/dev/loop-control")); err != nil {
		return one("loop devices", Warn, err.Error(), "no loop-backed volumes; load the loop module")
	}
	return one("loop devices", OK, "present", "")
}

func (o Options) programs(context.Context) []Finding {
	var missing []string
	for _, p := range []string{"runc", "mkfs.ext4", "mkfs.xfs", "e2fsck", "resize2fs"} {
		if !o.found(p) {
			missing = append(missing, p)
		}
	}
	if len(missing) > 0 {
		return one("programs", Warn, "not found: "+strings.Join(missing, ", "), "install runc, e2fsprogs, xfsprogs")
	}
	return one("programs", OK, "runc, mkfs and fsck found", "")
}

func (o Options) found(name string) bool {
	for _, dir := range filepath.SplitList(o.Path + ":" + os.Getenv("PATH")) {
		if fi, err := os.Stat(filepath.Join(dir, name)); err == nil && fi.Mode()&0o111 != 0 {
			return true
		}
	}
	return false
}

func (o Options) containerd(ctx context.Context) []Finding {
	if o.ContainerdSocket == "" {
		return nil
	}
	d := net.Dialer{Timeout: 2 * time.Second}
	c, err := d.DialContext(ctx, "unix", o.ContainerdSocket)
	if err != nil {
		return one("containerd", Warn, err.Error(), "start containerd, or set containerd.managed: true")
	}
	_ = c.Close()
	return one("containerd", OK, "answers on "+o.ContainerdSocket, "")
}

// lowPool is the part of a pool that has to be free, in percent.
const lowPool = 10

func (o Options) pools(context.Context) []Finding {
	var out []Finding
	for _, dir := range o.Pools {
		var st unix.Statfs_t
		err := unix.Statfs(o.path(dir), &st)
		if errors.Is(err, unix.ENOENT) {
			out = append(out, Finding{Check: "pool " + dir, Level: OK, Detail: "not there yet; the daemon makes it"})
			continue
		}
		if err != nil {
			out = append(out, Finding{Check: "pool " + dir, Level: Warn, Detail: err.Error(), Hint: "no volumes from this pool"})
			continue
		}
		free := st.Bavail * 100 / max(st.Blocks, 1)
		f := Finding{Check: "pool " + dir, Level: OK, Detail: fmt.Sprintf("%d %% free", free)}
		if free < lowPool {
			f.Level, f.Hint = Warn, "new volumes may be refused"
		}
		out = append(out, f)
	}
	return out
}

// kubeProxy looks for what kube-proxy has in the kernel. While it serves, that
// is as it should be; beside our services it is a leftover.
func (o Options) kubeProxy(context.Context) []Finding {
	found := o.ipvs()
	if o.Root == "" || o.Root == "/" {
		rules, err := attach.KubeProxy()
		if err != nil {
			return one("kube-proxy", Warn, err.Error(), "its leftovers cannot be looked for")
		}
		found = append(found, rules...)
	}
	switch {
	case len(found) == 0:
		return one("kube-proxy", OK, "no leftovers", "")
	case o.KubeProxy:
		return one("kube-proxy", OK, "serves: "+strings.Join(found, ", "), "")
	default:
		return one("kube-proxy", Warn, strings.Join(found, ", "),
			"not needed any more: stop kube-proxy, let the node's own connections end, then kube-proxy --cleanup")
	}
}

func (o Options) ipvs() []string {
	var out []string
	// The first three lines of ip_vs are its header.
	if data, err := os.ReadFile(o.path("/proc/net/ip_vs")); err == nil && strings.Count(string(data), "\n") > 3 {
		out = append(out, "IPVS services")
	}
	if _, err := os.Stat(o.path("/sys/class/net/kube-ipvs0")); err == nil {
		out = append(out, "link kube-ipvs0")
	}
	return out
}
