// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"context"
	"fmt"
	"time"

	"github.com/containerd/errdefs"
	"github.com/containerd/nri/pkg/adaptation"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/spec"
	"github.com/nodeagent/nodeagent/cri/store"
)

// SandboxEvent is a moment in the life of a sandbox.
type SandboxEvent int

// Moments of a sandbox.
const (
	// SandboxRun comes before the sandbox is ready; an error keeps it from becoming so.
	SandboxRun SandboxEvent = iota
	// SandboxReady comes when it is; plugins are not told.
	SandboxReady
	// SandboxStopped comes when its containers have ended and before its network does.
	SandboxStopped
	// SandboxRemoved comes when its record has gone, or its making was undone.
	SandboxRemoved
	// SandboxResized comes after the kubelet has resized it.
	SandboxResized
)

// ContainerEvent is a moment in the life of a container.
type ContainerEvent int

// Moments of a container.
const (
	// ContainerCreated comes when it is committed.
	ContainerCreated ContainerEvent = iota
	// ContainerUndone comes when its making failed after Adjust.
	ContainerUndone
	// ContainerStart comes before its start; an error keeps it from starting.
	ContainerStart
	// ContainerStarted, ContainerResized, ContainerStopped and ContainerRemoved come after the fact.
	ContainerStarted
	ContainerResized
	ContainerStopped
	ContainerRemoved
)

// deliver calls fn while no plugin is being synchronized, if there are plugins.
// What fn tells is either known to a synchronization or comes after it. fn may
// wait for plugins and for containerd, and for no lock: its holder may wait for a
// synchronization, which waits for fn.
func (a *Adapter) deliver(landing func(f *flight), fn func() error) error {
	block := a.nri.BlockPluginSync()
	defer block.Unblock()
	if landing != nil {
		a.change(landing)
	}
	if a.plugins.Load() == 0 {
		return nil
	}
	return fn()
}

// TellSandbox tells plugins of a moment in the life of a sandbox.
func (a *Adapter) TellSandbox(ctx context.Context, e SandboxEvent, sb *store.Sandbox) error {
	if a == nil {
		return nil
	}
	pod := podMessage(sb)
	gone := func(f *flight) { delete(f.pods, sb.ID) }
	switch e {
	case SandboxRun:
		return refused(a.deliver(func(f *flight) { f.pods[sb.ID] = pod }, func() error {
			return a.nri.RunPodSandbox(ctx, &adaptation.RunPodSandboxRequest{Pod: pod})
		}))
	case SandboxReady:
		a.change(gone)
		return nil
	case SandboxStopped:
		return a.deliver(nil, func() error {
			return a.nri.StopPodSandbox(ctx, &adaptation.StopPodSandboxRequest{Pod: pod})
		})
	case SandboxRemoved:
		return a.deliver(gone, func() error {
			return a.nri.RemovePodSandbox(ctx, &adaptation.RemovePodSandboxRequest{Pod: pod})
		})
	case SandboxResized:
		return a.deliver(nil, func() error {
			return a.nri.PostUpdatePodSandbox(ctx, &adaptation.PostUpdatePodSandboxRequest{Pod: pod})
		})
	}
	return nil
}

// ResizeSandbox tells plugins that a sandbox is about to get other resources; an error refuses them.
func (a *Adapter) ResizeSandbox(ctx context.Context, sb *store.Sandbox, overhead, r *runtimeapi.LinuxContainerResources) error {
	if a == nil {
		return nil
	}
	return refused(a.deliver(nil, func() error {
		_, err := a.nri.UpdatePodSandbox(ctx, &adaptation.UpdatePodSandboxRequest{
			Pod: podMessage(sb), OverheadLinuxResources: fromCRI(overhead), LinuxResources: fromCRI(r),
		})
		return err
	}))
}

// Adjust lets plugins change the specification of a container that is being
// made, and other containers on its behalf.
func (a *Adapter) Adjust(ctx context.Context, sb *store.Sandbox, c *store.Container, s *specs.Spec) error {
	if a == nil {
		return nil
	}
	var resp *adaptation.CreateContainerResponse
	// In flight from before the first plugin hears of it: a failure half way is undone with all.
	before := containerMessage(c, s)
	err := a.deliver(func(f *flight) { f.containers[c.ID] = before }, func() (err error) {
		resp, err = a.nri.CreateContainer(ctx, &adaptation.CreateContainerRequest{Pod: podMessage(sb), Container: containerMessage(c, s)})
		if err != nil {
			return err
		}
		if err := adjust(s, resp.GetAdjust(), a.deps.CDI); err != nil {
			return err
		}
		s.Version = spec.Version(s)
		after := containerMessage(c, s)
		a.change(func(f *flight) { f.containers[c.ID] = after })
		return nil
	})
	if err != nil {
		return refused(err)
	}
	a.evict(ctx, resp.GetEvict())
	a.apply(ctx, resp.GetUpdate())
	return nil
}

// Resize lets plugins change an update of a container's resources, and other
// containers on its behalf. It returns what to set.
func (a *Adapter) Resize(ctx context.Context, sb *store.Sandbox, c *store.Container, r *runtimeapi.LinuxContainerResources) (*runtimeapi.LinuxContainerResources, error) {
	if a == nil {
		return r, nil
	}
	var resp *adaptation.UpdateContainerResponse
	err := a.deliver(nil, func() (err error) {
		resp, err = a.nri.UpdateContainer(ctx, &adaptation.UpdateContainerRequest{
			Pod: podMessage(sb), Container: containerMessage(c, a.specOf(ctx, c.ID)), LinuxResources: fromCRI(r),
		})
		return err
	})
	if err != nil {
		return nil, refused(err)
	}
	a.evict(ctx, resp.GetEvict())
	out := r
	var others []*adaptation.ContainerUpdate
	for _, u := range resp.GetUpdate() {
		if u.GetContainerId() == c.ID {
			out = overlaid(r, toCRI(u.GetLinux().GetResources()))
			continue
		}
		others = append(others, u)
	}
	a.apply(ctx, others)
	return out, nil
}

// Tell tells plugins of a moment in the life of a container.
func (a *Adapter) Tell(ctx context.Context, e ContainerEvent, sb *store.Sandbox, c *store.Container) error {
	if a == nil {
		return nil
	}
	if e == ContainerUndone && !a.landed(c.ID) {
		return nil // no plugin has heard of it
	}
	landing := func(f *flight) {
		delete(f.containers, c.ID)
		f.starting[c.ID] = true
		if e != ContainerStart {
			delete(f.starting, c.ID)
		}
	}
	var updates []*adaptation.ContainerUpdate
	err := a.deliver(landing, func() (err error) {
		updates, err = a.tell(ctx, e, podMessage(sb), containerMessage(c, a.specOf(ctx, c.ID)))
		return err
	})
	a.apply(ctx, updates)
	if e == ContainerStart {
		err = refused(err)
	}
	return err
}

func (a *Adapter) tell(ctx context.Context, e ContainerEvent, pod *adaptation.PodSandbox, c *adaptation.Container) ([]*adaptation.ContainerUpdate, error) {
	switch e {
	case ContainerCreated:
		return nil, a.nri.PostCreateContainer(ctx, &adaptation.PostCreateContainerRequest{Pod: pod, Container: c})
	case ContainerStart:
		c.State = adaptation.ContainerState_CONTAINER_CREATED
		return nil, a.nri.StartContainer(ctx, &adaptation.StartContainerRequest{Pod: pod, Container: c})
	case ContainerStarted:
		return nil, a.nri.PostStartContainer(ctx, &adaptation.PostStartContainerRequest{Pod: pod, Container: c})
	case ContainerResized:
		return nil, a.nri.PostUpdateContainer(ctx, &adaptation.PostUpdateContainerRequest{Pod: pod, Container: c})
	case ContainerStopped:
		resp, err := a.nri.StopContainer(ctx, &adaptation.StopContainerRequest{Pod: pod, Container: c})
		return resp.GetUpdate(), err
	case ContainerRemoved, ContainerUndone:
		var updates []*adaptation.ContainerUpdate
		if c.State == adaptation.ContainerState_CONTAINER_CREATED { // plugins free what they gave at the stop
			resp, err := a.nri.StopContainer(ctx, &adaptation.StopContainerRequest{Pod: pod, Container: c})
			if err != nil {
				a.deps.Log.WarnContext(ctx, "plugin failed to stop a container that never ran", "container", c.Id, "err", err)
			}
			updates = resp.GetUpdate()
		}
		return updates, a.nri.RemoveContainer(ctx, &adaptation.RemoveContainerRequest{Pod: pod, Container: c})
	}
	return nil, nil
}

// specOf is the container's specification as far as it can still be read.
func (a *Adapter) specOf(ctx context.Context, id string) *specs.Spec {
	s, err := a.deps.Runtime.Spec(ctx, id)
	if err != nil {
		return &specs.Spec{}
	}
	return s
}

// othersTimeout bounds a change of another container on behalf of one. Two
// changes that wait for each other's container end by it.
const othersTimeout = 5 * time.Second

// apply makes changes of containers that plugins asked for; those that fail are returned.
func (a *Adapter) apply(ctx context.Context, updates []*adaptation.ContainerUpdate) []*adaptation.ContainerUpdate {
	var failed []*adaptation.ContainerUpdate
	for _, u := range updates {
		r := toCRI(u.GetLinux().GetResources())
		if r == nil {
			continue
		}
		err := bounded(ctx, func(ctx context.Context) error { return a.deps.Runtime.Resize(ctx, u.GetContainerId(), r) })
		if errdefs.IsNotFound(err) || err == nil {
			continue
		}
		a.deps.Log.WarnContext(ctx, "change of a container that a plugin asked for failed", "container", u.GetContainerId(), "err", err)
		if !u.GetIgnoreFailure() {
			failed = append(failed, u)
		}
	}
	return failed
}

func (a *Adapter) evict(ctx context.Context, list []*adaptation.ContainerEviction) {
	for _, e := range list {
		a.deps.Log.InfoContext(ctx, "plugin evicts container", "container", e.GetContainerId(), "reason", e.GetReason())
		err := bounded(ctx, func(ctx context.Context) error { return a.deps.Runtime.Evict(ctx, e.GetContainerId()) })
		if err != nil {
			a.deps.Log.WarnContext(ctx, "container not evicted", "container", e.GetContainerId(), "err", err)
		}
	}
}

func bounded(ctx context.Context, fn func(ctx context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, othersTimeout)
	defer cancel()
	return fn(ctx)
}

// refused gives a plugin's refusal its kind.
func refused(err error) error {
	if err == nil {
		return nil
	}
	return fmt.Errorf("NRI plugins: %w: %w", err, errdefs.ErrFailedPrecondition)
}
