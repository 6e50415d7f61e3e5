// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/spec"
)

// Policy is what the node's administrator decides for all containers.
type Policy struct {
	// Rlimits are the limits of every container by the names of ulimit(1), "nofile": "1024:524288" or "65536";
	// empty: the OCI runtime's own.
	Rlimits map[string]string `yaml:"rlimits"`
	// Env are environment variables of containers in which neither the image nor the pod sets them.
	Env map[string]string `yaml:"env"`
	// Umask is the file mode mask of every container in octal, "0027"; empty: the OCI runtime's own.
	Umask string `yaml:"umask"`
	// Timezone is that of every container that brings none, "Europe/Berlin" of the node's /usr/share/zoneinfo, or Local for the node's;
	// empty: the image's.
	Timezone string `yaml:"timezone"`
	// ShmSize is the size in bytes of a /dev/shm that no pod brings; 0 means 64 MiB.
	ShmSize int64 `yaml:"shmSize"`
	// UnsetSeccomp is the profile of containers that name none: "" or unconfined, runtime/default, localhost/<file>.
	UnsetSeccomp string `yaml:"unsetSeccomp"`
	// NativeSyscallsOnly leaves 32-bit programs out of the default seccomp profile, which makes starts cheaper.
	NativeSyscallsOnly bool `yaml:"nativeSyscallsOnly"`
	// DeviceOwnershipFromSecurityContext gives device nodes to the container's user and group.
	DeviceOwnershipFromSecurityContext bool `yaml:"deviceOwnershipFromSecurityContext"`
	// RejectMissingHugetlb refuses limits of huge pages where the node cannot set them, instead of dropping them.
	RejectMissingHugetlb bool `yaml:"rejectMissingHugetlb"`
	// RejectMissingHostPaths are prefixes of host paths that are not made when they are absent; "/" is all.
	RejectMissingHostPaths []string `yaml:"rejectMissingHostPaths"`
}

// Validate reports all faults at once.
func (p Policy) Validate() error {
	_, err := p.policy()
	return err
}

// policy is what the spec room understands.
func (p Policy) policy() (spec.Policy, error) {
	out := spec.Policy{
		ShmSize: p.ShmSize, NativeSyscallsOnly: p.NativeSyscallsOnly,
		DeviceOwnershipFromSecurityContext: p.DeviceOwnershipFromSecurityContext,
		RejectMissingHugetlb:               p.RejectMissingHugetlb, RejectMissingHostPaths: p.RejectMissingHostPaths,
	}
	var errs []error
	if p.ShmSize < 0 {
		errs = append(errs, fmt.Errorf("shmSize: %d is negative", p.ShmSize))
	}
	for _, name := range slices.Sorted(maps.Keys(p.Env)) {
		if name == "" || strings.ContainsAny(name, "=\x00") || strings.ContainsRune(p.Env[name], 0) {
			errs = append(errs, fmt.Errorf("env[%s]: not a variable", name))
		}
		out.Env = append(out.Env, name+"="+p.Env[name])
	}
	if p.Umask != "" {
		mask, err := strconv.ParseUint(p.Umask, 8, 32)
		if err != nil || mask > 0o777 {
			errs = append(errs, fmt.Errorf("umask: %q is not an octal number up to 0777", p.Umask))
		}
		out.Umask = new(uint32(mask)) //nolint:gosec // at most 32 bits were read
	}
	var err error
	if out.Localtime, err = localtime(p.Timezone); err != nil {
		errs = append(errs, fmt.Errorf("timezone: %w", err))
	}
	for i, path := range p.RejectMissingHostPaths {
		if !filepath.IsAbs(path) {
			errs = append(errs, fmt.Errorf("rejectMissingHostPaths[%d]: %q is not an absolute path", i, path))
		}
	}
	for _, name := range slices.Sorted(maps.Keys(p.Rlimits)) {
		l, err := rlimit(name, p.Rlimits[name])
		if err != nil {
			errs = append(errs, fmt.Errorf("rlimits[%s]: %w", name, err))
			continue
		}
		out.Rlimits = append(out.Rlimits, l)
	}
	if out.UnsetSeccomp, err = seccomp(p.UnsetSeccomp); err != nil {
		errs = append(errs, fmt.Errorf("unsetSeccomp: %w", err))
	}
	return out, errors.Join(errs...)
}

// rlimit reads "soft:hard", or one number for both; -1 is unlimited.
func rlimit(name, text string) (specs.POSIXRlimit, error) {
	u, err := units.ParseUlimit(name + "=" + text)
	if err != nil {
		return specs.POSIXRlimit{}, err
	}
	return specs.POSIXRlimit{
		Type: "RLIMIT_" + strings.ToUpper(u.Name), Soft: uint64(u.Soft), Hard: uint64(u.Hard), //nolint:gosec // -1 is all ones, which is unlimited
	}, nil
}

// localtime is the node's file of a time zone.
func localtime(zone string) (string, error) {
	switch {
	case zone == "":
		return "", nil
	case zone == "Local":
		return "/etc/localtime", nil
	case !filepath.IsLocal(zone):
		return "", fmt.Errorf("%q is neither Local nor a name such as Europe/Berlin", zone)
	}
	return filepath.Join("/usr/share/zoneinfo", zone), nil
}

func seccomp(text string) (*runtimeapi.SecurityProfile, error) {
	file, local := strings.CutPrefix(text, "localhost/")
	switch {
	case text == "" || text == "unconfined":
		return nil, nil //nolint:nilnil // no profile is a valid answer
	case text == "runtime/default":
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_RuntimeDefault}, nil
	case local && filepath.IsAbs(file):
		return &runtimeapi.SecurityProfile{ProfileType: runtimeapi.SecurityProfile_Localhost, LocalhostRef: file}, nil
	}
	return nil, fmt.Errorf("%q is neither unconfined, runtime/default nor localhost/<absolute path>", text)
}
