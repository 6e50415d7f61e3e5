// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"context"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// calls are the unary calls that the fuzzer makes, with an example of each.
// PullImage is not among them: it would ask registries of this world.
func (r *rig) calls(sandbox, container string) []fuzzCall {
	pod := r.pod("fuzz")
	cfg := r.shell("fuzz", "true")
	cfg.Image.Image = "absent.test/image:1" // containers that are made could reach the machine
	res := &runtimeapi.LinuxContainerResources{MemoryLimitInBytes: 1 << 26, Unified: map[string]string{"memory.high": "1"}}
	rt, img := "/runtime.v1.RuntimeService/", "/runtime.v1.ImageService/"
	return []fuzzCall{
		{rt + "RunPodSandbox", &runtimeapi.RunPodSandboxRequest{Config: pod, RuntimeHandler: "runc"}, &runtimeapi.RunPodSandboxResponse{}},
		{rt + "StopPodSandbox", &runtimeapi.StopPodSandboxRequest{PodSandboxId: "0"}, &runtimeapi.StopPodSandboxResponse{}},
		{rt + "RemovePodSandbox", &runtimeapi.RemovePodSandboxRequest{PodSandboxId: "1"}, &runtimeapi.RemovePodSandboxResponse{}},
		{rt + "PodSandboxStatus", &runtimeapi.PodSandboxStatusRequest{PodSandboxId: sandbox, Verbose: true}, &runtimeapi.PodSandboxStatusResponse{}},
		{rt + "ListPodSandbox", &runtimeapi.ListPodSandboxRequest{Filter: &runtimeapi.PodSandboxFilter{Id: sandbox}}, &runtimeapi.ListPodSandboxResponse{}},
		{rt + "CreateContainer", &runtimeapi.CreateContainerRequest{PodSandboxId: sandbox, Config: cfg, SandboxConfig: pod}, &runtimeapi.CreateContainerResponse{}},
		{rt + "StartContainer", &runtimeapi.StartContainerRequest{ContainerId: "2"}, &runtimeapi.StartContainerResponse{}},
		{rt + "StopContainer", &runtimeapi.StopContainerRequest{ContainerId: container, Timeout: -1}, &runtimeapi.StopContainerResponse{}},
		{rt + "ContainerStatus", &runtimeapi.ContainerStatusRequest{ContainerId: container, Verbose: true}, &runtimeapi.ContainerStatusResponse{}},
		{rt + "ListContainers", &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{PodSandboxId: sandbox}}, &runtimeapi.ListContainersResponse{}},
		{rt + "UpdateContainerResources", &runtimeapi.UpdateContainerResourcesRequest{ContainerId: container, Linux: res}, &runtimeapi.UpdateContainerResourcesResponse{}},
		{rt + "ExecSync", &runtimeapi.ExecSyncRequest{ContainerId: container, Cmd: []string{"true"}, Timeout: 5}, &runtimeapi.ExecSyncResponse{}},
		{rt + "Exec", &runtimeapi.ExecRequest{ContainerId: container, Cmd: []string{"true"}, Stdout: true}, &runtimeapi.ExecResponse{}},
		{rt + "Attach", &runtimeapi.AttachRequest{ContainerId: container, Stdout: true}, &runtimeapi.AttachResponse{}},
		{rt + "PortForward", &runtimeapi.PortForwardRequest{PodSandboxId: sandbox, Port: []int32{80, -1}}, &runtimeapi.PortForwardResponse{}},
		{rt + "ContainerStats", &runtimeapi.ContainerStatsRequest{ContainerId: container}, &runtimeapi.ContainerStatsResponse{}},
		{rt + "ListContainerStats", &runtimeapi.ListContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{Id: container}}, &runtimeapi.ListContainerStatsResponse{}},
		{rt + "PodSandboxStats", &runtimeapi.PodSandboxStatsRequest{PodSandboxId: sandbox}, &runtimeapi.PodSandboxStatsResponse{}},
		{rt + "UpdateRuntimeConfig", &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.0.0.0/8"}}}, &runtimeapi.UpdateRuntimeConfigResponse{}},
		{rt + "UpdatePodSandboxResources", &runtimeapi.UpdatePodSandboxResourcesRequest{PodSandboxId: sandbox, Overhead: res}, &runtimeapi.UpdatePodSandboxResourcesResponse{}},
		{rt + "CheckpointContainer", &runtimeapi.CheckpointContainerRequest{ContainerId: "3"}, &runtimeapi.CheckpointContainerResponse{}},
		{img + "ListImages", &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: "x"}}}, &runtimeapi.ListImagesResponse{}},
		{img + "ImageStatus", &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: "x"}, Verbose: true}, &runtimeapi.ImageStatusResponse{}},
	}
}

type fuzzCall struct {
	method string
	req    proto.Message
	resp   proto.Message
}

// FuzzRootCalls sends mutated messages to a real server. No message may make a
// call panic, and at the end nothing may be left.
func FuzzRootCalls(f *testing.F) {
	r := newRig(f)
	pod := r.pod("standing")
	sb := r.runPod(pod)
	id := r.run(sb, pod, r.shell("standing", "sleep 10000"))
	calls := r.calls(sb, id)
	for i, c := range calls {
		b, err := proto.Marshal(c.req)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(uint8(i), b)
		f.Add(uint8(i), []byte(nil))
		f.Add(uint8(i), b[:len(b)/2])
	}
	f.Fuzz(func(t *testing.T, which uint8, raw []byte) {
		c := calls[int(which)%len(calls)]
		req := c.req.ProtoReflect().New().Interface()
		if proto.Unmarshal(raw, req) != nil {
			return
		}
		if create, ok := req.(*runtimeapi.CreateContainerRequest); ok && strings.Contains(create.GetConfig().GetImage().GetImage(), "nodeagent.test") {
			return
		}
		// A stop with a long grace, or an exec of something that reads, takes its time.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := r.conn.Invoke(ctx, c.method, req, c.resp.ProtoReflect().New().Interface())
		if code := status.Code(err); code == codes.Internal || code == codes.Unavailable {
			t.Errorf("%s: %v", c.method, err)
		}
	})
}
