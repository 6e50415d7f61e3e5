// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"cmp"
	"fmt"
	"maps"
	"path"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"
)

const defaultShmSize = 64 << 20

func defaultMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
	}
}

// bind is a bind mount that Build plans first and resolves on the host later.
type bind struct {
	field string
	*runtimeapi.Mount
	source string
	// create makes an absent source a directory; only a CRI host path is.
	create bool
}

// planMounts decides all mounts without looking at the host: the default set, minus what the pod brings itself, then the
// pod's, by depth, so that none hides another.
func (b *builder) planMounts() {
	taken := map[string]bool{}
	for i, m := range b.in.Config.GetMounts() {
		field := fmt.Sprintf("mounts[%d]", i)
		if p, ok := b.checkMount(field, m); ok {
			taken[path.Clean(m.GetContainerPath())] = true
			b.plan = append(b.plan, p)
		}
	}
	for _, m := range b.podMounts() {
		if !taken[m.GetContainerPath()] {
			b.plan = append(b.plan, m)
			taken[m.GetContainerPath()] = true
		}
	}
	if file := b.in.Policy.Localtime; file != "" && !taken["/etc/localtime"] {
		m := &runtimeapi.Mount{ContainerPath: "/etc/localtime", Readonly: true}
		b.plan = append(b.plan, bind{field: "time zone of the node's policy", Mount: m, source: file})
	}
	for _, dst := range slices.Sorted(maps.Keys(b.in.Image.Volumes)) {
		if clean := path.Join("/", dst); !taken[clean] {
			m := &runtimeapi.Mount{ContainerPath: clean, SelinuxRelabel: true}
			b.plan = append(b.plan, bind{field: "volume " + clean + " of the image", Mount: m, source: b.in.Image.Volumes[dst]})
		}
	}
	slices.SortStableFunc(b.plan, func(x, y bind) int {
		return cmp.Compare(depth(x.GetContainerPath()), depth(y.GetContainerPath()))
	})
	defaults := append(b.spec.Mounts, b.cgroupMount())
	if !taken["/dev/shm"] {
		defaults = append(defaults, b.shmTmpfs())
	}
	b.spec.Mounts = slices.DeleteFunc(defaults, func(m specs.Mount) bool {
		dst := path.Clean(m.Destination)
		return taken[dst] || taken["/dev"] && strings.HasPrefix(dst, "/dev/")
	})
	b.sysMount()
}

func depth(p string) int { return strings.Count(path.Clean(p), "/") }

// podMounts are the files and the shared memory that all containers of the pod see.
func (b *builder) podMounts() []bind {
	pod := b.in.Sandbox
	readonly := b.security().GetReadonlyRootfs()
	userns := b.security().GetNamespaceOptions().GetUsernsOptions()
	var out []bind
	for _, f := range [][2]string{{"/etc/hostname", pod.Hostname}, {"/etc/hosts", pod.Hosts}, {"/etc/resolv.conf", pod.ResolvConf}} {
		if f[1] == "" {
			continue
		}
		m := &runtimeapi.Mount{ContainerPath: f[0], Readonly: readonly, SelinuxRelabel: true}
		if b.ids != nil && b.in.Handler.IDMapMounts {
			m.UidMappings, m.GidMappings = userns.GetUids(), userns.GetGids()
		}
		out = append(out, bind{field: f[0] + " of the pod", Mount: m, source: f[1]})
	}
	shm := pod.Shm
	if shm == "" && b.security().GetNamespaceOptions().GetIpc() == runtimeapi.NamespaceMode_NODE {
		shm = "/dev/shm"
	}
	if shm != "" {
		// Not mapped to the user namespace: tmpfs learned that in Linux 6.3 only, and this one begins empty.
		m := &runtimeapi.Mount{ContainerPath: "/dev/shm", SelinuxRelabel: shm != "/dev/shm"}
		out = append(out, bind{field: "/dev/shm of the pod", Mount: m, source: shm})
	}
	return out
}

func (b *builder) shmTmpfs() specs.Mount {
	size := b.in.Policy.ShmSize
	if size <= 0 {
		size = defaultShmSize
	}
	return specs.Mount{
		Destination: "/dev/shm", Type: "tmpfs", Source: "shm",
		Options: []string{"nosuid", "noexec", "nodev", "mode=1777", "size=" + strconv.FormatInt(size>>10, 10) + "k"},
	}
}

func (b *builder) cgroupMount() specs.Mount {
	mode := "ro"
	if b.in.Handler.CgroupWritable || b.security().GetPrivileged() {
		mode = "rw"
	}
	m := specs.Mount{
		Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup",
		Options: []string{"nosuid", "noexec", "nodev", "relatime", mode},
	}
	own := slices.ContainsFunc(b.spec.Linux.Namespaces, func(n specs.LinuxNamespace) bool { return n.Type == specs.CgroupNamespace })
	if b.in.Host.Cgroup == CgroupV2 && !own {
		m.Options = append(m.Options, b.in.Host.CgroupMountOptions...)
	}
	return m
}

// sysMount replaces sysfs by the host's /sys where the kernel forbids mounting it: in a user namespace that does not own the
// network namespace. Privileged containers get it writable.
func (b *builder) sysMount() {
	for i, m := range b.spec.Mounts {
		if m.Destination != "/sys" || m.Type != "sysfs" {
			continue
		}
		hostNetwork := b.security().GetNamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
		switch {
		case b.ids != nil && hostNetwork:
			b.spec.Mounts[i] = specs.Mount{
				Destination: "/sys", Type: "bind", Source: "/sys", Options: []string{"rbind", "rro", "nosuid", "nodev", "noexec"},
			}
		case b.security().GetPrivileged():
			b.spec.Mounts[i].Options = replace(m.Options, "ro", "rw")
		}
	}
	if b.ids != nil && b.ids.gid.Size <= 5 {
		// devpts belongs to group 5 (tty), which has to exist in the user namespace.
		for i, m := range b.spec.Mounts {
			b.spec.Mounts[i].Options = slices.DeleteFunc(slices.Clone(m.Options), func(o string) bool { return m.Type == "devpts" && o == "gid=5" })
		}
	}
}

func replace(options []string, old, with string) []string {
	out := slices.Clone(options)
	for i, o := range out {
		if o == old {
			out[i] = with
		}
	}
	return out
}

// checkMount finds the faults of one CRI mount.
func (b *builder) checkMount(field string, m *runtimeapi.Mount) (bind, bool) {
	before := len(b.faults)
	p := bind{field: field, Mount: m, source: m.GetHostPath(), create: true}
	checkInside(&b.faults, field+".container_path", m.GetContainerPath())
	if m.GetImage().GetImage() != "" {
		p.create = false
		p.source = b.imageSource(field, m)
	} else {
		if m.GetImageSubPath() != "" {
			b.faults.invalid(field+".image_sub_path", "set without image")
		}
		if !path.IsAbs(m.GetHostPath()) {
			b.faults.invalid(field+".host_path", "%q is not an absolute path", m.GetHostPath())
		}
	}
	if _, ok := enumName(runtimeapi.MountPropagation_name, int32(m.GetPropagation())); !ok {
		b.faults.invalid(field+".propagation", "unknown value %d", int32(m.GetPropagation()))
	}
	b.checkReadOnly(field, m)
	b.checkOptions(field, m)
	b.checkIDMap(field, m)
	return p, len(b.faults) == before
}

// imageSource is where the image of an image volume is mounted on the host.
func (b *builder) imageSource(field string, m *runtimeapi.Mount) string {
	if m.GetHostPath() != "" {
		b.faults.invalid(field+".host_path", "set together with image")
	}
	if m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		b.faults.invalid(field+".propagation", "an image volume has to be private")
	}
	source := b.in.Image.Mounts[m.GetContainerPath()]
	if source == "" {
		b.faults.unable(field+".image", "image %q is not mounted on the host", m.GetImage().GetImage())
	}
	return source
}

// checkInside accepts an absolute path below the container's root that does not climb out of it on the way.
func checkInside(f *faults, field, p string) {
	if !path.IsAbs(p) {
		f.invalid(field, "%q is not an absolute path", p)
		return
	}
	if strings.ContainsRune(p, 0) {
		f.invalid(field, "%q contains a NUL byte", p)
		return
	}
	level := 0
	for part := range strings.SplitSeq(p, "/") {
		switch part {
		case "", ".":
		case "..":
			level--
		default:
			level++
		}
		if level < 0 {
			f.invalid(field, "%q leads out of the container", p)
			return
		}
	}
	if level == 0 {
		f.invalid(field, "%q is the root of the container", p)
	}
}

func (b *builder) checkReadOnly(field string, m *runtimeapi.Mount) {
	if !m.GetRecursiveReadOnly() {
		return
	}
	field += ".recursive_read_only"
	if !m.GetReadonly() && m.GetImage().GetImage() == "" {
		b.faults.invalid(field, "set on a mount that is not readonly")
	}
	if m.GetPropagation() != runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		b.faults.invalid(field, "needs private propagation, not %s", m.GetPropagation())
	}
	if !b.in.Handler.RecursiveReadOnlyMounts {
		b.faults = append(b.faults, fmt.Errorf("%s: %w: runtime handler %q does not support recursive read-only mounts: %w",
			field, crierrors.ErrRROUnsupported, b.in.Handler.Name, errdefs.ErrFailedPrecondition))
	}
}

func (b *builder) checkOptions(field string, m *runtimeapi.Mount) {
	known := []string{"noexec", "nodev", "nosuid", "noatime", "nodiratime", "relatime", "strictatime", "nosymfollow"}
	for i, o := range m.GetMountOptions() {
		if !slices.Contains(known, o) {
			b.faults.invalid(fmt.Sprintf("%s.mount_options[%d]", field, i), "%q is not one of %s", o, strings.Join(known, ", "))
		}
	}
}

func (b *builder) checkIDMap(field string, m *runtimeapi.Mount) {
	if len(m.GetUidMappings()) == 0 && len(m.GetGidMappings()) == 0 {
		return
	}
	if len(m.GetUidMappings()) == 0 || len(m.GetGidMappings()) == 0 {
		b.faults.invalid(field, "uidMappings and gidMappings go together")
	}
	if !b.in.Handler.IDMapMounts {
		b.faults.unable(field+".uidMappings", "runtime handler %q does not support idmap mounts", b.in.Handler.Name)
	}
	for _, list := range [][]*runtimeapi.IDMapping{m.GetUidMappings(), m.GetGidMappings()} {
		for i, id := range list {
			if id.GetLength() == 0 {
				b.faults.invalid(field, "mapping %d maps 0 IDs", i)
			}
		}
	}
}
