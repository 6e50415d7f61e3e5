// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/fstest"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/spec"
)

// TestFields changes one thing of the fixture and looks at the one thing of the spec that it decides.
func TestFields(t *testing.T) {
	privileged := func(in *spec.Input) {
		in.Config.Linux.SecurityContext.Privileged = true
		in.Sandbox.Config.Linux.SecurityContext.Privileged = true
	}
	capability := func(c *runtimeapi.Capability) func(*spec.Input) { return security(func(s *sec) { s.Capabilities = c }) }
	tests := map[string]struct {
		change func(*spec.Input)
		show   func(*specs.Spec) any
		want   string
	}{
		"image command":         {nil, args, "[/app --serve]"},
		"args replace cmd":      {func(in *spec.Input) { in.Config.Args = []string{"x"} }, args, "[/app x]"},
		"command replaces both": {func(in *spec.Input) { in.Config.Command = []string{"sh"} }, args, "[sh]"},
		"command and args":      {func(in *spec.Input) { in.Config.Command, in.Config.Args = []string{"sh"}, []string{"-c"} }, args, "[sh -c]"},
		"reset entrypoint":      {func(in *spec.Input) { in.Image.Config.Entrypoint = []string{""} }, args, "[--serve]"},
		"image cwd":             {func(in *spec.Input) { in.Image.Config.WorkingDir = "srv" }, cwd, "/srv"},
		"cwd":                   {func(in *spec.Input) { in.Image.Config.WorkingDir, in.Config.WorkingDir = "/srv", "/x" }, cwd, "/x"},
		"tty":                   {func(in *spec.Input) { in.Config.Tty = true }, env, "[PATH=/bin TERM=xterm HOSTNAME=web-0 LANG=C]"},
		"image TERM": {func(in *spec.Input) {
			in.Config.Tty = true
			in.Image.Config.Env = []string{"TERM=vt100"}
		}, func(s *specs.Spec) any { return s.Process.Env[1] }, "TERM=vt100"},
		"host name": {func(in *spec.Input) { in.Sandbox.Config.Hostname = "" }, func(s *specs.Spec) any { return s.Process.Env[1] }, "HOSTNAME=node1"},
		"rlimits": {func(in *spec.Input) {
			in.Policy.Rlimits = []specs.POSIXRlimit{{Type: "RLIMIT_NOFILE", Hard: 9, Soft: 8}}
		}, func(s *specs.Spec) any { return s.Process.Rlimits }, "[{RLIMIT_NOFILE 9 8}]"},

		"root in image":    {nil, user, "0:0 [0 1]"},
		"image user":       {func(in *spec.Input) { in.Image.Config.User = "web" }, user, "101:102 [50 102]"},
		"image uid":        {func(in *spec.Input) { in.Image.Config.User = "1000" }, user, "1000:1000 [50 1000 5000]"},
		"image user:group": {func(in *spec.Input) { in.Image.Config.User = "web:staff" }, user, "101:50 [50]"},
		"image uid:gid":    {func(in *spec.Input) { in.Image.Config.User = "7:8" }, user, "7:8 [8]"},
		"image :gid":       {func(in *spec.Input) { in.Image.Config.User = ":8" }, user, "0:8 [0 1 8]"},
		"unknown uid":      {security(func(s *sec) { s.RunAsUser = value(4242) }), user, "4242:0 [0]"},
		"run as user": {func(in *spec.Input) {
			in.Image.Config.User = "7:8"
			in.Config.Linux.SecurityContext.RunAsUser = value(101)
		}, user, "101:102 [50 102]"},
		"run as group":    {security(func(s *sec) { s.RunAsUser, s.RunAsGroup = value(101), value(9) }), user, "101:9 [9 50]"},
		"run as username": {security(func(s *sec) { s.RunAsUsername, s.SupplementalGroups = "alice", []int64{60000, 50} }), user, "1000:1000 [50 1000 5000 60000]"},
		"strict groups": {security(func(s *sec) {
			s.RunAsUsername, s.SupplementalGroups, s.SupplementalGroupsPolicy = "alice", []int64{60000}, 1
		}), user, "1000:1000 [1000 60000]"},
		"no rootfs":           {func(in *spec.Input) { in.Image.Rootfs = nil; in.Config.Linux.SecurityContext.RunAsUser = value(5) }, user, "5:0 [0]"},
		"default caps":        {nil, func(s *specs.Spec) any { return len(s.Process.Capabilities.Bounding) }, "14"},
		"add and drop":        {capability(&runtimeapi.Capability{AddCapabilities: []string{"sys_admin"}, DropCapabilities: []string{"ALL"}}), caps, "[CAP_SYS_ADMIN] [] []"},
		"add ALL":             {capability(&runtimeapi.Capability{AddCapabilities: []string{"ALL"}, DropCapabilities: []string{"CAP_CHOWN"}}), caps, "[CAP_NET_ADMIN CAP_SYS_ADMIN] [] []"},
		"ambient":             {capability(&runtimeapi.Capability{DropCapabilities: []string{"all"}, AddAmbientCapabilities: []string{"NET_BIND_SERVICE"}}), caps, "[CAP_NET_BIND_SERVICE] [CAP_NET_BIND_SERVICE] [CAP_NET_BIND_SERVICE]"},
		"privileged caps":     {privileged, caps, "[CAP_CHOWN CAP_NET_ADMIN CAP_SYS_ADMIN] [] []"},
		"privileged devices":  {privileged, devices, "/dev/fuse:c10:229 /dev/sda:b8:0 | true rwm"},
		"privileged, no host": {func(in *spec.Input) { privileged(in); in.Handler.PrivilegedWithoutHostDevices = true }, devices, "| false rwm"},
		"privileged, any": {func(in *spec.Input) {
			privileged(in)
			in.Handler.PrivilegedWithoutHostDevices, in.Handler.PrivilegedAllDevicesAllowed = true, true
		}, devices, "| true rwm"},
		"device":           {device(&runtimeapi.Device{HostPath: "/dev/fuse", Permissions: "r"}), devices, "/dev/fuse:c10:229 | false rwm, true r"},
		"device directory": {device(&runtimeapi.Device{HostPath: "/dev/snd", ContainerPath: "/dev/sound", Permissions: "rw"}), devices, "/dev/sound/seq:c116:1 /dev/sound/pcm:c116:2 | false rwm, true rw, true rw"},
		"device owner": {func(in *spec.Input) {
			in.Policy.DeviceOwnershipFromSecurityContext = true
			in.Config.Linux.SecurityContext.RunAsUser = value(101)
			device(&runtimeapi.Device{HostPath: "/dev/fuse", Permissions: "r"})(in)
		}, func(s *specs.Spec) any { return *s.Linux.Devices[0].UID }, "101"},

		"namespaces":       {nil, namespaces, "mount network=/ns/net ipc=/ns/ipc pid uts=/ns/uts cgroup"},
		"host network":     {security(func(s *sec) { s.NamespaceOptions.Network = 2 }), namespaces, "mount ipc=/ns/ipc pid cgroup"},
		"host pid and ipc": {security(func(s *sec) { s.NamespaceOptions.Pid, s.NamespaceOptions.Ipc = 2, 2 }), namespaces, "mount network=/ns/net uts=/ns/uts cgroup"},
		"pod pid": {func(in *spec.Input) {
			in.Sandbox.Namespaces.PID = "/ns/pid"
			in.Config.Linux.SecurityContext.NamespaceOptions.Pid = 0
		}, namespaces, "mount network=/ns/net ipc=/ns/ipc pid=/ns/pid uts=/ns/uts cgroup"},
		"target pid": {func(in *spec.Input) {
			in.Sandbox.TargetPID = "/proc/7/ns/pid"
			security(func(s *sec) { s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = 3, "x" })(in)
		}, namespaces, "mount network=/ns/net ipc=/ns/ipc pid=/proc/7/ns/pid uts=/ns/uts cgroup"},
		"no cgroup namespace on v1": {func(in *spec.Input) { in.Host.Cgroup = spec.CgroupHybrid }, namespaces, "mount network=/ns/net ipc=/ns/ipc pid uts=/ns/uts"},
		"userns NODE":               {func(in *spec.Input) { userns(runtimeapi.NamespaceMode_NODE, nil, nil)(in) }, namespaces, "mount network=/ns/net ipc=/ns/ipc pid uts=/ns/uts cgroup"},
		"cgroup mount":              {nil, mountOf("/sys/fs/cgroup"), "cgroup cgroup nosuid,noexec,nodev,relatime,ro"},
		"cgroup writable":           {func(in *spec.Input) { in.Handler.CgroupWritable = true }, mountOf("/sys/fs/cgroup"), "cgroup cgroup nosuid,noexec,nodev,relatime,rw"},
		"cgroup privileged":         {privileged, mountOf("/sys/fs/cgroup"), "cgroup cgroup nosuid,noexec,nodev,relatime,rw,nsdelegate"},
		"sys privileged":            {privileged, mountOf("/sys"), "sysfs sysfs nosuid,noexec,nodev,rw"},
		"sys, userns on host network": {func(in *spec.Input) {
			userns(0, span(0, 1, 2), span(0, 1, 2))(in)
			security(func(s *sec) { s.NamespaceOptions.Network = 2 })(in)
		}, mountOf("/sys"), "bind /sys rbind,rro,nosuid,nodev,noexec"},
		"devpts in a small userns": {userns(0, span(0, 1, 2), span(0, 1, 2)), mountOf("/dev/pts"), "devpts devpts nosuid,noexec,newinstance,ptmxmode=0666,mode=0620"},
		"shm of the pod":           {nil, mountOf("/dev/shm"), "bind /sb/shm rbind,rprivate,rw"},
		"shm of the host":          {func(in *spec.Input) { in.Sandbox.Shm = ""; in.Config.Linux.SecurityContext.NamespaceOptions.Ipc = 2 }, mountOf("/dev/shm"), "bind /dev/shm rbind,rprivate,rw"},
		"shm of its own":           {func(in *spec.Input) { in.Sandbox.Shm, in.Policy.ShmSize = "", 1<<20 }, mountOf("/dev/shm"), "tmpfs shm nosuid,noexec,nodev,mode=1777,size=1024k"},
		"hosts by the kubelet":     {mounted(&mount{ContainerPath: "/etc/hosts", HostPath: "/k/hosts"}), mountOf("/etc/hosts"), "bind /k/hosts rbind,rprivate,rw"},
		"hosts, read-only root":    {security(func(s *sec) { s.ReadonlyRootfs = true }), mountOf("/etc/hosts"), "bind /sb/hosts rbind,rprivate,ro"},
		"dev by the pod":           {mounted(&mount{ContainerPath: "/dev", HostPath: "/dev"}), destinations, "/proc /sys /sys/fs/cgroup /dev /etc/hostname /etc/hosts /etc/resolv.conf /dev/shm"},
		"by depth": {func(in *spec.Input) {
			in.Config.Mounts = []*mount{{ContainerPath: "/a/b/c", HostPath: "/1"}, {ContainerPath: "/a", HostPath: "/2"}, {ContainerPath: "/a/b", HostPath: "/3"}}
		}, func(s *specs.Spec) any {
			return strings.TrimPrefix(fmt.Sprint(destinations(s)), "/proc /dev /dev/pts /dev/mqueue /sys /sys/fs/cgroup ")
		}, "/a /a/b /etc/hostname /etc/hosts /etc/resolv.conf /dev/shm /a/b/c"},
		"link":          {mounted(&mount{ContainerPath: "/a", HostPath: "/var/lib/link"}), mountOf("/a"), "bind /srv/real rbind,rprivate,rw"},
		"read-only":     {mounted(&mount{ContainerPath: "/a", HostPath: "/x", Readonly: true}), mountOf("/a"), "bind /x rbind,rprivate,ro"},
		"rro":           {mounted(&mount{ContainerPath: "/a", HostPath: "/x", Readonly: true, RecursiveReadOnly: true}), mountOf("/a"), "bind /x rbind,rprivate,rro"},
		"options":       {mounted(&mount{ContainerPath: "/a", HostPath: "/x", MountOptions: []string{"noexec", "nodev"}}), mountOf("/a"), "bind /x rbind,rprivate,rw,noexec,nodev"},
		"bidirectional": {mounted(&mount{ContainerPath: "/a", HostPath: "/mnt/shared/x", Propagation: 2}), func(s *specs.Spec) any { return fmt.Sprint(mountOf("/a")(s), " ", s.Linux.RootfsPropagation) }, "bind /mnt/shared/x rbind,rshared,rw rshared"},
		"from the host": {mounted(&mount{ContainerPath: "/a", HostPath: "/mnt/slave/x", Propagation: 1}), func(s *specs.Spec) any { return fmt.Sprint(mountOf("/a")(s), " ", s.Linux.RootfsPropagation) }, "bind /mnt/slave/x rbind,rslave,rw rslave"},
		"image volume": {func(in *spec.Input) {
			in.Image.Mounts = map[string]string{"/models": "/images/m/sub"}
			mounted(&mount{ContainerPath: "/models", ImageSubPath: "sub", Image: &runtimeapi.ImageSpec{Image: "m"}})(in)
		}, mountOf("/models"), "bind /images/m/sub rbind,rprivate,ro"},
		"declared volume": {func(in *spec.Input) { in.Image.Volumes = map[string]string{"/var/db/": "/vol/1"} }, mountOf("/var/db"), "bind /vol/1 rbind,rprivate,rw"},
		"declared volume overridden": {func(in *spec.Input) {
			in.Image.Volumes = map[string]string{"/a": "/vol/1"}
			mounted(&mount{ContainerPath: "/a/", HostPath: "/x"})(in)
		}, mountOf("/a/"), "bind /x rbind,rprivate,rw"},

		"no seccomp":      {nil, seccomp, "none"},
		"default seccomp": {security(func(s *sec) { s.Seccomp = profile(0, "") }), seccomp, "SCMP_ACT_ERRNO"},
		"only what runs": {func(in *spec.Input) {
			in.Host.NoForeign = []specs.Arch{specs.ArchX32}
			in.Config.Linux.SecurityContext.Seccomp = profile(0, "")
		}, arches, "[SCMP_ARCH_X86_64 SCMP_ARCH_X86]"},
		"native only": {func(in *spec.Input) {
			in.Policy.NativeSyscallsOnly = true
			in.Config.Linux.SecurityContext.Seccomp = profile(0, "")
		}, arches, "[SCMP_ARCH_X86_64]"},
		"legacy seccomp": {security(func(s *sec) { s.SeccompProfilePath = "localhost//profiles/ok.json" }), seccomp, "SCMP_ACT_ALLOW"},      //nolint:staticcheck // the deprecated field is under test
		"typed wins":     {security(func(s *sec) { s.Seccomp, s.SeccompProfilePath = profile(1, ""), "runtime/default" }), seccomp, "none"}, //nolint:staticcheck // the deprecated field is under test
		"local seccomp":  {security(func(s *sec) { s.Seccomp = profile(2, "/profiles/ok.json") }), seccomp, "SCMP_ACT_ALLOW"},
		"unset seccomp":  {func(in *spec.Input) { in.Policy.UnsetSeccomp = profile(0, "") }, seccomp, "SCMP_ACT_ERRNO"},
		"privileged":     {func(in *spec.Input) { privileged(in); in.Config.Linux.SecurityContext.Seccomp = profile(0, "") }, seccomp, "none"},
		"apparmor":       {func(in *spec.Input) { in.Host.AppArmor = true }, apparmor, "cri-containerd.apparmor.d"},
		"apparmor local": {func(in *spec.Input) {
			in.Host.AppArmor = true
			in.Config.Linux.SecurityContext.Apparmor = profile(2, "local")
		}, apparmor, "local"},
		"apparmor legacy": {func(in *spec.Input) {
			in.Host.AppArmor = true
			in.Config.Linux.SecurityContext.ApparmorProfile = "unconfined" //nolint:staticcheck // the deprecated field is under test
		}, apparmor, ""},
		"apparmor off":     {func(in *spec.Input) { in.Host.AppArmor = true; privileged(in) }, apparmor, ""},
		"selinux disabled": {security(func(s *sec) { s.SelinuxOptions = &runtimeapi.SELinuxOption{Type: "t"} }), selinux, " "},
		"selinux fresh":    {func(in *spec.Input) { in.Host.SELinux = true }, selinux, "system_u:system_r:container_t:s0:c7,c8 system_u:object_r:container_file_t:s0:c7,c8"},
		"selinux of the pod": {func(in *spec.Input) {
			in.Host.SELinux, in.Sandbox.ProcessLabel, in.Sandbox.MountLabel = true, "p:p:p:s0:c1", "m:m:m:s0:c1"
		}, selinux, "p:p:p:s0:c1 m:m:m:s0:c1"},
		"selinux privileged": {func(in *spec.Input) { in.Host.SELinux = true; privileged(in) }, selinux, " system_u:object_r:container_file_t:s0"},

		"no limits":      {resources(nil), func(s *specs.Spec) any { return s.Process.OOMScoreAdj == nil && s.Linux.Resources.CPU == nil }, "true"},
		"swap off":       {resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 5}), memory, "5 5"},
		"swap limited":   {resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 7}), memory, "5 7"},
		"swap unlimited": {resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: -1}), memory, "5 -1"},
		"swap unsupported": {func(in *spec.Input) {
			in.Host.Swap = false
			resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 5, MemorySwapLimitInBytes: 7})(in)
		}, memory, "5 nil"},
		"oom clamped": {func(in *spec.Input) {
			in.Host.MinOOMScoreAdj = 0
			resources(&runtimeapi.LinuxContainerResources{OomScoreAdj: -997})(in)
		}, func(s *specs.Spec) any { return *s.Process.OOMScoreAdj }, "0"},
		"unlimited quota": {resources(&runtimeapi.LinuxContainerResources{CpuQuota: -1}), func(s *specs.Spec) any { return *s.Linux.Resources.CPU.Quota }, "-1"},
		"cpuset":          {resources(&runtimeapi.LinuxContainerResources{CpusetCpus: "0-1,3", CpusetMems: "0"}), func(s *specs.Spec) any { return s.Linux.Resources.CPU.Cpus + " " + s.Linux.Resources.CPU.Mems }, "0-1,3 0"},
		"hugepages":       {resources(&runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 4}, {PageSize: "1GB"}}}), func(s *specs.Spec) any { return s.Linux.Resources.HugepageLimits }, "[{2MB 4} {1GB 0}]"},
		"unified":         {resources(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.oom.group": "1", "hugetlb.2MB.max": "0"}}), func(s *specs.Spec) any { return s.Linux.Resources.Unified }, "map[hugetlb.2MB.max:0 memory.oom.group:1]"},
		"cgroupfs":        {nil, func(s *specs.Spec) any { return s.Linux.CgroupsPath }, "/kubepods/burstable/pod1234/c0ffee"},
		"systemd":         {func(in *spec.Input) { in.Sandbox.Config.Linux.CgroupParent = "/kubepods.slice/kubepods-pod1.slice" }, func(s *specs.Spec) any { return s.Linux.CgroupsPath }, "kubepods-pod1.slice:cri-containerd:c0ffee"},
		"passed annotations": {func(in *spec.Input) {
			in.Handler.PodAnnotations, in.Handler.ContainerAnnotations = []string{"vm.io/*"}, []string{"x"}
			in.Sandbox.Config.Annotations = map[string]string{"vm.io/a": "1", "b": "2"}
			in.Config.Annotations = map[string]string{"x": "3", "y": "4", spec.AnnotationSandboxID: "forged"}
		}, func(s *specs.Spec) any { return len(s.Annotations) - 8 }, "2"},
		"idmap needs 1.1": {mounted(&mount{ContainerPath: "/a", HostPath: "/x", UidMappings: span(0, 1, 1), GidMappings: span(0, 1, 1)}), func(s *specs.Spec) any { return s.Version }, "1.1.0"},
		"net device needs 1.3": {func(in *spec.Input) {
			in.Handler.Base = spec.DefaultSpec()
			in.Handler.Base.Linux.NetDevices = map[string]specs.LinuxNetDevice{"eth1": {}}
		}, func(s *specs.Spec) any { return s.Version }, "1.3.0"},
		"scheduler needs 1.2": {func(in *spec.Input) {
			in.Handler.Base = spec.DefaultSpec()
			in.Handler.Base.Process.Scheduler = &specs.Scheduler{Policy: specs.SchedBatch}
		}, func(s *specs.Spec) any { return s.Version }, "1.2.0"},
	}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in, _ := fixture()
			if tt.change != nil {
				tt.change(&in)
			}
			if got := fmt.Sprint(tt.show(build(t, in))); got != tt.want {
				t.Errorf("got %s, want %s", got, tt.want)
			}
		})
	}
}

func args(s *specs.Spec) any     { return s.Process.Args }
func env(s *specs.Spec) any      { return s.Process.Env }
func cwd(s *specs.Spec) any      { return s.Process.Cwd }
func arches(s *specs.Spec) any   { return s.Linux.Seccomp.Architectures }
func apparmor(s *specs.Spec) any { return s.Process.ApparmorProfile }
func selinux(s *specs.Spec) any  { return s.Process.SelinuxLabel + " " + s.Linux.MountLabel }

func user(s *specs.Spec) any {
	u := s.Process.User
	return fmt.Sprintf("%d:%d %v", u.UID, u.GID, u.AdditionalGids)
}

func caps(s *specs.Spec) any {
	c := s.Process.Capabilities
	if !slices.Equal(c.Bounding, c.Effective) || !slices.Equal(c.Bounding, c.Permitted) {
		return fmt.Sprintf("unequal: %+v", c)
	}
	return fmt.Sprint(c.Bounding, c.Ambient, c.Inheritable)
}

func devices(s *specs.Spec) any {
	var nodes, rules []string
	for _, d := range s.Linux.Devices {
		nodes = append(nodes, fmt.Sprintf("%s:%s%d:%d", d.Path, d.Type, d.Major, d.Minor))
	}
	for _, r := range s.Linux.Resources.Devices {
		rules = append(rules, fmt.Sprint(r.Allow, " ", r.Access))
	}
	return strings.TrimSpace(strings.Join(nodes, " ") + " | " + strings.Join(rules, ", "))
}

func namespaces(s *specs.Spec) any {
	var out []string
	for _, n := range s.Linux.Namespaces {
		text := string(n.Type)
		if n.Path != "" {
			text += "=" + n.Path
		}
		out = append(out, text)
	}
	return strings.Join(out, " ")
}

func mountOf(destination string) func(*specs.Spec) any {
	return func(s *specs.Spec) any {
		var out []string
		for _, m := range s.Mounts {
			if m.Destination == destination {
				out = append(out, m.Type+" "+m.Source+" "+strings.Join(m.Options, ","))
			}
		}
		return strings.Join(out, "; ")
	}
}

func destinations(s *specs.Spec) any {
	var out []string
	for _, m := range s.Mounts {
		out = append(out, m.Destination)
	}
	return strings.Join(out, " ")
}

func seccomp(s *specs.Spec) any {
	if s.Linux.Seccomp == nil {
		return "none"
	}
	return s.Linux.Seccomp.DefaultAction
}

func memory(s *specs.Spec) any {
	m := s.Linux.Resources.Memory
	if m.Swap == nil {
		return fmt.Sprint(*m.Limit, " nil")
	}
	return fmt.Sprint(*m.Limit, *m.Swap)
}

func rootfs(accounts string) fstest.MapFS {
	return fstest.MapFS{"etc/passwd": {Data: []byte(accounts)}, "etc/group": {Data: []byte(groups)}}
}

// TestPasswdLinks follows a link as the container would, and not out of the image.
func TestPasswdLinks(t *testing.T) {
	in, _ := fixture()
	in.Image.Config.User = "alice"
	in.Image.Rootfs = fstest.MapFS{
		"etc":              {Mode: 0o777 | 1<<27, Data: []byte("../../store/etc")},
		"store/etc/passwd": {Mode: 0o777 | 1<<27, Data: []byte("/accounts")},
		"accounts":         {Data: []byte(passwd)},
	}
	if got := user(build(t, in)); got != "1000:1000 [1000]" {
		t.Errorf("got %v", got)
	}
	in.Image.Rootfs = fstest.MapFS{"etc": {Mode: 0o777 | 1<<27, Data: []byte("etc")}}
	if _, err := spec.Build(in); err == nil || !strings.Contains(err.Error(), "too many levels") {
		t.Errorf("a link to itself: %v", err)
	}
}
