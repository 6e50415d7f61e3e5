// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"fmt"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/container"
	"github.com/nodeagent/nodeagent/cri/store"
)

// CreateContainer makes a container in a ready sandbox.
func (s *Server) CreateContainer(ctx context.Context, r *runtimeapi.CreateContainerRequest) (*runtimeapi.CreateContainerResponse, error) {
	id, err := s.containers.Create(ctx, r.GetPodSandboxId(), r.GetConfig())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.CreateContainerResponse{ContainerId: id}, nil
}

// StartContainer runs a created container.
func (s *Server) StartContainer(ctx context.Context, r *runtimeapi.StartContainerRequest) (*runtimeapi.StartContainerResponse, error) {
	if err := s.containers.Start(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.StartContainerResponse{}, nil
}

// StopContainer ends a container within its grace.
func (s *Server) StopContainer(ctx context.Context, r *runtimeapi.StopContainerRequest) (*runtimeapi.StopContainerResponse, error) {
	if err := s.containers.Stop(ctx, r.GetContainerId(), container.Grace(r.GetTimeout())); err != nil {
		return nil, err
	}
	return &runtimeapi.StopContainerResponse{}, nil
}

// RemoveContainer ends and forgets a container.
func (s *Server) RemoveContainer(ctx context.Context, r *runtimeapi.RemoveContainerRequest) (*runtimeapi.RemoveContainerResponse, error) {
	if err := s.containers.Remove(ctx, r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.RemoveContainerResponse{}, nil
}

// ListContainers answers from memory.
func (s *Server) ListContainers(_ context.Context, r *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: s.listContainers(r.GetFilter())}, nil
}

// StreamContainers is ListContainers in pieces.
func (s *Server) StreamContainers(r *runtimeapi.StreamContainersRequest, out grpc.ServerStreamingServer[runtimeapi.StreamContainersResponse]) error {
	for chunk := range slices.Chunk(s.listContainers(r.GetFilter()), streamChunk) {
		if err := out.Send(&runtimeapi.StreamContainersResponse{Containers: chunk}); err != nil {
			return err
		}
	}
	return nil
}

// findContainer finds a container that the CRI may show.
func (s *Server) findContainer(ref string) (*store.Container, error) {
	c, err := s.store.Containers.Find(ref)
	if err == nil && !visibleContainer(c) {
		err = fmt.Errorf("container %q: %w", ref, errdefs.ErrNotFound)
	}
	return c, err
}

// ContainerStatus answers from memory.
func (s *Server) ContainerStatus(ctx context.Context, r *runtimeapi.ContainerStatusRequest) (*runtimeapi.ContainerStatusResponse, error) {
	c, err := s.findContainer(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ContainerStatusResponse{Status: containerStatus(c)}
	if r.GetVerbose() {
		info := map[string]any{
			"sandboxID": c.SandboxID, "pid": c.PID, "snapshotter": c.Snapshotter, "snapshotKey": c.SnapshotKey,
			"cgroupsPath": c.CgroupsPath, "config": c.Config.M,
		}
		if sp, err := s.deps.Containerd.Spec(ctx, c.ID); err == nil {
			info["runtimeSpec"] = sp
		}
		resp.Info, err = verbose(info)
	}
	return resp, err
}

// UpdateContainerResources changes a container's limits, of a running one at once.
func (s *Server) UpdateContainerResources(ctx context.Context, r *runtimeapi.UpdateContainerResourcesRequest) (*runtimeapi.UpdateContainerResourcesResponse, error) {
	if err := s.containers.Update(ctx, r.GetContainerId(), r.GetLinux(), r.GetAnnotations()); err != nil {
		return nil, err
	}
	return &runtimeapi.UpdateContainerResourcesResponse{}, nil
}

// ReopenContainerLog opens the log file anew after the kubelet rotated it.
func (s *Server) ReopenContainerLog(_ context.Context, r *runtimeapi.ReopenContainerLogRequest) (*runtimeapi.ReopenContainerLogResponse, error) {
	if err := s.containers.ReopenLog(r.GetContainerId()); err != nil {
		return nil, err
	}
	return &runtimeapi.ReopenContainerLogResponse{}, nil
}

// ExecSync runs a command and returns its output.
func (s *Server) ExecSync(ctx context.Context, r *runtimeapi.ExecSyncRequest) (*runtimeapi.ExecSyncResponse, error) {
	if len(r.GetCmd()) == 0 {
		return nil, fmt.Errorf("cmd: is empty: %w", errdefs.ErrInvalidArgument)
	}
	if r.GetTimeout() < 0 {
		return nil, fmt.Errorf("timeout: %d is negative: %w", r.GetTimeout(), errdefs.ErrInvalidArgument)
	}
	return s.streams.ExecSync(ctx, r.GetContainerId(), r.GetCmd(), time.Duration(r.GetTimeout())*time.Second)
}

// Exec prepares a URL for an interactive command.
func (s *Server) Exec(_ context.Context, r *runtimeapi.ExecRequest) (*runtimeapi.ExecResponse, error) {
	if len(r.GetCmd()) == 0 {
		return nil, fmt.Errorf("cmd: is empty: %w", errdefs.ErrInvalidArgument)
	}
	c, err := s.containers.Running(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	r.ContainerId = c.ID
	return s.streams.GetExec(r)
}

// Attach prepares a URL for a container's own streams.
func (s *Server) Attach(_ context.Context, r *runtimeapi.AttachRequest) (*runtimeapi.AttachResponse, error) {
	c, err := s.containers.Running(r.GetContainerId())
	if err != nil {
		return nil, err
	}
	r.ContainerId = c.ID
	r.Tty = c.Config.M.GetTty()
	return s.streams.GetAttach(r)
}

// PortForward prepares a URL for connections to a pod's ports.
func (s *Server) PortForward(_ context.Context, r *runtimeapi.PortForwardRequest) (*runtimeapi.PortForwardResponse, error) {
	sb, err := s.findSandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if sb.State != store.SandboxReady {
		return nil, fmt.Errorf("sandbox %s is not ready: %w", sb.ID, errdefs.ErrFailedPrecondition)
	}
	r.PodSandboxId = sb.ID
	return s.streams.GetPortForward(r)
}
