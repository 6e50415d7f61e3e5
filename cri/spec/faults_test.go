// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"errors"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
	crierrors "k8s.io/cri-api/pkg/errors"

	"github.com/nodeagent/nodeagent/cri/spec"
)

type (
	sec   = runtimeapi.LinuxContainerSecurityContext
	mount = runtimeapi.Mount
	ids   = runtimeapi.IDMapping
)

func security(change func(*sec)) func(*spec.Input) {
	return func(in *spec.Input) { change(in.Config.Linux.SecurityContext) }
}

func resources(r *runtimeapi.LinuxContainerResources) func(*spec.Input) {
	return func(in *spec.Input) { in.Config.Linux.Resources = r }
}

func mounted(m *mount) func(*spec.Input) {
	return func(in *spec.Input) { in.Config.Mounts = []*mount{m} }
}

func device(d *runtimeapi.Device) func(*spec.Input) {
	return func(in *spec.Input) { in.Config.Devices = []*runtimeapi.Device{d} }
}

func profile(t runtimeapi.SecurityProfile_ProfileType, ref string) *runtimeapi.SecurityProfile {
	return &runtimeapi.SecurityProfile{ProfileType: t, LocalhostRef: ref}
}

func value(v int64) *runtimeapi.Int64Value { return &runtimeapi.Int64Value{Value: v} }

func userns(mode runtimeapi.NamespaceMode, uids, gids []*ids) func(*spec.Input) {
	return func(in *spec.Input) {
		u := &runtimeapi.UserNamespace{Mode: mode, Uids: uids, Gids: gids}
		in.Config.Linux.SecurityContext.NamespaceOptions.UsernsOptions = u
		in.Sandbox.Config.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{UsernsOptions: u}
		in.Sandbox.Namespaces.User = "/ns/user"
	}
}

func span(container, host, length uint32) []*ids {
	return []*ids{{ContainerId: container, HostId: host, Length: length}}
}

// TestFaults holds the text and the kind of the error for each field that can be wrong.
func TestFaults(t *testing.T) {
	const (
		invalid = "invalid"
		unable  = "unable"
		absent  = "absent"
		sc      = "linux.security_context."
		ns      = sc + "namespace_options."
	)
	long := strings.Repeat("9", 30)
	tests := map[string]struct {
		change func(*spec.Input)
		want   string
		kind   string
	}{
		"no command":       {func(in *spec.Input) { in.Image.Config.Entrypoint, in.Image.Config.Cmd = nil, nil }, "command: no command in the container", invalid},
		"NUL in args":      {func(in *spec.Input) { in.Config.Args = []string{"a\x00"} }, "command: argument 1 contains a NUL", invalid},
		"relative cwd":     {func(in *spec.Input) { in.Config.WorkingDir = "x" }, `working_dir: "x" is not an absolute path`, invalid},
		"env without name": {func(in *spec.Input) { in.Config.Envs = []*runtimeapi.KeyValue{{}} }, `envs[0].key: "" is empty`, invalid},
		"env name":         {func(in *spec.Input) { in.Config.Envs = []*runtimeapi.KeyValue{{Key: "a=b"}} }, `envs[0].key: "a=b" contains '='`, invalid},
		"env value":        {func(in *spec.Input) { in.Config.Envs = []*runtimeapi.KeyValue{{Key: "a", Value: []byte{0}}} }, "envs[0].value: contains a NUL", invalid},
		"stdin_once":       {func(in *spec.Input) { in.Config.StdinOnce = true }, "stdin_once: set without stdin", invalid},
		"stop signal":      {func(in *spec.Input) { in.Config.StopSignal = 99 }, "stop_signal: unknown value 99", invalid},
		"image signal":     {func(in *spec.Input) { in.Image.Config.StopSignal = "SIGNOPE" }, `stop signal of the image: "SIGNOPE"`, invalid},

		"two users":            {security(func(s *sec) { s.RunAsUser, s.RunAsUsername = value(1), "x" }), sc + "run_as_username: set together", invalid},
		"group alone":          {security(func(s *sec) { s.RunAsGroup = value(1) }), sc + "run_as_group: set without", invalid},
		"negative user":        {security(func(s *sec) { s.RunAsUser = value(-1) }), sc + "run_as_user: -1 is not between", invalid},
		"big group":            {security(func(s *sec) { s.RunAsUser, s.RunAsGroup = value(1), value(1<<31) }), sc + "run_as_group: 2147483648", invalid},
		"supplemental group":   {security(func(s *sec) { s.SupplementalGroups = []int64{1, -2} }), sc + "supplemental_groups[1]: -2", invalid},
		"groups policy":        {security(func(s *sec) { s.SupplementalGroupsPolicy = 7 }), sc + "supplemental_groups_policy: unknown value 7", invalid},
		"absent username":      {security(func(s *sec) { s.RunAsUsername = "bob" }), `user "bob": not in the image's /etc/passwd`, invalid},
		"absent image user":    {func(in *spec.Input) { in.Image.Config.User = "bob" }, `user "bob": not in`, invalid},
		"absent image group":   {func(in *spec.Input) { in.Image.Config.User = "web:nope" }, `group "nope": not in`, invalid},
		"overlong user":        {func(in *spec.Input) { in.Image.Config.User = long }, `user "` + long + `": not between`, invalid},
		"user outside userns":  {func(in *spec.Input) { userns(0, span(0, 1, 100), span(0, 1, 100))(in); in.Image.Config.User = "101" }, "user 101: outside the pod's user namespace", invalid},
		"group outside userns": {func(in *spec.Input) { userns(0, span(0, 1, 100), span(0, 1, 100))(in); in.Image.Config.User = "1:102" }, "group 102: outside", invalid},

		"capability": {security(func(s *sec) { s.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"NET_ADMIN", "FLY"}} }), sc + `capabilities.add_capabilities[1]: unknown capability "FLY"`, invalid},
		"ambient":    {security(func(s *sec) { s.Capabilities = &runtimeapi.Capability{AddAmbientCapabilities: []string{"X"}} }), sc + "capabilities.add_ambient_capabilities[0]", invalid},

		"no netns":           {func(in *spec.Input) { in.Sandbox.Namespaces.Net = "" }, ns + "network: mode POD, but the pod has no network namespace", unable},
		"no shared pid":      {security(func(s *sec) { s.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD }), ns + "pid: mode POD, but the pod has no pid namespace", unable},
		"network CONTAINER":  {security(func(s *sec) { s.NamespaceOptions.Network = runtimeapi.NamespaceMode_CONTAINER }), ns + "network: mode CONTAINER is not possible", invalid},
		"ipc TARGET":         {security(func(s *sec) { s.NamespaceOptions.Ipc = runtimeapi.NamespaceMode_TARGET }), ns + "ipc: mode TARGET is not possible", invalid},
		"pid enum":           {security(func(s *sec) { s.NamespaceOptions.Pid = 9 }), ns + "pid: unknown mode 9", invalid},
		"target without id":  {security(func(s *sec) { s.NamespaceOptions.Pid = runtimeapi.NamespaceMode_TARGET }), ns + "target_id: empty", invalid},
		"target not running": {security(func(s *sec) { s.NamespaceOptions.Pid, s.NamespaceOptions.TargetId = 3, "abc" }), ns + `target_id: container "abc" is not running`, unable},

		"userns differs": {security(func(s *sec) {
			s.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Uids: span(0, 1, 2), Gids: span(0, 1, 2)}
		}), ns + "userns_options: differs from the pod's", invalid},
		"userns CONTAINER":  {userns(runtimeapi.NamespaceMode_CONTAINER, nil, nil), ns + "userns_options.mode: mode CONTAINER", invalid},
		"userns NODE":       {userns(runtimeapi.NamespaceMode_NODE, span(0, 1, 2), nil), ns + "userns_options: mode NODE with mappings", invalid},
		"userns none":       {userns(0, nil, span(0, 1, 2)), ns + "userns_options.uids: 0 mappings, exactly one", invalid},
		"userns two":        {userns(0, append(span(0, 1, 2), span(2, 5, 2)...), span(0, 1, 2)), ns + "userns_options.uids: 2 mappings", invalid},
		"userns empty":      {userns(0, span(0, 1, 0), span(0, 1, 2)), ns + "userns_options.uids[0].length: 0 IDs", invalid},
		"userns not 0":      {userns(0, span(1, 1, 2), span(0, 1, 2)), ns + "userns_options.uids[0].container_id: the mapping starts at 1", invalid},
		"userns overflow":   {userns(0, span(0, 1<<32-5, 10), span(0, 1, 2)), ns + "userns_options.uids[0]: host IDs", invalid},
		"userns unbalanced": {userns(0, span(0, 1, 3), span(0, 1, 2)), ns + "userns_options: 3 users but 2 groups", invalid},
		"userns handler":    {func(in *spec.Input) { userns(0, span(0, 1, 2), span(0, 1, 2))(in); in.Handler.UserNamespaces = false }, `handler "runc" does not support user namespaces`, unable},
		"userns missing":    {func(in *spec.Input) { userns(0, span(0, 1, 2), span(0, 1, 2))(in); in.Sandbox.Namespaces.User = "" }, "no user namespace of its own", unable},

		"relative destination": {mounted(&mount{ContainerPath: "data", HostPath: "/x"}), `mounts[0].container_path: "data" is not an absolute path`, invalid},
		"escaping destination": {mounted(&mount{ContainerPath: "/a/../../etc", HostPath: "/x"}), "mounts[0].container_path: \"/a/../../etc\" leads out", invalid},
		"root destination":     {mounted(&mount{ContainerPath: "/a/..", HostPath: "/x"}), "is the root of the container", invalid},
		"NUL destination":      {mounted(&mount{ContainerPath: "/a\x00", HostPath: "/x"}), "contains a NUL", invalid},
		"relative source":      {mounted(&mount{ContainerPath: "/a", HostPath: "x"}), `mounts[0].host_path: "x" is not`, invalid},
		"no source":            {mounted(&mount{ContainerPath: "/a"}), `mounts[0].host_path: "" is not`, invalid},
		"image and host path":  {mounted(&mount{ContainerPath: "/a", HostPath: "/x", Image: &runtimeapi.ImageSpec{Image: "i"}}), "mounts[0].host_path: set together with image", invalid},
		"image not mounted":    {mounted(&mount{ContainerPath: "/a", Image: &runtimeapi.ImageSpec{Image: "i"}}), `mounts[0].image: image "i" is not mounted`, unable},
		"shared image":         {mounted(&mount{ContainerPath: "/a", Propagation: 2, Image: &runtimeapi.ImageSpec{Image: "i"}}), "an image volume has to be private", invalid},
		"sub path alone":       {mounted(&mount{ContainerPath: "/a", HostPath: "/x", ImageSubPath: "s"}), "mounts[0].image_sub_path: set without image", invalid},
		"propagation enum":     {mounted(&mount{ContainerPath: "/a", HostPath: "/x", Propagation: 5}), "mounts[0].propagation: unknown value 5", invalid},
		"not shared":           {mounted(&mount{ContainerPath: "/a", HostPath: "/mnt/slave/x", Propagation: 2}), "mounts[0].propagation: /mnt/slave/x is on mount /mnt/slave, which is not shared", unable},
		"not slave":            {mounted(&mount{ContainerPath: "/a", HostPath: "/srv", Propagation: 1}), "/srv is on mount /, which is neither shared nor a slave", unable},
		"rro without ro":       {mounted(&mount{ContainerPath: "/a", HostPath: "/x", RecursiveReadOnly: true}), "mounts[0].recursive_read_only: set on a mount that is not readonly", invalid},
		"rro not private":      {mounted(&mount{ContainerPath: "/a", HostPath: "/x", Readonly: true, RecursiveReadOnly: true, Propagation: 1}), "needs private propagation", invalid},
		"mount option":         {mounted(&mount{ContainerPath: "/a", HostPath: "/x", MountOptions: []string{"noexec", "rw"}}), `mounts[0].mount_options[1]: "rw" is not one of`, invalid},
		"half an idmap":        {mounted(&mount{ContainerPath: "/a", HostPath: "/x", UidMappings: span(0, 1, 1)}), "uidMappings and gidMappings go together", invalid},
		"empty idmap":          {mounted(&mount{ContainerPath: "/a", HostPath: "/x", UidMappings: span(0, 1, 1), GidMappings: span(0, 1, 0)}), "mapping 0 maps 0 IDs", invalid},
		"idmap handler": {func(in *spec.Input) {
			in.Handler.IDMapMounts = false
			mounted(&mount{ContainerPath: "/a", HostPath: "/x", UidMappings: span(0, 1, 1), GidMappings: span(0, 1, 1)})(in)
		}, "does not support idmap mounts", unable},
		"absent path refused": {func(in *spec.Input) {
			in.Policy.RejectMissingHostPaths = []string{"/srv"}
			mounted(&mount{ContainerPath: "/a", HostPath: "/srv/gone"})(in)
		}, "mounts[0]: /srv/gone: no such file", absent},
		"relative device":        {device(&runtimeapi.Device{HostPath: "null", Permissions: "r"}), `devices[0].host_path: "null" is not`, invalid},
		"device permissions":     {device(&runtimeapi.Device{HostPath: "/dev/fuse", Permissions: "rx"}), `devices[0].permissions: "rx" is not made of`, invalid},
		"no device permissions":  {device(&runtimeapi.Device{HostPath: "/dev/fuse"}), `devices[0].permissions: ""`, invalid},
		"device destination":     {device(&runtimeapi.Device{HostPath: "/dev/fuse", ContainerPath: "../x", Permissions: "r"}), "devices[0].container_path", invalid},
		"absent device":          {device(&runtimeapi.Device{HostPath: "/dev/gone", Permissions: "r"}), "devices[0]: /dev/gone", absent},
		"empty device directory": {device(&runtimeapi.Device{HostPath: "/dev/none", Permissions: "r"}), "devices[0]: /dev/none: no device nodes", invalid},
		"CDI disabled":           {func(in *spec.Input) { in.Config.CDIDevices = []*runtimeapi.CDIDevice{{Name: "v.com/gpu=0"}} }, "CDI_devices: CDI is disabled", unable},
		"CDI annotation":         {func(in *spec.Input) { in.Config.Annotations = map[string]string{"cdi.k8s.io/x": "nope"} }, "annotations: CDI devices", invalid},

		"privileged alone": {security(func(s *sec) { s.Privileged = true }), sc + "privileged: the pod was not made for", invalid},
		"masked path":      {security(func(s *sec) { s.MaskedPaths = []string{"proc"} }), sc + `masked_paths[0]: "proc" is not`, invalid},
		"readonly path":    {security(func(s *sec) { s.ReadonlyPaths = []string{"/"} }), sc + "readonly_paths[0]", invalid},
		"selinux level":    {security(func(s *sec) { s.SelinuxOptions = &runtimeapi.SELinuxOption{Level: "secret"} }), sc + `selinux_options.level: "secret"`, invalid},
		"seccomp type":     {security(func(s *sec) { s.Seccomp = profile(9, "") }), sc + "seccomp.profile_type: unknown value 9", invalid},
		"seccomp ref":      {security(func(s *sec) { s.Seccomp = profile(0, "/x") }), sc + "seccomp.localhost_ref: set with profile type RuntimeDefault", invalid},
		"seccomp no ref":   {security(func(s *sec) { s.Seccomp = profile(2, "") }), sc + "seccomp.localhost_ref: empty", invalid},
		"seccomp relative": {security(func(s *sec) { s.Seccomp = profile(2, "x.json") }), sc + `seccomp.localhost_ref: "x.json" is not`, invalid},
		"seccomp absent":   {security(func(s *sec) { s.Seccomp = profile(2, "/profiles/no.json") }), "seccomp: profile /profiles/no.json: no such file", absent},
		"seccomp broken":   {security(func(s *sec) { s.Seccomp = profile(2, "/profiles/bad.json") }), "seccomp: profile /profiles/bad.json", invalid},
		"seccomp empty":    {security(func(s *sec) { s.Seccomp = profile(2, "/profiles/empty.json") }), "no defaultAction", invalid},
		"seccomp kernel": {func(in *spec.Input) {
			in.Host.Seccomp = false
			in.Config.Linux.SecurityContext.Seccomp = profile(0, "")
		}, "this kernel has no seccomp", unable},
		"apparmor host": {security(func(s *sec) { s.Apparmor = profile(0, "") }), sc + "apparmor: AppArmor is not enabled", unable},
		"apparmor absent": {func(in *spec.Input) {
			in.Host.AppArmor = true
			in.Config.Linux.SecurityContext.Apparmor = profile(2, "x")
		}, `apparmor: profile "x" is not loaded`, absent},
		"period":            {resources(&runtimeapi.LinuxContainerResources{CpuPeriod: 10}), "linux.resources.cpu_period: 10", invalid},
		"quota":             {resources(&runtimeapi.LinuxContainerResources{CpuQuota: -2}), "linux.resources.cpu_quota: -2", invalid},
		"tiny quota":        {resources(&runtimeapi.LinuxContainerResources{CpuQuota: 5}), "linux.resources.cpu_quota: 5", invalid},
		"shares":            {resources(&runtimeapi.LinuxContainerResources{CpuShares: -1}), "linux.resources.cpu_shares: -1 is negative", invalid},
		"memory":            {resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: -1}), "linux.resources.memory_limit_in_bytes: -1 is negative", invalid},
		"swap":              {resources(&runtimeapi.LinuxContainerResources{MemorySwapLimitInBytes: -2}), "linux.resources.memory_swap_limit_in_bytes: -2", invalid},
		"swap below memory": {resources(&runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 9, MemorySwapLimitInBytes: 8}), "is below the memory limit 9", invalid},
		"oom score":         {resources(&runtimeapi.LinuxContainerResources{OomScoreAdj: 1001}), "linux.resources.oom_score_adj: 1001", invalid},
		"cpuset":            {resources(&runtimeapi.LinuxContainerResources{CpusetCpus: "3-1"}), `linux.resources.cpuset_cpus: "3-1" is not a list`, invalid},
		"mems":              {resources(&runtimeapi.LinuxContainerResources{CpusetMems: "0,"}), "linux.resources.cpuset_mems", invalid},
		"page size":         {resources(&runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2M"}}}), `linux.resources.hugepage_limits[0].page_size: "2M"`, invalid},
		"page size twice":   {resources(&runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB"}, {PageSize: "2MB"}}}), "hugepage_limits[1].page_size: 2MB is listed twice", invalid},
		"no hugetlb": {func(in *spec.Input) {
			in.Host.Hugetlb, in.Policy.RejectMissingHugetlb = false, true
			resources(&runtimeapi.LinuxContainerResources{HugepageLimits: []*runtimeapi.HugepageLimit{{PageSize: "2MB", Limit: 1}}})(in)
		}, "no hugetlb controller", unable},
		"unified on v1": {func(in *spec.Input) {
			in.Host.Cgroup = spec.CgroupHybrid
			resources(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"memory.min": "0"}})(in)
		}, "linux.resources.unified: this host's controllers are on cgroup v1", unable},
		"unified name":  {resources(&runtimeapi.LinuxContainerResources{Unified: map[string]string{"../x": "0"}}), `linux.resources.unified: "../x"`, invalid},
		"cgroup parent": {func(in *spec.Input) { in.Sandbox.Config.Linux.CgroupParent = "/a/../../b" }, "linux.cgroup_parent", invalid},
	}
	kinds := map[string]error{invalid: errdefs.ErrInvalidArgument, unable: errdefs.ErrFailedPrecondition, absent: errdefs.ErrNotFound}
	for name, tt := range tests {
		t.Run(name, func(t *testing.T) {
			in, sys := fixture()
			sys.Missing = map[string]bool{"/srv/gone": true}
			tt.change(&in)
			_, err := spec.Build(in)
			if err == nil || !strings.Contains(err.Error(), tt.want) || !errors.Is(err, kinds[tt.kind]) {
				t.Fatalf("got %v, want %q (%s)", err, tt.want, tt.kind)
			}
			if len(sys.Made)+len(sys.Relabeled) > 0 {
				t.Errorf("refused, but made %v and relabeled %v", sys.Made, sys.Relabeled)
			}
		})
	}
}

// TestAllFaultsAtOnce wants every fault of an input in the one error.
func TestAllFaultsAtOnce(t *testing.T) {
	in, _ := fixture()
	in.Config.WorkingDir = "x"
	in.Config.Linux.Resources.CpuShares = -1
	in.Handler.RecursiveReadOnlyMounts = false
	mounted(&mount{ContainerPath: "/a", HostPath: "/x", Readonly: true, RecursiveReadOnly: true})(&in)
	_, err := spec.Build(in)
	if err == nil || strings.Count(err.Error(), "; ") != 2 {
		t.Fatalf("got %v", err)
	}
	for _, want := range []error{errdefs.ErrInvalidArgument, errdefs.ErrFailedPrecondition, crierrors.ErrRROUnsupported} {
		if !errors.Is(err, want) {
			t.Errorf("%v is not %v", err, want)
		}
	}
}

// TestFailureReleasesLabels fails each question to the machine once.
func TestFailureReleasesLabels(t *testing.T) {
	broken := errors.New("broken")
	for _, op := range []string{"source", "propagation", "labels", "relabel"} {
		in, sys := fixture()
		in.Host.SELinux = true
		mounted(&mount{ContainerPath: "/a", HostPath: "/mnt/shared/x", Propagation: 2, SelinuxRelabel: true})(&in)
		sys.FailNext(op, broken)
		if _, err := spec.Build(in); !errors.Is(err, broken) {
			t.Errorf("%s: got %v", op, err)
		}
		if want := op != "labels"; (len(sys.Released) == 1) != want {
			t.Errorf("%s: released %v", op, sys.Released)
		}
	}
}
