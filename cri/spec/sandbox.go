// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"maps"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const (
	sandboxOOMScore  = -998
	sandboxCPUShares = 2
)

// SandboxInput is what BuildSandbox looks at.
type SandboxInput struct {
	Sandbox Sandbox
	// Image is the pause image, for pods that run one; its zero value together with Args is the init that nodeagent carries.
	Image Image
	Args  []string
	// Host, Handler, Policy and System are those of Input.
	Host    Host
	Handler Handler
	Policy  Policy
	System  System
}

// BuildSandbox is the spec of a sandbox process: the init of a shared PID namespace, the pause container, or what a VM runtime
// makes its machine from. It joins the pod's namespaces and has a PID namespace of its own, which is the pod's.
func BuildSandbox(in SandboxInput) (*Output, error) {
	pod := in.Sandbox.Config
	sysctls, err := Sysctls(pod, in.Policy)
	if err != nil {
		return nil, err
	}
	b := Input{
		ID: in.Sandbox.ID, Config: sandboxContainer(pod, in.Args), Image: in.Image, Sandbox: in.Sandbox,
		Host: in.Host, Handler: in.Handler, Policy: in.Policy, System: in.System,
	}
	out, err := Build(b)
	if err != nil {
		return nil, fmt.Errorf("sandbox process: %w", err)
	}
	s := out.Spec
	for _, ns := range s.Linux.Namespaces {
		if ns.Type == specs.UTSNamespace {
			s.Hostname = pod.GetHostname()
		}
	}
	if all := sysctls.all(); len(all) > 0 {
		if s.Linux.Sysctl == nil {
			s.Linux.Sysctl = map[string]string{}
		}
		maps.Copy(s.Linux.Sysctl, all)
	}
	delete(s.Annotations, AnnotationContainerName)
	delete(s.Annotations, AnnotationImageName)
	s.Annotations[AnnotationContainerType] = "sandbox"
	s.Annotations[AnnotationSandboxLogDir] = pod.GetLogDirectory()
	s.Annotations[AnnotationSandboxImage] = in.Image.Name
	annotateResources(s, pod.GetLinux().GetResources())
	return out, nil
}

// sandboxContainer words the pod's own security context as that of a container, confined as far as an idle process can be.
func sandboxContainer(pod *runtimeapi.PodSandboxConfig, args []string) *runtimeapi.ContainerConfig {
	sc := pod.GetLinux().GetSecurityContext()
	o := sc.GetNamespaceOptions()
	pid := runtimeapi.NamespaceMode_CONTAINER
	if o.GetPid() == runtimeapi.NamespaceMode_NODE {
		pid = runtimeapi.NamespaceMode_NODE
	}
	return &runtimeapi.ContainerConfig{
		Command: args,
		Linux: &runtimeapi.LinuxContainerConfig{
			Resources: &runtimeapi.LinuxContainerResources{CpuShares: sandboxCPUShares, OomScoreAdj: sandboxOOMScore},
			SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
				NamespaceOptions: &runtimeapi.NamespaceOption{
					Network: o.GetNetwork(), Pid: pid, Ipc: o.GetIpc(), UsernsOptions: o.GetUsernsOptions(),
				},
				SelinuxOptions: sc.GetSelinuxOptions(), RunAsUser: sc.GetRunAsUser(), RunAsGroup: sc.GetRunAsGroup(),
				SupplementalGroups: sc.GetSupplementalGroups(), SupplementalGroupsPolicy: sc.GetSupplementalGroupsPolicy(),
				ReadonlyRootfs: true, NoNewPrivs: true, Seccomp: sandboxSeccomp(sc),
				MaskedPaths:   []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/sched_debug", "/sys/firmware"},
				ReadonlyPaths: []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"},
			},
		},
	}
}

func sandboxSeccomp(sc *runtimeapi.LinuxSandboxSecurityContext) *runtimeapi.SecurityProfile {
	if p := sc.GetSeccomp(); p != nil {
		return p
	}
	return legacyProfile(sc.GetSeccompProfilePath()) //nolint:staticcheck // deprecated, but older kubelets send it
}
