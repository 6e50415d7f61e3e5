// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"

	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/nri"
)

// pluginRuntime is what NRI plugins may do to containers.
type pluginRuntime struct{ s *Server }

var _ nri.Runtime = pluginRuntime{}

// Spec reads a container's specification.
func (r pluginRuntime) Spec(ctx context.Context, id string) (*specs.Spec, error) {
	return r.s.deps.Containerd.Spec(ctx, id)
}

// Resize changes a container's resources.
func (r pluginRuntime) Resize(ctx context.Context, id string, res *runtimeapi.LinuxContainerResources) error {
	return r.s.containers.Resize(ctx, id, res)
}

// Evict kills a container.
func (r pluginRuntime) Evict(ctx context.Context, id string) error {
	return r.s.containers.Evict(ctx, id)
}
