// SPDX-License-Identifier: Apache-2.0

package cri_test

import (
	"context"
	"strings"
	"sync"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

func TestRootBadSandboxes(t *testing.T) {
	r := newRig(t)
	for _, tc := range []struct {
		name    string
		change  func(*runtimeapi.PodSandboxConfig)
		handler string
		want    codes.Code
		text    string
	}{
		{"no metadata", func(c *runtimeapi.PodSandboxConfig) { c.Metadata = nil }, "", codes.InvalidArgument, "metadata.name"},
		{"no uid", func(c *runtimeapi.PodSandboxConfig) { c.Metadata.Uid = "" }, "", codes.InvalidArgument, "metadata.uid"},
		{"long host name", func(c *runtimeapi.PodSandboxConfig) { c.Hostname = strings.Repeat("x", 65) }, "", codes.InvalidArgument, "hostname"},
		{"relative log directory", func(c *runtimeapi.PodSandboxConfig) { c.LogDirectory = "logs" }, "", codes.InvalidArgument, "log_directory"},
		{"line break in dns", func(c *runtimeapi.PodSandboxConfig) { c.DnsConfig.Searches = []string{"a\nnameserver 6.6.6.6"} }, "", codes.InvalidArgument, "dns_config"},
		{"unknown handler", nil, "kata", codes.InvalidArgument, "kata"},
		{"escaping cgroup", func(c *runtimeapi.PodSandboxConfig) { c.Linux.CgroupParent = "/a/../../b" }, "", codes.InvalidArgument, "cgroup_parent"},
		{"group without user", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1}
		}, "", codes.InvalidArgument, "run_as_group"},
		{"network of a container", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.Network = runtimeapi.NamespaceMode_CONTAINER
		}, "", codes.InvalidArgument, "network"},
		{"unknown mode", func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.NamespaceOptions.Pid = 17 }, "", codes.InvalidArgument, "pid"},
		{"sysctl of the node", func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.panic": "1"} }, "", codes.InvalidArgument, "kernel.panic"},
		{"escaping sysctl", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net/../kernel/panic": "1"}
		}, "", codes.InvalidArgument, "sysctl"},
		{"absent sysctl", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net.ipv4.no_such": "1"}
		}, "", codes.InvalidArgument, "no_such"},
		{"bad value of a sysctl", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.Sysctls = map[string]string{"net.ipv4.ip_forward": "many"}
		}, "", codes.Unknown, "many"},
		{"two mappings", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{
				Uids: []*runtimeapi.IDMapping{{HostId: 1, Length: 1}, {HostId: 5, ContainerId: 1, Length: 1}},
				Gids: []*runtimeapi.IDMapping{{HostId: 1, Length: 1}},
			}
		}, "", codes.InvalidArgument, "uids"},
		{"mapping that overflows", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{
				Uids: []*runtimeapi.IDMapping{{HostId: 1 << 31, Length: 1<<32 - 1}}, Gids: []*runtimeapi.IDMapping{{HostId: 1, Length: 1}},
			}
		}, "", codes.InvalidArgument, "uids"},
		{"user namespace of a container", func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_CONTAINER}
		}, "", codes.InvalidArgument, "userns"},
		{"port out of range", func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 70000, ContainerPort: 80}}
		}, "", codes.InvalidArgument, "port_mappings[0]"},
		{"host address that is none", func(c *runtimeapi.PodSandboxConfig) {
			c.PortMappings = []*runtimeapi.PortMapping{{HostPort: 80, ContainerPort: 80, HostIp: "here"}}
		}, "", codes.InvalidArgument, "host_ip"},
		{"bandwidth that is none", func(c *runtimeapi.PodSandboxConfig) {
			c.Annotations = map[string]string{"kubernetes.io/ingress-bandwidth": "fast"}
		}, "", codes.InvalidArgument, "ingress-bandwidth"},
	} {
		cfg := r.pod("bad")
		if tc.change != nil {
			tc.change(cfg)
		}
		_, err := r.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg, RuntimeHandler: tc.handler})
		if status.Code(err) != tc.want || !strings.Contains(status.Convert(err).Message(), tc.text) {
			t.Errorf("%s: %v, want %s with %q", tc.name, err, tc.want, tc.text)
		}
	}
	if _, err := r.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no configuration: %v", err)
	}
	r.noLeftovers()
}

func TestRootBadContainers(t *testing.T) {
	r := newRig(t)
	pod := r.pod("host")
	sb := r.runPod(pod)
	for _, tc := range []struct {
		name   string
		change func(*runtimeapi.ContainerConfig)
		want   codes.Code
		text   string
	}{
		{"no metadata", func(c *runtimeapi.ContainerConfig) { c.Metadata = nil }, codes.InvalidArgument, "metadata.name"},
		{"no image", func(c *runtimeapi.ContainerConfig) { c.Image = nil }, codes.InvalidArgument, "image"},
		{"absent image", func(c *runtimeapi.ContainerConfig) { c.Image.Image = "nowhere.test/x:1" }, codes.NotFound, "nowhere.test/x"},
		{"escaping log path", func(c *runtimeapi.ContainerConfig) { c.LogPath = "../../etc/cron.d/x" }, codes.InvalidArgument, "log_path"},
		{"absolute log path", func(c *runtimeapi.ContainerConfig) { c.LogPath = "/etc/x" }, codes.InvalidArgument, "log_path"},
		{"relative mount", func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{HostPath: "tmp", ContainerPath: "/x"}}
		}, codes.InvalidArgument, "mounts[0]"},
		{"target that is absent", func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: "none"}
		}, codes.NotFound, "target_id"},
		{"unknown capability", func(c *runtimeapi.ContainerConfig) {
			c.Linux.SecurityContext.Capabilities = &runtimeapi.Capability{AddCapabilities: []string{"FLY"}}
		}, codes.InvalidArgument, "FLY"},
		{"unknown user", func(c *runtimeapi.ContainerConfig) { c.Linux.SecurityContext.RunAsUsername = "nobody-knows" }, codes.InvalidArgument, "nobody-knows"},
		{"no command", func(c *runtimeapi.ContainerConfig) { c.Command = []string{""} }, codes.OK, ""},
	} {
		cfg := r.shell("bad", "true")
		tc.change(cfg)
		_, err := r.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sb, Config: cfg, SandboxConfig: pod})
		if tc.want == codes.OK {
			continue
		}
		if status.Code(err) != tc.want || !strings.Contains(status.Convert(err).Message(), tc.text) {
			t.Errorf("%s: %v, want %s with %q", tc.name, err, tc.want, tc.text)
		}
	}
	if _, err := r.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sb}); status.Code(err) != codes.InvalidArgument {
		t.Errorf("no configuration: %v", err)
	}
	if _, err := r.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: "none", Config: r.shell("c", "")}); status.Code(err) != codes.NotFound {
		t.Errorf("unknown sandbox: %v", err)
	}
	if _, err := r.rt.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: sb}); err != nil {
		t.Fatal(err)
	}
	if _, err := r.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sb, Config: r.shell("c", "")}); status.Code(err) != codes.FailedPrecondition {
		t.Errorf("stopped sandbox: %v", err)
	}
}

// Calls for what does not exist, and calls in the wrong state.
func TestRootCodes(t *testing.T) {
	r := newRig(t)
	pod := r.pod("p")
	sb := r.runPod(pod)
	created := r.create(sb, pod, r.shell("c", "true"))
	ctx := t.Context()
	for _, tc := range []struct {
		name string
		call func() error
		want codes.Code
	}{
		{"sandbox status", func() error {
			_, err := r.rt.PodSandboxStatus(ctx, &runtimeapi.PodSandboxStatusRequest{PodSandboxId: "x"})
			return err
		}, codes.NotFound},
		{"empty id", func() error {
			_, err := r.rt.ContainerStatus(ctx, &runtimeapi.ContainerStatusRequest{})
			return err
		}, codes.NotFound},
		{"container stats", func() error {
			_, err := r.rt.ContainerStats(ctx, &runtimeapi.ContainerStatsRequest{ContainerId: "x"})
			return err
		}, codes.NotFound},
		{"pod stats that the kubelet probes with", func() error {
			_, err := r.rt.PodSandboxStats(ctx, &runtimeapi.PodSandboxStatsRequest{})
			return err
		}, codes.NotFound},
		{"start", func() error {
			_, err := r.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: "x"})
			return err
		}, codes.NotFound},
		{"stop", func() error {
			_, err := r.rt.StopContainer(ctx, &runtimeapi.StopContainerRequest{ContainerId: "x"})
			return err
		}, codes.OK},
		{"remove", func() error {
			_, err := r.rt.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: "x"})
			return err
		}, codes.OK},
		{"stop sandbox", func() error {
			_, err := r.rt.StopPodSandbox(ctx, &runtimeapi.StopPodSandboxRequest{PodSandboxId: "x"})
			return err
		}, codes.OK},
		{"remove sandbox", func() error {
			_, err := r.rt.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: "x"})
			return err
		}, codes.OK},
		{"exec in what does not run", func() error {
			_, err := r.rt.ExecSync(ctx, &runtimeapi.ExecSyncRequest{ContainerId: created, Cmd: []string{"true"}})
			return err
		}, codes.FailedPrecondition},
		{"exec of nothing", func() error {
			_, err := r.rt.Exec(ctx, &runtimeapi.ExecRequest{ContainerId: created})
			return err
		}, codes.InvalidArgument},
		{"attach to what does not run", func() error {
			_, err := r.rt.Attach(ctx, &runtimeapi.AttachRequest{ContainerId: created, Stdout: true})
			return err
		}, codes.FailedPrecondition},
		{"forward to an unknown sandbox", func() error {
			_, err := r.rt.PortForward(ctx, &runtimeapi.PortForwardRequest{PodSandboxId: "x"})
			return err
		}, codes.NotFound},
		{"reopen the log of what does not run", func() error {
			_, err := r.rt.ReopenContainerLog(ctx, &runtimeapi.ReopenContainerLogRequest{ContainerId: created})
			return err
		}, codes.FailedPrecondition},
		{"pod ranges that are none", func() error {
			_, err := r.rt.UpdateRuntimeConfig(ctx, &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{
				NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.0.0.0/24,lan"},
			}})
			return err
		}, codes.InvalidArgument},
		{"pod ranges", func() error {
			_, err := r.rt.UpdateRuntimeConfig(ctx, &runtimeapi.UpdateRuntimeConfigRequest{RuntimeConfig: &runtimeapi.RuntimeConfig{
				NetworkConfig: &runtimeapi.NetworkConfig{PodCidr: "10.0.0.0/24,fd00::/64"},
			}})
			return err
		}, codes.OK},
	} {
		if err := tc.call(); status.Code(err) != tc.want {
			t.Errorf("%s: %v, want %s", tc.name, err, tc.want)
		}
	}
	if len(r.net.cidrs) != 2 {
		t.Errorf("ranges %v", r.net.cidrs)
	}
}

// A call that is repeated while it runs, and after it, gives the same sandbox
// and the same container.
func TestRootRepeatedCallsJoin(t *testing.T) {
	r := newRig(t)
	pod := r.pod("once")
	var mu sync.Mutex
	pods, containers := map[string]bool{}, map[string]bool{}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			resp, err := r.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: pod})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			pods[resp.PodSandboxId] = true
		})
	}
	wg.Wait()
	if len(pods) != 1 {
		t.Fatalf("sandboxes %v", pods)
	}
	sb := r.runPod(pod)
	for range 8 {
		wg.Go(func() {
			resp, err := r.rt.CreateContainer(t.Context(), &runtimeapi.CreateContainerRequest{PodSandboxId: sb, Config: r.shell("c", "sleep 100"), SandboxConfig: pod})
			if err != nil {
				t.Error(err)
				return
			}
			mu.Lock()
			defer mu.Unlock()
			containers[resp.ContainerId] = true
		})
	}
	wg.Wait()
	if len(containers) != 1 {
		t.Fatalf("containers %v", containers)
	}
	other := r.pod("once")
	other.Labels = map[string]string{"other": "request"}
	if _, err := r.rt.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: other}); status.Code(err) != codes.AlreadyExists {
		t.Errorf("another request for the same attempt: %v", err)
	}
	// A caller that gives up does not take the call with it.
	for id := range containers {
		ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
		_, err := r.rt.StartContainer(ctx, &runtimeapi.StartContainerRequest{ContainerId: id})
		cancel()
		if status.Code(err) != codes.DeadlineExceeded {
			t.Errorf("a start of a millisecond: %v", err)
		}
		r.eventually("the container runs", func() bool {
			return r.status(id).State == runtimeapi.ContainerState_CONTAINER_RUNNING
		})
	}
}
