// SPDX-License-Identifier: Apache-2.0

package spec

import (
	"fmt"
	"path"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// mounts resolves the planned bind mounts on the host: all sources first, then propagation, and only then labels are changed.
func (b *builder) mounts() error {
	for i := range b.plan {
		if err := b.resolve(&b.plan[i]); err != nil {
			return err
		}
	}
	for _, p := range b.plan {
		propagation, err := b.propagation(p)
		if err != nil {
			return err
		}
		b.spec.Mounts = append(b.spec.Mounts, specs.Mount{
			Destination: p.GetContainerPath(), Type: "bind", Source: p.source, Options: bindOptions(p, propagation),
			UIDMappings: idMappings(p.GetUidMappings()), GIDMappings: idMappings(p.GetGidMappings()),
		})
	}
	if !b.in.Host.SELinux {
		return nil
	}
	for _, p := range b.plan {
		if !p.GetSelinuxRelabel() {
			continue
		}
		if err := b.in.System.Relabel(p.source, b.out.Labels.Mount); err != nil {
			return fmt.Errorf("%s: relabel %s: %w", p.field, p.source, err)
		}
	}
	return nil
}

func (b *builder) resolve(p *bind) error {
	create := p.create && !slices.ContainsFunc(b.in.Policy.RejectMissingHostPaths, func(prefix string) bool {
		return within(p.source, prefix)
	})
	source, err := b.in.System.Source(p.source, create)
	if err != nil {
		return fmt.Errorf("%s: %w", p.field, err)
	}
	p.source = source
	return nil
}

// within says whether p is prefix or lies below it.
func within(p, prefix string) bool {
	p, prefix = path.Clean(p), path.Clean(prefix)
	return p == prefix || strings.HasPrefix(p, strings.TrimSuffix(prefix, "/")+"/")
}

// propagation is the mount's option, after checking that the source can provide it; it widens the container's own root to
// match, because a root that is private would cut the mounts below it off.
func (b *builder) propagation(p bind) (string, error) {
	want := p.GetPropagation()
	if want == runtimeapi.MountPropagation_PROPAGATION_PRIVATE {
		return "rprivate", nil
	}
	have, point, err := b.in.System.Propagation(p.source)
	if err != nil {
		return "", fmt.Errorf("%s.propagation: %w", p.field, err)
	}
	if want == runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL {
		if have != Shared {
			return "", fmt.Errorf("%s.propagation: %s is on mount %s, which is not shared: %w", p.field, p.source, point, errdefs.ErrFailedPrecondition)
		}
		b.spec.Linux.RootfsPropagation = "rshared"
		return "rshared", nil
	}
	if have == Private {
		return "", fmt.Errorf("%s.propagation: %s is on mount %s, which is neither shared nor a slave: %w", p.field, p.source, point, errdefs.ErrFailedPrecondition)
	}
	if b.spec.Linux.RootfsPropagation != "rshared" {
		b.spec.Linux.RootfsPropagation = "rslave"
	}
	return "rslave", nil
}

func bindOptions(p bind, propagation string) []string {
	access := "rw"
	switch {
	case p.GetRecursiveReadOnly():
		access = "rro"
	case p.GetReadonly() || p.GetImage().GetImage() != "":
		access = "ro"
	}
	return append([]string{"rbind", propagation, access}, p.GetMountOptions()...)
}

func idMappings(in []*runtimeapi.IDMapping) []specs.LinuxIDMapping {
	var out []specs.LinuxIDMapping
	for _, m := range in {
		out = append(out, specs.LinuxIDMapping{ContainerID: m.GetContainerId(), HostID: m.GetHostId(), Size: m.GetLength()})
	}
	return out
}
