// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"context"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Pods are made, used and ended by several callers at once that repeat
// themselves, give up early and do not wait for each other. Whatever each call
// answers, removing the sandboxes leaves nothing (newRig checks).
func TestRootStorm(t *testing.T) {
	r := newRig(t)
	var wg sync.WaitGroup
	for i := range 6 {
		wg.Go(func() { r.storm(fmt.Sprintf("s%d", i), rand.New(rand.NewPCG(uint64(i), 7))) }) //nolint:gosec // repeatable on purpose
	}
	wg.Wait()
}

// storm is the life of one pod under three callers.
func (r *rig) storm(name string, rnd *rand.Rand) {
	pod := r.pod(name)
	if rnd.IntN(2) == 0 {
		pod.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_POD
	}
	var wg sync.WaitGroup
	for caller := range 3 {
		seed := rnd.Uint64()
		wg.Go(func() {
			rnd := rand.New(rand.NewPCG(seed, uint64(caller))) //nolint:gosec // repeatable on purpose
			for range 6 {
				r.gust(pod, rnd)
			}
		})
	}
	wg.Wait()
}

// gust is a few calls about one pod, some of which give up early.
func (r *rig) gust(pod *runtimeapi.PodSandboxConfig, rnd *rand.Rand) {
	call := func(fn func(ctx context.Context) error) {
		limit := time.Minute
		if rnd.IntN(4) == 0 {
			limit = time.Duration(rnd.IntN(20)) * time.Millisecond
		}
		ctx, cancel := context.WithTimeout(r.t.Context(), limit)
		defer cancel()
		switch err := fn(ctx); status.Code(err) {
		case codes.Internal, codes.Unavailable, codes.Unimplemented:
			r.t.Errorf("%v", err)
		case codes.DeadlineExceeded:
			if limit == time.Minute {
				r.t.Errorf("stuck: %v", err)
			}
		default: // the others are fair: the pod is fought over
		}
	}
	var sb, id string
	call(func(ctx context.Context) error {
		resp, err := r.rt.RunPodSandbox(ctx, &runtimeapi.RunPodSandboxRequest{Config: pod})
		sb = resp.GetPodSandboxId()
		return err
	})
	cfg := r.shell("c", "sleep 1000")
	cfg.Metadata.Attempt = uint32(rnd.IntN(3)) //nolint:gosec // small
	call(func(ctx context.Context) error {
		resp, err := r.rt.CreateContainer(ctx, &runtimeapi.CreateContainerRequest{PodSandboxId: sb, Config: cfg, SandboxConfig: pod})
		id = resp.GetContainerId()
		return err
	})
	verbs := []func(ctx context.Context) error{
		func(ctx context.Context) error {
			_, err := r.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
			return err
		},
		func(ctx context.Context) error {
			_, err := r.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: id, Cmd: []string{"true"}, Timeout: 20})
			return err
		},
		func(ctx context.Context) error {
			_, err := r.rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: id, Timeout: int64(rnd.IntN(2))})
			return err
		},
		func(ctx context.Context) error {
			_, err := r.rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
			return err
		},
		func(ctx context.Context) error {
			_, err := r.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: sb})
			return err
		},
		func(ctx context.Context) error {
			_, err := r.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: sb})
			return err
		},
	}
	for range 4 {
		call(verbs[rnd.IntN(len(verbs))])
	}
}
