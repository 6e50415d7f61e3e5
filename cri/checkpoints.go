// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/containerd/errdefs"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/store"
)

// CheckpointContainer writes a running container's state into a new archive.
func (s *Server) CheckpointContainer(ctx context.Context, r *runtimeapi.CheckpointContainerRequest) (*runtimeapi.CheckpointContainerResponse, error) {
	if r.GetTimeout() < 0 {
		return nil, fmt.Errorf("timeout: %d is negative: %w", r.GetTimeout(), errdefs.ErrInvalidArgument)
	}
	limit := s.cfg.Container.CallTimeout
	if r.GetTimeout() > 0 {
		limit = time.Duration(r.GetTimeout()) * time.Second
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	if err := s.containers.Checkpoint(ctx, r.GetContainerId(), r.GetLocation()); err != nil {
		return nil, err
	}
	return &runtimeapi.CheckpointContainerResponse{}, nil
}

// podFile describes a pod's checkpoint; the containers' archives are beside it.
const podFile = "pod.json"

// podCheckpoint is what podFile says.
type podCheckpoint struct {
	Version int `json:"version"`
	// Containers are the archives' file names by the containers' names.
	Containers map[string]string `json:"containers"`
}

// CheckpointPod writes the states of a pod's containers at one moment into a directory.
func (s *Server) CheckpointPod(ctx context.Context, r *runtimeapi.CheckpointPodRequest) (*runtimeapi.CheckpointPodResponse, error) {
	if err := podCheckpointCall(ctx, r.GetOptions(), "output_path", r.GetOutputPath()); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(r.GetOutputPath())
	if err != nil {
		return nil, fmt.Errorf("output_path: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if len(entries) > 0 {
		return nil, fmt.Errorf("output_path: %s is not empty: %w", r.GetOutputPath(), errdefs.ErrInvalidArgument)
	}
	sb, err := s.findSandbox(r.GetPodSandboxId())
	if err != nil {
		return nil, err
	}
	if sb.State != store.SandboxReady {
		return nil, fmt.Errorf("sandbox %s is not ready: %w", sb.ID, errdefs.ErrFailedPrecondition)
	}
	pod, targets, err := s.selected(sb, r.GetContainerIds(), r.GetOutputPath())
	if err != nil {
		return nil, err
	}
	if err := s.containers.CheckpointAll(ctx, targets); err != nil {
		return nil, err
	}
	b, err := json.Marshal(pod)
	if err == nil {
		err = os.WriteFile(filepath.Join(r.GetOutputPath(), podFile), b, 0o600)
	}
	if err != nil {
		errs := []error{fmt.Errorf("describe checkpoint: %w", err)}
		for location := range targets {
			errs = append(errs, os.Remove(location))
		}
		return nil, errors.Join(errs...)
	}
	return &runtimeapi.CheckpointPodResponse{}, nil
}

// podCheckpointCall checks what both calls have in common. No option is known.
func podCheckpointCall(ctx context.Context, options map[string]string, field, path string) error {
	var errs []error
	if _, ok := ctx.Deadline(); !ok {
		errs = append(errs, fmt.Errorf("the call has no deadline: %w", errdefs.ErrInvalidArgument))
	}
	for _, name := range slices.Sorted(maps.Keys(options)) {
		errs = append(errs, fmt.Errorf("options[%s]: is not known: %w", name, errdefs.ErrInvalidArgument))
	}
	if !filepath.IsAbs(path) {
		errs = append(errs, fmt.Errorf("%s: %q is not an absolute path: %w", field, path, errdefs.ErrInvalidArgument))
	}
	return errors.Join(errs...)
}

// selected finds the containers to checkpoint, and where to write each.
func (s *Server) selected(sb *store.Sandbox, ids []string, dir string) (podCheckpoint, map[string]*store.Container, error) {
	pod := podCheckpoint{Version: 1, Containers: map[string]string{}}
	targets := map[string]*store.Container{}
	if len(ids) == 0 {
		return pod, nil, fmt.Errorf("container_ids: is empty: %w", errdefs.ErrInvalidArgument)
	}
	for i, ref := range ids {
		c, err := s.containers.Running(ref)
		if err != nil {
			return pod, nil, fmt.Errorf("container_ids[%d]: %w", i, err)
		}
		if c.SandboxID != sb.ID {
			return pod, nil, fmt.Errorf("container_ids[%d]: container %s is in another sandbox: %w", i, c.ID, errdefs.ErrInvalidArgument)
		}
		name := c.Config.M.GetMetadata().GetName()
		if _, twice := pod.Containers[name]; twice {
			return pod, nil, fmt.Errorf("container_ids[%d]: container %s is named twice: %w", i, name, errdefs.ErrInvalidArgument)
		}
		pod.Containers[name] = fmt.Sprintf("container-%d.tar", i)
		targets[filepath.Join(dir, pod.Containers[name])] = c
	}
	return pod, targets, nil
}

// RestorePod makes a sandbox with containers that go on from a pod's checkpoint when they
// are started.
func (s *Server) RestorePod(ctx context.Context, r *runtimeapi.RestorePodRequest) (_ *runtimeapi.RestorePodResponse, retErr error) {
	if err := podCheckpointCall(ctx, r.GetOptions(), "checkpoint_path", r.GetCheckpointPath()); err != nil {
		return nil, err
	}
	archives, err := restoredArchives(r)
	if err != nil {
		return nil, err
	}
	id, err := s.sandboxes.Run(ctx, r.GetConfig(), r.GetRuntimeHandler())
	if err != nil {
		return nil, err
	}
	if len(s.store.ContainersOf(id)) > 0 {
		return nil, fmt.Errorf("sandbox %s of this pod has containers: %w", id, errdefs.ErrAlreadyExists)
	}
	defer func() {
		if retErr != nil {
			clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), s.cfg.Sandbox.CallTimeout)
			defer cancel()
			retErr = errors.Join(retErr, s.sandboxes.Remove(clean, id))
		}
	}()
	resp := &runtimeapi.RestorePodResponse{PodSandboxId: id}
	for _, c := range r.GetContainerConfigs() {
		name := c.GetMetadata().GetName()
		cid, err := s.containers.Restore(ctx, id, c, archives[name])
		if err != nil {
			return nil, fmt.Errorf("container %s: %w", name, err)
		}
		resp.RestoredContainers = append(resp.RestoredContainers, &runtimeapi.RestoredContainer{Name: name, ContainerId: cid})
	}
	return resp, nil
}

// restoredArchives finds the archive of each container that is asked for; they must be
// all that the checkpoint has.
func restoredArchives(r *runtimeapi.RestorePodRequest) (map[string]string, error) {
	var pod podCheckpoint
	path := filepath.Join(r.GetCheckpointPath(), podFile)
	b, err := os.ReadFile(path)
	if err == nil {
		err = json.Unmarshal(b, &pod)
	}
	if err != nil {
		return nil, fmt.Errorf("checkpoint_path: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	if pod.Version != 1 {
		return nil, fmt.Errorf("checkpoint_path: %s: version %d is not known: %w", path, pod.Version, errdefs.ErrFailedPrecondition)
	}
	out := map[string]string{}
	var errs []error
	for i, c := range r.GetContainerConfigs() {
		name := c.GetMetadata().GetName()
		file, ok := pod.Containers[name]
		switch {
		case !ok:
			errs = append(errs, fmt.Errorf("container_configs[%d]: %q is not in the checkpoint: %w", i, name, errdefs.ErrInvalidArgument))
		case !filepath.IsLocal(file):
			errs = append(errs, fmt.Errorf("checkpoint_path: %s: %q leaves the checkpoint: %w", path, file, errdefs.ErrInvalidArgument))
		case out[name] != "":
			errs = append(errs, fmt.Errorf("container_configs[%d]: %q is there twice: %w", i, name, errdefs.ErrInvalidArgument))
		}
		out[name] = filepath.Join(r.GetCheckpointPath(), file)
	}
	for _, name := range slices.Sorted(maps.Keys(pod.Containers)) {
		if out[name] == "" {
			errs = append(errs, fmt.Errorf("container_configs: %q of the checkpoint is missing: %w", name, errdefs.ErrInvalidArgument))
		}
	}
	return out, errors.Join(errs...)
}
