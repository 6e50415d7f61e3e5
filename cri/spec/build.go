// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/json"
	"fmt"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Build translates a CRI container into its OCI spec. The first pass looks only at the Input and reports all its faults
// together; the second asks the System, and what it leaves on the machine when it fails is at most an empty directory for an
// absent host path. SELinux labels that were reserved are released again on error.
func Build(in Input) (_ *Output, retErr error) {
	b, err := newBuilder(in)
	if err != nil {
		return nil, err
	}
	b.process()
	b.checkUser()
	b.namespaces()
	b.capabilities()
	b.checkDevices()
	b.checkProfiles()
	b.resources()
	b.planMounts()
	b.stopSignal()
	if err := b.faults.err(); err != nil {
		return nil, err
	}
	b.protect()
	b.annotate()
	defer func() {
		if retErr != nil && b.out.NewLabels {
			in.System.Release(b.out.Labels.Process)
		}
	}()
	for _, step := range []func() error{b.user, b.devices, b.profiles, b.checkCDI, b.labels, b.mounts, b.cdi} {
		if err := step(); err != nil {
			return nil, err
		}
	}
	b.spec.Version = Version(b.spec)
	return b.out, nil
}

// builder is one Build under way.
type builder struct {
	in     Input
	spec   *specs.Spec
	out    *Output
	faults faults
	plan   []bind
	// ids are the user namespace's mappings, nil without one.
	ids *idMaps
}

func newBuilder(in Input) (*builder, error) {
	s := DefaultSpec()
	if in.Handler.Base != nil {
		var err error
		if s, err = clone(in.Handler.Base); err != nil {
			return nil, fmt.Errorf("base spec of runtime handler %q: %w", in.Handler.Name, err)
		}
		fill(s)
	}
	s.Root.Path = "rootfs"
	s.Hostname = ""
	return &builder{in: in, spec: s, out: &Output{Spec: s}}, nil
}

// security is the container's security context; its getters take nil.
func (b *builder) security() *runtimeapi.LinuxContainerSecurityContext {
	return b.in.Config.GetLinux().GetSecurityContext()
}

// podSecurity is that of the pod.
func (b *builder) podSecurity() *runtimeapi.LinuxSandboxSecurityContext {
	return b.in.Sandbox.Config.GetLinux().GetSecurityContext()
}

// DefaultSpec is what a container starts from before anything is asked for: the mounts and capabilities that containerd and
// Docker give, no seccomp profile, no rlimits, no masked paths (the kubelet sends those).
func DefaultSpec() *specs.Spec {
	s := &specs.Spec{
		Process: &specs.Process{Capabilities: capabilitySets(defaultCapabilities())},
		Mounts:  defaultMounts(),
		Linux: &specs.Linux{
			Resources: &specs.LinuxResources{
				Devices: []specs.LinuxDeviceCgroup{{Allow: false, Access: "rwm"}},
			},
		},
	}
	fill(s)
	return s
}

// fill makes what the rest of the package writes into.
func fill(s *specs.Spec) {
	if s.Root == nil {
		s.Root = &specs.Root{}
	}
	if s.Process == nil {
		s.Process = &specs.Process{}
	}
	if s.Process.Cwd == "" {
		s.Process.Cwd = "/"
	}
	if s.Process.Capabilities == nil {
		s.Process.Capabilities = &specs.LinuxCapabilities{}
	}
	if s.Linux == nil {
		s.Linux = &specs.Linux{}
	}
	if s.Linux.Resources == nil {
		s.Linux.Resources = &specs.LinuxResources{}
	}
	if s.Annotations == nil {
		s.Annotations = map[string]string{}
	}
}

func clone(s *specs.Spec) (*specs.Spec, error) {
	raw, err := json.Marshal(s)
	if err != nil {
		return nil, err
	}
	out := &specs.Spec{}
	return out, json.Unmarshal(raw, out)
}
