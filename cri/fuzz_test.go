// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"context"
	"errors"
	"path"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/distribution/reference"
	"google.golang.org/grpc"
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
		{rt + "CheckpointPod", &runtimeapi.CheckpointPodRequest{PodSandboxId: "4", ContainerIds: []string{"5"}, Options: map[string]string{"a": "b"}}, &runtimeapi.CheckpointPodResponse{}},
		{rt + "RestorePod", &runtimeapi.RestorePodRequest{Config: pod, ContainerConfigs: []*runtimeapi.ContainerConfig{cfg}}, &runtimeapi.RestorePodResponse{}},
		{rt + "RemoveContainer", &runtimeapi.RemoveContainerRequest{ContainerId: "6"}, &runtimeapi.RemoveContainerResponse{}},
		{rt + "ReopenContainerLog", &runtimeapi.ReopenContainerLogRequest{ContainerId: container}, &runtimeapi.ReopenContainerLogResponse{}},
		{rt + "Version", &runtimeapi.VersionRequest{Version: "x"}, &runtimeapi.VersionResponse{}},
		{rt + "Status", &runtimeapi.StatusRequest{Verbose: true}, &runtimeapi.StatusResponse{}},
		{rt + "RuntimeConfig", &runtimeapi.RuntimeConfigRequest{}, &runtimeapi.RuntimeConfigResponse{}},
		{rt + "ListPodSandboxStats", &runtimeapi.ListPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{Id: sandbox}}, &runtimeapi.ListPodSandboxStatsResponse{}},
		{rt + "ListMetricDescriptors", &runtimeapi.ListMetricDescriptorsRequest{}, &runtimeapi.ListMetricDescriptorsResponse{}},
		{rt + "ListPodSandboxMetrics", &runtimeapi.ListPodSandboxMetricsRequest{}, &runtimeapi.ListPodSandboxMetricsResponse{}},
		{rt + "GetContainerEvents", &runtimeapi.GetEventsRequest{}, &runtimeapi.ContainerEventResponse{}},
		{rt + "StreamPodSandboxes", &runtimeapi.StreamPodSandboxesRequest{Filter: &runtimeapi.PodSandboxFilter{Id: sandbox}}, &runtimeapi.StreamPodSandboxesResponse{}},
		{rt + "StreamContainers", &runtimeapi.StreamContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: container}}, &runtimeapi.StreamContainersResponse{}},
		{rt + "StreamContainerStats", &runtimeapi.StreamContainerStatsRequest{Filter: &runtimeapi.ContainerStatsFilter{Id: container}}, &runtimeapi.StreamContainerStatsResponse{}},
		{rt + "StreamPodSandboxStats", &runtimeapi.StreamPodSandboxStatsRequest{Filter: &runtimeapi.PodSandboxStatsFilter{Id: sandbox}}, &runtimeapi.StreamPodSandboxStatsResponse{}},
		{rt + "StreamPodSandboxMetrics", &runtimeapi.StreamPodSandboxMetricsRequest{}, &runtimeapi.StreamPodSandboxMetricsResponse{}},
		{img + "StreamImages", &runtimeapi.StreamImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: "x"}}}, &runtimeapi.StreamImagesResponse{}},
		{img + "PullImage", &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: ":"}, Auth: &runtimeapi.AuthConfig{Auth: "%"}, SandboxConfig: pod}, &runtimeapi.PullImageResponse{}},
		{img + "RemoveImage", &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: "absent.test/image:1"}}, &runtimeapi.RemoveImageResponse{}},
		{img + "ImageFsInfo", &runtimeapi.ImageFsInfoRequest{}, &runtimeapi.ImageFsInfoResponse{}},
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
		if reachesOut(req) {
			return
		}
		// A stop with a long grace, or an exec of something that reads, takes its time.
		ctx, cancel := context.WithTimeout(t.Context(), time.Second)
		defer cancel()
		err := r.send(ctx, c, req)
		if code := status.Code(err); code == codes.Internal || code == codes.Unavailable {
			t.Errorf("%s: %v", c.method, err)
		}
	})
}

// reachesOut tells whether a message might touch the machine or other machines.
func reachesOut(req proto.Message) bool {
	switch q := req.(type) {
	case *runtimeapi.CreateContainerRequest:
		image := q.GetConfig().GetImage().GetImage()
		return strings.Contains(image, "nodeagent.test") || filepath.IsAbs(image)
	case *runtimeapi.PullImageRequest:
		_, err := reference.ParseDockerRef(q.GetImage().GetImage())
		return err == nil
	case *runtimeapi.CheckpointContainerRequest:
		return filepath.IsAbs(q.GetLocation())
	case *runtimeapi.CheckpointPodRequest:
		return filepath.IsAbs(q.GetOutputPath())
	case *runtimeapi.RestorePodRequest:
		return filepath.IsAbs(q.GetCheckpointPath())
	case *runtimeapi.RemoveImageRequest:
		return !strings.HasPrefix(q.GetImage().GetImage(), "absent.test/")
	}
	return false
}

// send makes a call of either kind.
func (r *rig) send(ctx context.Context, c fuzzCall, req proto.Message) error {
	name := path.Base(c.method)
	if !strings.HasPrefix(name, "Stream") && name != "GetContainerEvents" {
		return r.conn.Invoke(ctx, c.method, req, c.resp.ProtoReflect().New().Interface())
	}
	ctx, cancel := context.WithTimeout(ctx, 50*time.Millisecond) // events do not end by themselves
	defer cancel()
	s, err := r.conn.NewStream(ctx, &grpc.StreamDesc{ServerStreams: true}, c.method)
	if err != nil {
		return err
	}
	if err := errors.Join(s.SendMsg(req), s.CloseSend()); err != nil {
		return err
	}
	for err == nil {
		err = s.RecvMsg(c.resp.ProtoReflect().New().Interface())
	}
	return err
}

// TestFuzzKnowsAllCalls finds that each of the CRI's calls is fuzzed.
func TestFuzzKnowsAllCalls(t *testing.T) {
	known := map[string]bool{}
	for _, c := range (&rig{t: t}).calls("s", "c") {
		known[c.method] = true
	}
	n := 0
	for _, d := range []grpc.ServiceDesc{runtimeapi.RuntimeService_ServiceDesc, runtimeapi.ImageService_ServiceDesc} {
		for _, m := range d.Methods {
			n++
			if name := "/" + d.ServiceName + "/" + m.MethodName; !known[name] {
				t.Errorf("%s is not fuzzed", name)
			}
		}
		for _, m := range d.Streams {
			n++
			if name := "/" + d.ServiceName + "/" + m.StreamName; !known[name] {
				t.Errorf("%s is not fuzzed", name)
			}
		}
	}
	if n != len(known) {
		t.Errorf("%d calls, %d fuzzed", n, len(known))
	}
}
