// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"fmt"

	"github.com/containerd/containerd/v2/pkg/blockio"
	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	"github.com/containerd/nri/pkg/runtime-tools/generate"
	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/nodeagent/nodeagent/cri/spec"
)

// adjust makes the changes that plugins agreed on.
func adjust(s *specs.Spec, changes *adaptation.ContainerAdjustment, cdi spec.CDI) error {
	if changes == nil {
		return nil
	}
	g := generate.SpecGenerator(&generator{s},
		generate.WithCDIDeviceInjector(func(s *specs.Spec, devices []string) error {
			if cdi == nil {
				return fmt.Errorf("CDI devices %v: this node has no CDI: %w", devices, errdefs.ErrFailedPrecondition)
			}
			_, err := cdi.InjectDevices(s, devices...)
			return err
		}),
		generate.WithBlockIOResolver(blockio.ClassNameToLinuxOCI),
		generate.WithRdtResolver(func(class string) (*specs.LinuxIntelRdt, error) {
			return &specs.LinuxIntelRdt{ClosID: class}, nil
		}),
	)
	return g.Adjust(changes)
}
