// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"cmp"
	"slices"

	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/spec"
	"github.com/nodeagent/nodeagent/cri/store"
)

// Records to messages. Messages share maps and parts with the records, which
// are never changed; gRPC only reads them.

// visible sandboxes are those that the CRI may show; one under construction
// has no id yet as far as the kubelet knows.
func visibleSandbox(s *store.Sandbox) bool { return s.State != store.SandboxCreating }

func visibleContainer(c *store.Container) bool { return c.State != store.ContainerCreating }

func sandboxItem(s *store.Sandbox) *runtimeapi.PodSandbox {
	cfg := s.Config.M
	return &runtimeapi.PodSandbox{
		Id: s.ID, Metadata: cfg.GetMetadata(), State: s.CRIState(), CreatedAt: s.CreatedAt,
		Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(), RuntimeHandler: s.Handler,
	}
}

func sandboxStatus(s *store.Sandbox) *runtimeapi.PodSandboxStatus {
	cfg := s.Config.M
	st := &runtimeapi.PodSandboxStatus{
		Id: s.ID, Metadata: cfg.GetMetadata(), State: s.CRIState(), CreatedAt: s.CreatedAt,
		Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(), RuntimeHandler: s.Handler,
		Network: &runtimeapi.PodSandboxNetworkStatus{},
		Linux:   &runtimeapi.LinuxPodSandboxStatus{Namespaces: &runtimeapi.Namespace{Options: s.NamespaceOptions()}},
	}
	if s.State != store.SandboxReady {
		return st
	}
	for i, a := range s.Addrs {
		if i == 0 {
			st.Network.Ip = a.String()
			continue
		}
		st.Network.AdditionalIps = append(st.Network.AdditionalIps, &runtimeapi.PodIP{Ip: a.String()})
	}
	return st
}

func containerItem(c *store.Container) *runtimeapi.Container {
	cfg := c.Config.M
	return &runtimeapi.Container{
		Id: c.ID, PodSandboxId: c.SandboxID, Metadata: cfg.GetMetadata(), Image: cfg.GetImage(),
		ImageRef: c.ImageRef, ImageId: c.ImageID, State: c.CRIState(), CreatedAt: c.CreatedAt,
		Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(),
	}
}

func containerStatus(c *store.Container) *runtimeapi.ContainerStatus {
	cfg := c.Config.M
	st := &runtimeapi.ContainerStatus{
		Id: c.ID, Metadata: cfg.GetMetadata(), State: c.CRIState(), CreatedAt: c.CreatedAt,
		StartedAt: c.StartedAt, FinishedAt: c.FinishedAt, ExitCode: c.ExitCode,
		Image: imageSpec(c), ImageRef: c.ImageRef, ImageId: c.ImageID, Reason: c.Reason, Message: c.Message,
		Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(), Mounts: cfg.GetMounts(), LogPath: c.LogPath,
		User: c.User.M, StopSignal: spec.Signal(c.StopSignal),
	}
	if len(c.Mounts) > 0 {
		st.Mounts = make([]*runtimeapi.Mount, 0, len(c.Mounts))
		for _, m := range c.Mounts {
			st.Mounts = append(st.Mounts, m.M)
		}
	}
	if c.Resources.M != nil {
		st.Resources = &runtimeapi.ContainerResources{Linux: c.Resources.M}
	}
	return st
}

// imageSpec is the image as it was asked for, under the name that people know.
func imageSpec(c *store.Container) *runtimeapi.ImageSpec {
	asked := c.Config.M.GetImage()
	if c.ImageName == "" || asked == nil {
		return asked
	}
	named, ok := proto.Clone(asked).(*runtimeapi.ImageSpec)
	if !ok {
		return asked
	}
	named.Image = c.ImageName
	return named
}

// matches tells whether labels has all of want.
func matches(labels, want map[string]string) bool {
	for k, v := range want {
		if got, ok := labels[k]; !ok || got != v {
			return false
		}
	}
	return true
}

func (s *Server) listSandboxes(f *runtimeapi.PodSandboxFilter) []*runtimeapi.PodSandbox {
	id, ok := s.sandboxRef(f.GetId())
	if !ok {
		return nil
	}
	recs := s.store.Sandboxes.Select(func(r *store.Sandbox) bool {
		return visibleSandbox(r) && (id == "" || r.ID == id) &&
			(f.GetState() == nil || f.GetState().GetState() == r.CRIState()) &&
			matches(r.Config.M.GetLabels(), f.GetLabelSelector())
	})
	slices.SortFunc(recs, func(a, b *store.Sandbox) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
	out := make([]*runtimeapi.PodSandbox, 0, len(recs))
	for _, r := range recs {
		out = append(out, sandboxItem(r))
	}
	return out
}

func (s *Server) listContainers(f *runtimeapi.ContainerFilter) []*runtimeapi.Container {
	sandbox, ok := s.sandboxRef(f.GetPodSandboxId())
	if !ok {
		return nil
	}
	id, ok := s.containerRef(f.GetId())
	if !ok {
		return nil
	}
	recs := s.store.Containers.Select(func(r *store.Container) bool {
		return visibleContainer(r) && (id == "" || r.ID == id) && (sandbox == "" || r.SandboxID == sandbox) &&
			(f.GetState() == nil || f.GetState().GetState() == r.CRIState()) &&
			matches(r.Config.M.GetLabels(), f.GetLabelSelector())
	})
	slices.SortFunc(recs, func(a, b *store.Container) int { return cmp.Compare(b.CreatedAt, a.CreatedAt) })
	out := make([]*runtimeapi.Container, 0, len(recs))
	for _, r := range recs {
		out = append(out, containerItem(r))
	}
	return out
}

// sandboxRef completes an id of a filter; false when it names nothing.
func (s *Server) sandboxRef(ref string) (string, bool) {
	if ref == "" {
		return "", true
	}
	r, err := s.store.Sandboxes.Find(ref)
	if err != nil {
		return "", false
	}
	return r.ID, true
}

func (s *Server) containerRef(ref string) (string, bool) {
	if ref == "" {
		return "", true
	}
	r, err := s.store.Containers.Find(ref)
	if err != nil {
		return "", false
	}
	return r.ID, true
}
