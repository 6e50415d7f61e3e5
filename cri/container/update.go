// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"fmt"
	"maps"
	"strconv"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/nri"
	"github.com/nodeagent/nodeagent/cri/spec"
	"github.com/nodeagent/nodeagent/cri/store"
)

// Update changes a container's resources: of a running one in its cgroup, of a
// created one in its specification. Fields that are zero stay as they are. When
// it fails nothing has changed.
func (m *Manager) Update(ctx context.Context, ref string, r *runtimeapi.LinuxContainerResources, annotations map[string]string) error {
	c, err := m.deps.Store.Containers.Find(ref)
	if err != nil {
		return err
	}
	return m.locked(ctx, c.ID, func(ctx context.Context, c *store.Container) error {
		return m.update(ctx, c, r, annotations)
	})
}

// Resize is Update on behalf of a plugin: no plugin is asked.
func (m *Manager) Resize(ctx context.Context, id string, r *runtimeapi.LinuxContainerResources) error {
	return m.locked(ctx, id, func(ctx context.Context, c *store.Container) error {
		return m.resize(ctx, c, r, nil)
	})
}

// Evict kills a container on behalf of a plugin and waits for its end.
func (m *Manager) Evict(ctx context.Context, id string) error { return m.stopID(ctx, id, 0) }

func (m *Manager) update(ctx context.Context, c *store.Container, r *runtimeapi.LinuxContainerResources, annotations map[string]string) error {
	if c.State == store.ContainerExited {
		return fmt.Errorf("container %s has exited: %w", c.ID, errdefs.ErrFailedPrecondition)
	}
	if r == nil {
		return nil
	}
	r, err := m.deps.Plugins.Resize(ctx, m.sandboxOf(c), c, r)
	if err != nil {
		return err
	}
	if err := m.resize(ctx, c, r, annotations); err != nil {
		return err
	}
	m.tell(ctx, nri.ContainerResized, c)
	return nil
}

// resize changes the container and its record.
func (m *Manager) resize(ctx context.Context, c *store.Container, r *runtimeapi.LinuxContainerResources, annotations map[string]string) error {
	if c.State == store.ContainerExited {
		return fmt.Errorf("container %s has exited: %w", c.ID, errdefs.ErrNotFound)
	}
	old, err := m.deps.Containerd.Spec(ctx, c.ID)
	if err != nil {
		return err
	}
	s, err := spec.UpdateResources(old, r, m.deps.Spec.Host, m.deps.Spec.Policy)
	if err != nil {
		return err
	}
	if c.State == store.ContainerRunning {
		if err := m.deps.Containerd.UpdateTask(ctx, c.ID, forTask(s.Linux.Resources, m.deps.Spec.Host.Cgroup), annotations); err != nil {
			return err
		}
	}
	if err := m.deps.Containerd.SetSpec(ctx, c.ID, s); err != nil {
		return err
	}
	_, err = m.deps.Store.Containers.Update(c.ID, func(c *store.Container) error {
		c.Resources.M = merged(c.Resources.M, r)
		return nil
	})
	return err
}

// forTask is what a task is updated with. On cgroup v2 a memory limit below what is in use is to be refused, for the kernel
// would rather kill a process; and huge pages are limited by the names of their files, for runc's update knows no field of theirs.
func forTask(r *specs.LinuxResources, cgroup spec.CgroupMode) *specs.LinuxResources {
	if r == nil {
		return nil
	}
	out := *r
	if r.Memory != nil && r.Memory.Limit != nil {
		mem, yes := *r.Memory, true
		mem.CheckBeforeUpdate = &yes
		out.Memory = &mem
	}
	if cgroup == spec.CgroupV2 && len(r.HugepageLimits) > 0 {
		out.Unified = map[string]string{}
		for _, h := range r.HugepageLimits {
			limit := strconv.FormatUint(h.Limit, 10)
			out.Unified["hugetlb."+h.Pagesize+".max"], out.Unified["hugetlb."+h.Pagesize+".rsvd.max"] = limit, limit
		}
		maps.Copy(out.Unified, r.Unified)
	}
	return &out
}

// merged is a with the fields of b that are set.
func merged(a, b *runtimeapi.LinuxContainerResources) *runtimeapi.LinuxContainerResources {
	out := &runtimeapi.LinuxContainerResources{}
	proto.Merge(out, a)
	if len(b.GetHugepageLimits()) > 0 {
		out.HugepageLimits = nil
	}
	proto.Merge(out, b)
	return out
}

// ReopenLog opens the log file of a running container anew.
func (m *Manager) ReopenLog(ref string) error {
	c, err := m.Running(ref)
	if err != nil {
		return err
	}
	l := m.life(c.ID)
	if l == nil {
		return fmt.Errorf("container %s has ended: %w", c.ID, errdefs.ErrFailedPrecondition)
	}
	return l.streams.Reopen()
}
