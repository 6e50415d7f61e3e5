// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/containerd/containerd/v2/contrib/seccomp"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

const secField = "linux.security_context."

// protect hides and write-protects paths. The kubelet sends the lists, and empty ones for procMount: Unmasked, which nothing
// on the wire tells from absent ones: so there are no defaults here.
func (b *builder) protect() {
	sc := b.security()
	b.spec.Linux.MaskedPaths = slices.Clone(sc.GetMaskedPaths())
	b.spec.Linux.ReadonlyPaths = slices.Clone(sc.GetReadonlyPaths())
	if sc.GetPrivileged() {
		b.spec.Linux.MaskedPaths, b.spec.Linux.ReadonlyPaths = nil, nil
	}
}

// checkProfiles validates what profiles yields later, without reading files.
func (b *builder) checkProfiles() {
	sc := b.security()
	if sc.GetPrivileged() && !b.podSecurity().GetPrivileged() {
		b.faults.invalid(secField+"privileged", "the pod was not made for privileged containers")
	}
	for i, p := range sc.GetMaskedPaths() {
		checkInside(&b.faults, fmt.Sprintf(secField+"masked_paths[%d]", i), p)
	}
	for i, p := range sc.GetReadonlyPaths() {
		checkInside(&b.faults, fmt.Sprintf(secField+"readonly_paths[%d]", i), p)
	}
	if l := sc.GetSelinuxOptions().GetLevel(); l != "" && !validLevel(l) {
		b.faults.invalid(secField+"selinux_options.level", "%q is not a level like s0:c1,c2", l)
	}
	checkProfile(&b.faults, secField+"seccomp", b.seccompProfile())
	if p := b.seccompProfile(); p.GetProfileType() == runtimeapi.SecurityProfile_Localhost && p.GetLocalhostRef() != "" && !path.IsAbs(p.GetLocalhostRef()) {
		b.faults.invalid(secField+"seccomp.localhost_ref", "%q is not an absolute path", p.GetLocalhostRef())
	}
	checkProfile(&b.faults, secField+"apparmor", b.appArmorProfile())
	if confined(b.seccompProfile()) && !b.in.Host.Seccomp && !sc.GetPrivileged() {
		b.faults.unable(secField+"seccomp", "this kernel has no seccomp")
	}
	if p := sc.GetApparmor(); confined(p) && !b.in.Host.AppArmor {
		b.faults.unable(secField+"apparmor", "AppArmor is not enabled on this host")
	}
}

func confined(p *runtimeapi.SecurityProfile) bool {
	return p != nil && p.GetProfileType() != runtimeapi.SecurityProfile_Unconfined
}

func checkProfile(f *faults, field string, p *runtimeapi.SecurityProfile) {
	if p == nil {
		return
	}
	if _, ok := enumName(runtimeapi.SecurityProfile_ProfileType_name, int32(p.GetProfileType())); !ok {
		f.invalid(field+".profile_type", "unknown value %d", int32(p.GetProfileType()))
	}
	if local := p.GetProfileType() == runtimeapi.SecurityProfile_Localhost; local && p.GetLocalhostRef() == "" {
		f.invalid(field+".localhost_ref", "empty with profile type Localhost")
	} else if !local && p.GetLocalhostRef() != "" {
		f.invalid(field+".localhost_ref", "set with profile type %s", p.GetProfileType())
	}
}

// legacyProfile reads the deprecated string form; nil for none.
func legacyProfile(s string) *runtimeapi.SecurityProfile {
	switch s {
	case "":
		return nil
	case "runtime/default", "docker/default":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
	case "unconfined":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Unconfined}
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: strings.TrimPrefix(s, "localhost/")}
}

func (b *builder) seccompProfile() *runtimeapi.SecurityProfile {
	if p := b.security().GetSeccomp(); p != nil {
		return p
	}
	if p := legacyProfile(b.security().GetSeccompProfilePath()); p != nil { //nolint:staticcheck // deprecated, but older kubelets send it
		return p
	}
	return b.in.Policy.UnsetSeccomp
}

// appArmorProfile is RuntimeDefault for a container that names none, where the host has AppArmor (k/k#51746).
func (b *builder) appArmorProfile() *runtimeapi.SecurityProfile {
	if p := b.security().GetApparmor(); p != nil {
		return p
	}
	if p := legacyProfile(b.security().GetApparmorProfile()); p != nil { //nolint:staticcheck // deprecated, but older kubelets send it
		return p
	}
	return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}
}

// profiles sets seccomp and AppArmor.
func (b *builder) profiles() error {
	if err := b.seccomp(); err != nil {
		return fmt.Errorf(secField+"seccomp: %w", err)
	}
	if err := b.appArmor(); err != nil {
		return fmt.Errorf(secField+"apparmor: %w", err)
	}
	return nil
}

func (b *builder) seccomp() error {
	p := b.seccompProfile()
	switch {
	case b.security().GetPrivileged() || !b.in.Host.Seccomp:
		b.spec.Linux.Seccomp = nil
	case p == nil:
		// The base spec's, if it has one.
	case p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined:
		b.spec.Linux.Seccomp = nil
	case p.GetProfileType() == runtimeapi.SecurityProfile_RuntimeDefault:
		b.spec.Linux.Seccomp = b.defaultProfile()
	default:
		profile, err := b.readProfile(strings.TrimPrefix(p.GetLocalhostRef(), "localhost/"))
		if err != nil {
			return err
		}
		b.spec.Linux.Seccomp = profile
	}
	return nil
}

// defaultProfile is containerd's, without the architectures that do not occur here. The first is the native one.
func (b *builder) defaultProfile() *specs.LinuxSeccomp {
	profile := seccomp.DefaultProfile(b.spec)
	if b.in.Policy.NativeSyscallsOnly && len(profile.Architectures) > 1 {
		profile.Architectures = profile.Architectures[:1]
		return profile
	}
	profile.Architectures = slices.DeleteFunc(profile.Architectures, func(a specs.Arch) bool {
		return slices.Contains(b.in.Host.NoForeign, a)
	})
	return profile
}

func (b *builder) readProfile(file string) (*specs.LinuxSeccomp, error) {
	raw, err := b.in.System.ReadFile(file)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("profile %s: no such file: %w", file, errdefs.ErrNotFound)
	}
	if err != nil {
		return nil, fmt.Errorf("profile %s: %w", file, err)
	}
	profile := &specs.LinuxSeccomp{}
	if err := json.Unmarshal(raw, profile); err != nil {
		return nil, fmt.Errorf("profile %s: %w: %w", file, err, errdefs.ErrInvalidArgument)
	}
	if profile.DefaultAction == "" {
		return nil, fmt.Errorf("profile %s: no defaultAction: %w", file, errdefs.ErrInvalidArgument)
	}
	return profile, nil
}

func (b *builder) appArmor() error {
	b.spec.Process.ApparmorProfile = ""
	p := b.appArmorProfile()
	if !b.in.Host.AppArmor || p.GetProfileType() == runtimeapi.SecurityProfile_Unconfined {
		return nil
	}
	name := strings.TrimPrefix(p.GetLocalhostRef(), "localhost/")
	if p.GetProfileType() == runtimeapi.SecurityProfile_RuntimeDefault {
		if b.security().GetPrivileged() {
			return nil
		}
		name = AppArmorDefault
	}
	return b.useAppArmor(name)
}
