// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"path"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// CgroupMode is how the host mounts its cgroups.
type CgroupMode string

// The modes. Hybrid keeps the controllers on v1 beside an empty v2 hierarchy.
const (
	CgroupV1     CgroupMode = "v1"
	CgroupHybrid CgroupMode = "hybrid"
	CgroupV2     CgroupMode = "v2"
)

// Host is what the machine can do. Probe reads it; tests write it.
type Host struct {
	// Hostname is the HOSTNAME of containers whose pod has none (host network).
	Hostname string
	// Cgroup says which hierarchy holds the controllers.
	Cgroup CgroupMode
	// CgroupMountOptions are those of the host's cgroup2 mount (nsdelegate, memory_recursiveprot) that a mount from the same
	// cgroup namespace has to repeat, or the shared superblock loses them.
	CgroupMountOptions []string
	// Swap and Hugetlb say whether those controllers exist.
	Swap    bool
	Hugetlb bool
	// MinOOMScoreAdj is the lowest oom_score_adj that may be set: -1000 with CAP_SYS_RESOURCE, the daemon's own without.
	MinOOMScoreAdj int
	// Capabilities are the names (CAP_...) that ALL and privileged stand for: the daemon's bounding set.
	Capabilities []string
	// NoForeign are the seccomp architectures that the default profile lists but this kernel cannot run: their rules would only
	// cost time, some 6 ms for each architecture whenever an OCI runtime compiles the profile.
	NoForeign []specs.Arch
	// NoUserNamespaces is why pods cannot have user namespaces of their own; nil when they can.
	NoUserNamespaces error
	// Seccomp, AppArmor and SELinux say whether the kernel has them enabled.
	Seccomp, AppArmor, SELinux bool
}

// CgroupsPath is the cgroup of a container under the pod's cgroup parent, in the form the OCI runtime wants: a plain path, or
// slice:prefix:name when the parent is a systemd slice. An empty parent leaves the choice to the OCI runtime.
func CgroupsPath(parent, id string) string {
	if parent == "" {
		return ""
	}
	if base := path.Base(parent); path.Ext(base) == ".slice" {
		return base + ":cri-containerd:" + id
	}
	return path.Join(parent, id)
}
