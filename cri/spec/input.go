// SPDX-License-Identifier: Apache-2.0

// Package spec turns what the CRI says about a container into the OCI runtime spec that an OCI runtime starts it from.
//
// It owns every rule of that translation: precedence between image and pod, defaults, what privileged means, what a user
// namespace changes. It holds no state, keeps no goroutine and talks to nothing but what its Input carries: the same Input gives
// the same spec. What has to be asked of the machine (a host path, a device node, a profile file) goes through System.
//
//	out, err := spec.Build(in)           // a container
//	out, err := spec.BuildSandbox(in)    // the sandbox process, for the pods that need one
//	s, err   := spec.UpdateResources(old, res, host)
//
// Errors name the CRI field (`linux.resources.cpu_quota: ...`) and carry an errdefs sentinel: ErrInvalidArgument for a bad field,
// ErrFailedPrecondition for one that this host or runtime handler cannot honour, ErrNotFound for something named but absent.
// All faults of one Input are reported together, and before anything on the machine has been touched.
package spec

import (
	"io/fs"

	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Input is all that Build looks at. Nil messages mean their zero values; nothing in it is changed.
type Input struct {
	// ID is the container's ID, the leaf of its cgroup.
	ID string
	// Config is the CreateContainer request's container config.
	Config *runtimeapi.ContainerConfig
	// Image is what the container is made from.
	Image Image
	// Sandbox is the pod it is made in.
	Sandbox Sandbox
	// Host is what the machine can do; see Probe.
	Host Host
	// Handler is the runtime handler the pod runs with.
	Handler Handler
	// Policy is the node administrator's defaults.
	Policy Policy
	// System answers what only the machine knows; see NewSystem.
	System System
	// CDI resolves CDI device names, *cdi.Cache of the CDI library; nil makes a request for a CDI device an error.
	CDI CDI
}

// Image is the container's image as far as the spec needs it.
type Image struct {
	// Name is written as the annotation io.kubernetes.cri.image-name.
	Name string
	// Config is the config object of the image.
	Config ocispec.ImageConfig
	// Rootfs is the image's root, read for /etc/passwd and /etc/group only, and only when a user has to be looked up; it may
	// mount the image on its first use. A Rootfs that is an fs.ReadLinkFS has links resolved inside it. Nil means neither file exists.
	Rootfs fs.FS
	// Volumes maps the paths the image declares as VOLUME to prepared host directories; a CRI mount of the same path wins.
	Volumes map[string]string
	// Mounts maps the container_path of the CRI mounts that are images (Mount.image) to where the image, or its
	// image_sub_path, is mounted on the host.
	Mounts map[string]string
}

// Sandbox is what the pod already has.
type Sandbox struct {
	ID     string
	Config *runtimeapi.PodSandboxConfig
	// Namespaces are the pod's pinned namespaces.
	Namespaces Namespaces
	// TargetPID is the PID namespace of the container that NamespaceOption.target_id names, for pid mode TARGET.
	TargetPID string
	// Hostname, Hosts and ResolvConf are the pod's files on the host; an empty one is not mounted.
	Hostname, Hosts, ResolvConf string
	// Shm is the pod's /dev/shm on the host. Empty means the host's for ipc mode NODE, else a tmpfs of Policy.ShmSize.
	Shm string
	// ProcessLabel and MountLabel are the pod's SELinux labels, which containers without options of their own share.
	ProcessLabel, MountLabel string
}

// Namespaces are paths of pinned namespaces. Empty means: the host's where the pod asked for that (mode NODE), otherwise an error.
type Namespaces struct {
	Net, IPC, UTS, User string
	// PID is the pod's shared PID namespace; only pods with pid mode POD have one.
	PID string
}

// Handler is what the runtime handler is known to support (from the OCI runtime's features) and how it is configured.
type Handler struct {
	Name                    string
	RecursiveReadOnlyMounts bool
	IDMapMounts             bool
	UserNamespaces          bool
	// CgroupWritable mounts /sys/fs/cgroup read-write into containers.
	CgroupWritable bool
	// PrivilegedWithoutHostDevices keeps the host's devices out of privileged containers; PrivilegedAllDevicesAllowed
	// then still lets them make any device node.
	PrivilegedWithoutHostDevices bool
	PrivilegedAllDevicesAllowed  bool
	// PodAnnotations and ContainerAnnotations are patterns (path.Match) of the annotations passed on to the OCI runtime.
	PodAnnotations       []string
	ContainerAnnotations []string
	// Base is the administrator's base spec; nil means DefaultSpec. Its rlimits, hooks, mounts and seccomp profile are kept.
	Base *specs.Spec
}

// Policy is what the node's administrator decided for all containers.
type Policy struct {
	// Rlimits are set on every container.
	Rlimits []specs.POSIXRlimit
	// Env are environment variables, NAME=value, of containers in which neither the image nor the pod sets them.
	Env []string
	// Umask is that of every container's first process; nil means the OCI runtime's, 022.
	Umask *uint32
	// Localtime is the file on the host that containers see as /etc/localtime unless they bring their own; "" is none.
	Localtime string
	// ShmSize is the size of a /dev/shm in bytes when the pod brings none; 0 means 64 MiB.
	ShmSize int64
	// UnsetSeccomp is the profile for containers that name none at all: nil or Unconfined means none.
	UnsetSeccomp *runtimeapi.SecurityProfile
	// NativeSyscallsOnly leaves all foreign architectures (32-bit programs) out of the default seccomp profile: they are killed at
	// their first system call, and every create and exec with the profile gets some 7 to 14 ms of CPU time cheaper.
	NativeSyscallsOnly bool
	// DeviceOwnershipFromSecurityContext gives device nodes to run_as_user and run_as_group instead of the host's owner.
	DeviceOwnershipFromSecurityContext bool
	// RejectMissingHugetlb refuses hugepage limits on a host without the controller instead of dropping them.
	RejectMissingHugetlb bool
	// RejectMissingHostPaths refuses mounts of absent host paths instead of creating directories there; its entries are
	// path prefixes ("/" refuses all).
	RejectMissingHostPaths []string
	// UnprivilegedPorts and UnprivilegedICMP let containers of pods with a network of their own bind ports below 1024 and
	// send pings without capabilities, unless the pod sets those sysctls itself.
	UnprivilegedPorts bool
	UnprivilegedICMP  bool
}

// Labels is a pair of SELinux labels.
type Labels struct {
	Process, Mount string
}

// Propagation is how mounts travel from and to a mount point on the host.
type Propagation int

// The kinds of Propagation. A mount that is a slave and shared again counts as Shared.
const (
	Private Propagation = iota
	Slave
	Shared
)

// System is the part of the machine that Build has to ask. All its errors are reported with the field they were met in.
type System interface {
	Files
	SELinux
	// LoadAppArmor gives the kernel the profile of containers by default under a name, in place of one that it has.
	LoadAppArmor(name string) error
}

// Files is what Build asks of the host's file systems.
type Files interface {
	// Source returns path with its links resolved; an absent path is made a directory (0755) first when create is set.
	Source(path string, create bool) (string, error)
	// Propagation returns that of the mount which holds path, and its mount point.
	Propagation(path string) (Propagation, string, error)
	// Devices returns the device node at path, or all nodes below it for a directory.
	Devices(path string) ([]specs.LinuxDevice, error)
	// ReadFile reads a small file of the host: a seccomp profile, the list of loaded AppArmor profiles.
	ReadFile(path string) ([]byte, error)
}

// SELinux is what Build asks of SELinux, and only on a host that has it enabled.
type SELinux interface {
	// Labels reserves SELinux labels for label options ("user:", "role:", "type:", "level:" or "disable"); none means a
	// fresh pair of categories.
	Labels(options []string) (Labels, error)
	// Release gives back the categories of a process label.
	Release(process string)
	// Relabel gives path and all below it the label; a file system without labels is not an error.
	Relabel(path, label string) error
}

// CDI injects devices into a spec; the CDI library's *cdi.Cache is one.
type CDI interface {
	InjectDevices(s *specs.Spec, devices ...string) (unresolved []string, err error)
}

// Output is a built spec and what else was resolved on the way.
type Output struct {
	Spec *specs.Spec
	// User is what ContainerStatus reports as user.linux.
	User *runtimeapi.LinuxContainerUser
	// StopSignal is the signal that stops the container, as SIGNAME: the pod's choice, the image's, SIGTERM.
	StopSignal string
	// Labels are the SELinux labels in use; NewLabels says that Build reserved them, so that a removed container
	// has to release them.
	Labels    Labels
	NewLabels bool
}
