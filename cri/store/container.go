// SPDX-License-Identifier: Apache-2.0

package store

import (
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// ContainerState says where a container is in its life:
// creating → created → running → exited → (gone).
type ContainerState string

const (
	// ContainerCreating means: the intent is recorded, its steps are under way. It is
	// not listed, and undone when found after a restart.
	ContainerCreating ContainerState = "creating"
	// ContainerCreated means: it may be started, once.
	ContainerCreated ContainerState = "created"
	// ContainerRunning means: it has a task.
	ContainerRunning ContainerState = "running"
	// ContainerExited means: it has an exit code.
	ContainerExited ContainerState = "exited"
)

// Reasons of an exit, as the kubelet shows them.
const (
	ReasonCompleted  = "Completed"
	ReasonError      = "Error"
	ReasonOOMKilled  = "OOMKilled"
	ReasonStartError = "StartError"
	ReasonUnknown    = "Unknown"
)

// Exit codes that nodeagent itself gives.
const (
	// ExitStartError is the code of a container that could not be started.
	ExitStartError = 128
	// ExitUnknown is the code of a container whose real one is lost.
	ExitUnknown = 255
)

// Container is the record of a container. Times are nanoseconds since 1970.
type Container struct {
	ID        string                                                           `json:"id"`
	SandboxID string                                                           `json:"sandboxID"`
	Config    Message[runtimeapi.ContainerConfig, *runtimeapi.ContainerConfig] `json:"config"`
	// Handler is that of the sandbox.
	Handler string         `json:"handler,omitempty"`
	State   ContainerState `json:"state"`

	CreatedAt  int64  `json:"createdAt"`
	StartedAt  int64  `json:"startedAt,omitempty"`
	FinishedAt int64  `json:"finishedAt,omitempty"`
	ExitCode   int32  `json:"exitCode,omitempty"`
	Reason     string `json:"reason,omitempty"`
	Message    string `json:"message,omitempty"`
	PID        uint32 `json:"pid,omitempty"`

	// ImageID is the image's id, ImageRef its repository digest or again the id.
	ImageID  string `json:"imageID"`
	ImageRef string `json:"imageRef"`
	// ImageName is what people call the image: a tag, when it has one.
	ImageName string `json:"imageName,omitempty"`
	// Snapshotter and SnapshotKey name the root file system's writable layer.
	Snapshotter string `json:"snapshotter,omitempty"`
	SnapshotKey string `json:"snapshotKey,omitempty"`
	// RestoreFrom is the directory of CRIU's images that the start goes on from; empty for a new process.
	RestoreFrom string `json:"restoreFrom,omitempty"`
	// LogPath is absolute; empty means that output is thrown away.
	LogPath string `json:"logPath,omitempty"`
	// CgroupsPath is the path below each hierarchy's root, or slice:prefix:name with systemd.
	CgroupsPath string `json:"cgroupsPath,omitempty"`
	// Cgroup is the container's path below each hierarchy's root, as it is in
	// /proc/<pid>/cgroup; known once it has started.
	Cgroup string `json:"cgroup,omitempty"`
	// OOMBefore is how many kills for want of memory the parent of Cgroup has counted that were neither this container's nor
	// those of another one that runs.
	OOMBefore uint64 `json:"oomBefore,omitempty"`
	// StopSignal is a name such as SIGTERM.
	StopSignal string `json:"stopSignal,omitempty"`
	// OwnLabel is the SELinux process label that was reserved for this container alone.
	OwnLabel string `json:"ownLabel,omitempty"`
	// Stdin means that the task was made with an open standard input.
	Stdin bool `json:"stdin,omitempty"`
	// Resources are those in force; they begin as the config's.
	Resources Message[runtimeapi.LinuxContainerResources, *runtimeapi.LinuxContainerResources] `json:"resources,omitzero"`
	// User is the effective user of the first process.
	User Message[runtimeapi.ContainerUser, *runtimeapi.ContainerUser] `json:"user,omitzero"`
	// Mounts are the config's, completed with what was found at creation.
	Mounts []Message[runtimeapi.Mount, *runtimeapi.Mount] `json:"mounts,omitempty"`
}

// CRIState is the state as the CRI knows it.
func (c *Container) CRIState() runtimeapi.ContainerState {
	switch c.State {
	case ContainerCreating, ContainerCreated:
		return runtimeapi.ContainerState_CONTAINER_CREATED
	case ContainerRunning:
		return runtimeapi.ContainerState_CONTAINER_RUNNING
	case ContainerExited:
		return runtimeapi.ContainerState_CONTAINER_EXITED
	}
	return runtimeapi.ContainerState_CONTAINER_UNKNOWN
}
