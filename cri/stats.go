// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"path"
	"slices"
	"strings"
	"time"

	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/stats"
	"github.com/nodeagent/nodeagent/cri/store"
)

// measured tells which container to measure.
func measured(c *store.Container) stats.Container {
	cfg := c.Config.M
	m := stats.Container{
		ID: c.ID, Cgroup: c.Cgroup, Snapshotter: c.Snapshotter, SnapshotKey: c.SnapshotKey,
		Image: c.ImageName, Pid: int(c.PID),
		Attributes: &runtimeapi.ContainerAttributes{
			Id: c.ID, Metadata: cfg.GetMetadata(), Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(),
		},
	}
	if c.StartedAt > 0 {
		m.Started = time.Unix(0, c.StartedAt)
	}
	if c.State != store.ContainerRunning {
		m.Cgroup = "" // it is gone
	}
	return m
}

// alive containers are those that the lists of statistics show.
func alive(c *store.Container) bool {
	return c.State == store.ContainerCreated || c.State == store.ContainerRunning
}

// measuredPod tells which sandbox to measure, with its containers.
func (s *Server) measuredPod(sb *store.Sandbox) stats.Pod {
	cfg := sb.Config.M
	p := stats.Pod{
		ID: sb.ID, Cgroup: podCgroup(cfg.GetLinux().GetCgroupParent()), NetNS: sb.Namespaces.Net,
		Created: time.Unix(0, sb.CreatedAt),
		Attributes: &runtimeapi.PodSandboxAttributes{
			Id: sb.ID, Metadata: cfg.GetMetadata(), Labels: cfg.GetLabels(), Annotations: cfg.GetAnnotations(),
		},
	}
	if sb.State != store.SandboxReady {
		p.NetNS = ""
	}
	for _, c := range s.store.ContainersOf(sb.ID) {
		if alive(c) {
			p.Containers = append(p.Containers, measured(c))
		}
	}
	return p
}

// podCgroup is the pod's cgroup below each hierarchy's root. Of a systemd slice
// the kubelet gives the whole path; a bare name is completed as systemd does,
// a-b.slice lies in a.slice.
func podCgroup(parent string) string {
	if parent == "" || strings.Contains(parent, "/") || !strings.HasSuffix(parent, ".slice") {
		return parent
	}
	name := strings.TrimSuffix(parent, ".slice")
	full := "/"
	for i, r := range name {
		if r == '-' {
			full = path.Join(full, name[:i]+".slice")
		}
	}
	return path.Join(full, parent)
}

// ContainerStats measures one container.
func (s *Server) ContainerStats(_ context.Context, r *runtimeapi.ContainerStatsRequest) (*runtimeapi.ContainerStatsResponse, error) {
	c, err := s.findContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ContainerStatsResponse{Stats: s.stats.Containers([]stats.Container{measured(c)})[0]}, nil
}

func (s *Server) containerStats(f *runtimeapi.ContainerStatsFilter) []*runtimeapi.ContainerStats {
	id, ok := s.containerRef(f.GetId())
	if !ok {
		return nil
	}
	sandbox, ok := s.sandboxRef(f.GetPodSandboxId())
	if !ok {
		return nil
	}
	recs := s.store.Containers.Select(func(c *store.Container) bool {
		return alive(c) && (id == "" || c.ID == id) && (sandbox == "" || c.SandboxID == sandbox) &&
			matches(c.Config.M.GetLabels(), f.GetLabelSelector())
	})
	list := make([]stats.Container, 0, len(recs))
	for _, c := range recs {
		list = append(list, measured(c))
	}
	return s.stats.Containers(list)
}

// ListContainerStats measures the containers that have not exited.
func (s *Server) ListContainerStats(_ context.Context, r *runtimeapi.ListContainerStatsRequest) (*runtimeapi.ListContainerStatsResponse, error) {
	return &runtimeapi.ListContainerStatsResponse{Stats: s.containerStats(r.GetFilter())}, nil
}

// StreamContainerStats is ListContainerStats in pieces.
func (s *Server) StreamContainerStats(r *runtimeapi.StreamContainerStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainerStatsResponse]) error {
	for chunk := range slices.Chunk(s.containerStats(r.GetFilter()), streamChunk) {
		if err := out.Send(&runtimeapi.StreamContainerStatsResponse{ContainerStats: chunk}); err != nil {
			return err
		}
	}
	return nil
}

// PodSandboxStats measures one pod.
func (s *Server) PodSandboxStats(_ context.Context, r *runtimeapi.PodSandboxStatsRequest) (*runtimeapi.PodSandboxStatsResponse, error) {
	sb, err := s.findSandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.PodSandboxStatsResponse{Stats: s.stats.Pods([]stats.Pod{s.measuredPod(sb)})[0]}, nil
}

// readyPods are the pods that the lists of statistics show.
func (s *Server) readyPods(f *runtimeapi.PodSandboxStatsFilter) []stats.Pod {
	id, ok := s.sandboxRef(f.GetId())
	if !ok {
		return nil
	}
	recs := s.store.Sandboxes.Select(func(sb *store.Sandbox) bool {
		return sb.State == store.SandboxReady && (id == "" || sb.ID == id) && matches(sb.Config.M.GetLabels(), f.GetLabelSelector())
	})
	list := make([]stats.Pod, 0, len(recs))
	for _, sb := range recs {
		list = append(list, s.measuredPod(sb))
	}
	return list
}

// ListPodSandboxStats measures the pods that are ready.
func (s *Server) ListPodSandboxStats(_ context.Context, r *runtimeapi.ListPodSandboxStatsRequest) (*runtimeapi.ListPodSandboxStatsResponse, error) {
	return &runtimeapi.ListPodSandboxStatsResponse{Stats: s.stats.Pods(s.readyPods(r.GetFilter()))}, nil
}

// StreamPodSandboxStats is ListPodSandboxStats in pieces.
func (s *Server) StreamPodSandboxStats(r *runtimeapi.StreamPodSandboxStatsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxStatsResponse]) error {
	for chunk := range slices.Chunk(s.stats.Pods(s.readyPods(r.GetFilter())), streamChunk) {
		if err := out.Send(&runtimeapi.StreamPodSandboxStatsResponse{PodSandboxStats: chunk}); err != nil {
			return err
		}
	}
	return nil
}

// ListMetricDescriptors names the metrics of ListPodSandboxMetrics.
func (s *Server) ListMetricDescriptors(context.Context, *runtimeapi.ListMetricDescriptorsRequest) (*runtimeapi.ListMetricDescriptorsResponse, error) {
	return &runtimeapi.ListMetricDescriptorsResponse{Descriptors: stats.Descriptors()}, nil
}

// ListPodSandboxMetrics measures all ready pods in cAdvisor's terms.
func (s *Server) ListPodSandboxMetrics(context.Context, *runtimeapi.ListPodSandboxMetricsRequest) (*runtimeapi.ListPodSandboxMetricsResponse, error) {
	return &runtimeapi.ListPodSandboxMetricsResponse{PodMetrics: s.stats.Metrics(s.readyPods(nil))}, nil
}

// StreamPodSandboxMetrics is ListPodSandboxMetrics pod by pod.
func (s *Server) StreamPodSandboxMetrics(_ *runtimeapi.StreamPodSandboxMetricsRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxMetricsResponse]) error {
	for chunk := range slices.Chunk(s.readyPods(nil), 16) { // a pod has hundreds of metrics
		if err := out.Send(&runtimeapi.StreamPodSandboxMetricsResponse{PodSandboxMetrics: s.stats.Metrics(chunk)}); err != nil {
			return err
		}
	}
	return nil
}
