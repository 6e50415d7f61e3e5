// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/nri"
	"github.com/nodeagent/nodeagent/cri/store"
)

// streamChunk is how many items one message of a streaming list carries.
const streamChunk = 256

// RunPodSandbox makes a pod's namespaces and network.
func (s *Server) RunPodSandbox(ctx context.Context, r *runtimeapi.RunPodSandboxRequest) (*runtimeapi.RunPodSandboxResponse, error) {
	id, err := s.sandboxes.Run(ctx, r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.RunPodSandboxResponse{PodSandboxId: id}, nil
}

// StopPodSandbox ends the pod's containers and network.
func (s *Server) StopPodSandbox(ctx context.Context, r *runtimeapi.StopPodSandboxRequest) (*runtimeapi.StopPodSandboxResponse, error) {
	if err := s.sandboxes.Stop(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimeapi.StopPodSandboxResponse{}, nil
}

// RemovePodSandbox stops and forgets the pod.
func (s *Server) RemovePodSandbox(ctx context.Context, r *runtimeapi.RemovePodSandboxRequest) (*runtimeapi.RemovePodSandboxResponse, error) {
	if err := s.sandboxes.Remove(ctx, r.GetPodSandboxId()); err != nil {
		return nil, err
	}
	return &runtimeapi.RemovePodSandboxResponse{}, nil
}

// findSandbox finds a sandbox that the CRI may show.
func (s *Server) findSandbox(ref string) (*store.Sandbox, error) {
	sb, err := s.store.Sandboxes.Find(ref)
	if err == nil && !visibleSandbox(sb) {
		err = fmt.Errorf("sandbox %q: %w", ref, errdefs.ErrNotFound)
	}
	return sb, err
}

// PodSandboxStatus answers from memory, with the pod's containers.
func (s *Server) PodSandboxStatus(ctx context.Context, r *runtimeapi.PodSandboxStatusRequest) (*runtimeapi.PodSandboxStatusResponse, error) {
	sb, err := s.findSandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	// Without a timestamp: a kubelet 1.37.2 with EventedPLEG that finds one does not list the pod's containers, takes
	// none to be of this sandbox, and runs its init containers for ever (kuberuntime, GetPodStatus).
	resp := &runtimeapi.PodSandboxStatusResponse{Status: sandboxStatus(sb), ContainersStatuses: s.statusesOf(sb.ID)}
	if r.GetVerbose() {
		more := map[string]any{
			"runtimeHandler": sb.Handler, "namespaces": sb.Namespaces, "addresses": sb.Addrs, "config": sb.Config.M,
		}
		if sb.Process && sb.Sandboxer != "" {
			if more["shim"], err = s.deps.Containerd.SandboxInfo(ctx, sb.ID); err != nil {
				return nil, err
			}
		}
		resp.Info, err = verbose(more)
	}
	return resp, err
}

func (s *Server) statusesOf(sandboxID string) []*runtimeapi.ContainerStatus {
	recs := slices.DeleteFunc(s.store.ContainersOf(sandboxID), func(c *store.Container) bool { return !visibleContainer(c) })
	out := make([]*runtimeapi.ContainerStatus, 0, len(recs))
	for _, c := range recs {
		out = append(out, containerStatus(c))
	}
	return out
}

// verbose renders a status's extra information, which is JSON under "info".
func verbose(v map[string]any) (map[string]string, error) {
	b, err := json.Marshal(v)
	if err != nil {
		return nil, fmt.Errorf("render verbose information: %w", err)
	}
	return map[string]string{"info": string(b)}, nil
}

// ListPodSandbox answers from memory.
func (s *Server) ListPodSandbox(_ context.Context, r *runtimeapi.ListPodSandboxRequest) (*runtimeapi.ListPodSandboxResponse, error) {
	return &runtimeapi.ListPodSandboxResponse{Items: s.listSandboxes(r.GetFilter())}, nil
}

// StreamPodSandboxes is ListPodSandbox in pieces.
func (s *Server) StreamPodSandboxes(r *runtimeapi.StreamPodSandboxesRequest, out grpc.ServerStreamingServer[runtimeapi.StreamPodSandboxesResponse]) error {
	for chunk := range slices.Chunk(s.listSandboxes(r.GetFilter()), streamChunk) {
		if err := out.Send(&runtimeapi.StreamPodSandboxesResponse{PodSandboxes: chunk}); err != nil {
			return err
		}
	}
	return nil
}

// UpdatePodSandboxResources notes the pod's new size; the kubelet has resized
// the pod's cgroup itself.
func (s *Server) UpdatePodSandboxResources(ctx context.Context, r *runtimeapi.UpdatePodSandboxResourcesRequest) (*runtimeapi.UpdatePodSandboxResourcesResponse, error) {
	sb, err := s.findSandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if err := s.plugins.ResizeSandbox(ctx, sb, r.GetOverhead(), r.GetResources()); err != nil {
		return nil, err
	}
	sb, err = s.store.Sandboxes.Update(sb.ID, func(sb *store.Sandbox) error {
		sb.Overhead.M, sb.Resources.M = r.GetOverhead(), r.GetResources()
		return nil
	})
	if err != nil {
		return nil, err
	}
	if err := s.plugins.TellSandbox(ctx, nri.SandboxResized, sb); err != nil {
		s.deps.Log.WarnContext(ctx, "plugin failed over the new size of a sandbox", "sandbox", sb.ID, "err", err)
	}
	return &runtimeapi.UpdatePodSandboxResourcesResponse{}, nil
}
