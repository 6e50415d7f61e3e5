// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const nsField = "linux.security_context.namespace_options."

// namespaces joins the pod's namespaces. A mode NODE leaves the namespace out, so that the container stays in the one that the
// OCI runtime runs in, the host's.
func (b *builder) namespaces() {
	o := b.security().GetNamespaceOptions()
	b.spec.Linux.Namespaces = []specs.LinuxNamespace{{Type: specs.MountNamespace}}
	b.userNamespace(o)
	ns := b.in.Sandbox.Namespaces
	b.podNamespace(nsField+"network", specs.NetworkNamespace, o.GetNetwork(), ns.Net)
	b.podNamespace(nsField+"ipc", specs.IPCNamespace, o.GetIpc(), ns.IPC)
	b.pidNamespace(o)
	// CRI has no mode for UTS: it goes with the network, as a pod on the host's network carries the host's name.
	b.podNamespace(nsField+"network", specs.UTSNamespace, o.GetNetwork(), ns.UTS)
	// A container sees its own cgroup as the root, except on v1, where tools expect the whole tree, and when privileged.
	if b.in.Host.Cgroup == CgroupV2 && !b.security().GetPrivileged() {
		b.join(specs.CgroupNamespace, "")
	}
}

func (b *builder) join(t specs.LinuxNamespaceType, path string) {
	b.spec.Linux.Namespaces = append(b.spec.Linux.Namespaces, specs.LinuxNamespace{Type: t, Path: path})
}

func (b *builder) podNamespace(field string, t specs.LinuxNamespaceType, mode runtimeapi.NamespaceMode, path string) {
	switch mode {
	case runtimeapi.NamespaceMode_NODE:
	case runtimeapi.NamespaceMode_POD:
		if path == "" {
			b.faults.unable(field, "mode POD, but the pod has no %s namespace of its own", t)
			return
		}
		b.join(t, path)
	default:
		b.faults.invalid(field, "mode %s is not possible for a %s namespace", modeName(mode), t)
	}
}

func (b *builder) pidNamespace(o *runtimeapi.NamespaceOption) {
	const field = nsField + "pid"
	switch o.GetPid() {
	case runtimeapi.NamespaceMode_NODE:
	case runtimeapi.NamespaceMode_CONTAINER:
		b.join(specs.PIDNamespace, "")
	case runtimeapi.NamespaceMode_POD:
		b.podNamespace(field, specs.PIDNamespace, runtimeapi.NamespaceMode_POD, b.in.Sandbox.Namespaces.PID)
	case runtimeapi.NamespaceMode_TARGET:
		switch {
		case o.GetTargetId() == "":
			b.faults.invalid(nsField+"target_id", "empty with pid mode TARGET")
		case b.in.Sandbox.TargetPID == "":
			b.faults.unable(nsField+"target_id", "container %q is not running in this pod", o.GetTargetId())
		default:
			b.join(specs.PIDNamespace, b.in.Sandbox.TargetPID)
		}
	default:
		b.faults.invalid(field, "unknown mode %s", modeName(o.GetPid()))
	}
}

func (b *builder) userNamespace(o *runtimeapi.NamespaceOption) {
	const field = nsField + "userns_options"
	pod := b.podSecurity().GetNamespaceOptions().GetUsernsOptions()
	if !sameUserNamespace(pod, o.GetUsernsOptions()) {
		b.faults.invalid(field, "differs from the pod's")
		return
	}
	ids := checkUserNamespace(&b.faults, field, o.GetUsernsOptions())
	if ids == nil {
		return
	}
	if !b.in.Handler.UserNamespaces {
		b.faults.unable(field, "runtime handler %q does not support user namespaces", b.in.Handler.Name)
	}
	if b.in.Sandbox.Namespaces.User == "" {
		b.faults.unable(field, "mode POD, but the pod has no user namespace of its own")
	}
	b.ids = ids
	b.join(specs.UserNamespace, b.in.Sandbox.Namespaces.User)
	b.spec.Linux.UIDMappings = []specs.LinuxIDMapping{ids.uid}
	b.spec.Linux.GIDMappings = []specs.LinuxIDMapping{ids.gid}
}

// sameUserNamespace compares what pod and container ask for; not asking and mode NODE are the same.
func sameUserNamespace(pod, container *runtimeapi.UserNamespace) bool {
	node := func(u *runtimeapi.UserNamespace) bool {
		return u == nil || u.GetMode() == runtimeapi.NamespaceMode_NODE
	}
	if node(pod) && node(container) {
		return true
	}
	same := func(a, b *runtimeapi.IDMapping) bool { return proto.Equal(a, b) }
	return pod.GetMode() == container.GetMode() && slices.EqualFunc(pod.GetUids(), container.GetUids(), same) &&
		slices.EqualFunc(pod.GetGids(), container.GetGids(), same)
}

// idMaps are the mappings of a user namespace; nil is the host's.
type idMaps struct {
	uid, gid specs.LinuxIDMapping
}

// CheckUserNamespace validates the user namespace that a pod asks for: mode NODE without mappings, or mode POD with exactly one
// mapping each for users and groups, which starts at 0 inside. It is what RunPodSandbox has to know before it makes one.
func CheckUserNamespace(u *runtimeapi.UserNamespace) error {
	var f faults
	checkUserNamespace(&f, nsField+"userns_options", u)
	return f.err()
}

func checkUserNamespace(f *faults, field string, u *runtimeapi.UserNamespace) *idMaps {
	if u == nil {
		return nil
	}
	switch u.GetMode() {
	case runtimeapi.NamespaceMode_NODE:
		if len(u.GetUids())+len(u.GetGids()) > 0 {
			f.invalid(field, "mode NODE with mappings")
		}
		return nil
	case runtimeapi.NamespaceMode_POD:
	default:
		f.invalid(field+".mode", "mode %s is not possible for a user namespace", modeName(u.GetMode()))
		return nil
	}
	uid, okUID := checkMapping(f, field+".uids", u.GetUids())
	gid, okGID := checkMapping(f, field+".gids", u.GetGids())
	if !okUID || !okGID {
		return nil
	}
	if uid.Size != gid.Size {
		f.invalid(field, "%d users but %d groups are mapped", uid.Size, gid.Size)
		return nil
	}
	return &idMaps{uid: uid, gid: gid}
}

func checkMapping(f *faults, field string, maps []*runtimeapi.IDMapping) (specs.LinuxIDMapping, bool) {
	if len(maps) != 1 || maps[0] == nil {
		f.invalid(field, "%d mappings, exactly one is supported", len(maps))
		return specs.LinuxIDMapping{}, false
	}
	m := maps[0]
	switch {
	case m.GetLength() == 0:
		f.invalid(field+"[0].length", "0 IDs are mapped")
	case m.GetContainerId() != 0:
		f.invalid(field+"[0].container_id", "the mapping starts at %d, ID 0 has to be mapped", m.GetContainerId())
	case uint64(m.GetHostId())+uint64(m.GetLength()) > 1<<32-1:
		f.invalid(field+"[0]", "host IDs %d + %d run past the last ID", m.GetHostId(), m.GetLength())
	default:
		return specs.LinuxIDMapping{ContainerID: 0, HostID: m.GetHostId(), Size: m.GetLength()}, true
	}
	return specs.LinuxIDMapping{}, false
}

// covers says whether a user and its groups exist inside the user namespace.
func (m *idMaps) covers(uid uint32, gids []uint32) error {
	if m == nil {
		return nil
	}
	if uid >= m.uid.Size {
		return fmt.Errorf("user %d: outside the pod's user namespace, which has %d IDs: %w", uid, m.uid.Size, errdefs.ErrInvalidArgument)
	}
	for _, gid := range gids {
		if gid >= m.gid.Size {
			return fmt.Errorf("group %d: outside the pod's user namespace, which has %d IDs: %w", gid, m.gid.Size, errdefs.ErrInvalidArgument)
		}
	}
	return nil
}
