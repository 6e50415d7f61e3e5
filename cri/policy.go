// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"errors"
	"fmt"
	"maps"
	"path/filepath"
	"slices"
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
	var err error
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
