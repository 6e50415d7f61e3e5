// SPDX-License-Identifier: Apache-2.0

package store

import (
	"net/netip"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// SandboxState says where a sandbox is in its life:
// creating → ready → not-ready → (gone).
type SandboxState string

const (
	// SandboxCreating means: the intent is recorded, its steps are under way. It is
	// not listed, and undone when found after a restart.
	SandboxCreating SandboxState = "creating"
	// SandboxReady means: all steps are done.
	SandboxReady SandboxState = "ready"
	// SandboxNotReady means: stopped, or half undone; stop and remove finish it.
	SandboxNotReady SandboxState = "notready"
)

// Namespaces are the paths of a sandbox's pinned namespaces; an empty path
// means that the sandbox has none of that kind: the host's, or for Pid one
// made for each container.
type Namespaces struct {
	Net  string `json:"net,omitempty"`
	IPC  string `json:"ipc,omitempty"`
	UTS  string `json:"uts,omitempty"`
	User string `json:"user,omitempty"`
	PID  string `json:"pid,omitempty"`
}

// Sandbox is the record of a pod sandbox.
type Sandbox struct {
	ID     string                                                             `json:"id"`
	Config Message[runtimeapi.PodSandboxConfig, *runtimeapi.PodSandboxConfig] `json:"config"`
	// Handler is the runtime handler as it was asked for; "" is the default.
	Handler string       `json:"handler,omitempty"`
	State   SandboxState `json:"state"`
	// CreatedAt is in nanoseconds since 1970.
	CreatedAt  int64      `json:"createdAt"`
	Namespaces Namespaces `json:"namespaces"`
	// Addrs are the pod's addresses, the primary one first; none on the host's network.
	Addrs []netip.Addr `json:"addrs,omitempty"`
	// NetworkUp means that Detach has not succeeded since Attach was tried.
	NetworkUp bool `json:"networkUp,omitempty"`
	// Process means that the sandbox has a process of its own in containerd, with the sandbox's id.
	Process bool `json:"process,omitempty"`
	// Sandboxer is "" when that process is a container's, "shim" when it is what the shim has made by containerd's Sandbox API.
	Sandboxer string `json:"sandboxer,omitempty"`
	// ProcessLabel and MountLabel are the SELinux labels of the pod; empty without SELinux.
	ProcessLabel string `json:"processLabel,omitempty"`
	MountLabel   string `json:"mountLabel,omitempty"`
	// Overhead and Resources are the last of UpdatePodSandboxResources.
	Overhead  Message[runtimeapi.LinuxContainerResources, *runtimeapi.LinuxContainerResources] `json:"overhead,omitzero"`
	Resources Message[runtimeapi.LinuxContainerResources, *runtimeapi.LinuxContainerResources] `json:"resources,omitzero"`
}

// HostNetwork tells whether the pod uses the node's network namespace.
func (s *Sandbox) HostNetwork() bool {
	return s.NamespaceOptions().GetNetwork() == runtimeapi.NamespaceMode_NODE
}

// NamespaceOptions returns what the pod asked for; never nil.
func (s *Sandbox) NamespaceOptions() *runtimeapi.NamespaceOption {
	if o := s.Config.M.GetLinux().GetSecurityContext().GetNamespaceOptions(); o != nil {
		return o
	}
	return &runtimeapi.NamespaceOption{}
}

// CRIState is the state as the CRI knows it.
func (s *Sandbox) CRIState() runtimeapi.PodSandboxState {
	if s.State == SandboxReady {
		return runtimeapi.PodSandboxState_SANDBOX_READY
	}
	return runtimeapi.PodSandboxState_SANDBOX_NOTREADY
}
