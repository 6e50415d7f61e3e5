// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// barePod runs a sandbox of which only the name is said.
func barePod(t *testing.T) *pod {
	t.Helper()
	return newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		*c = runtimeapi.PodSandboxConfig{Metadata: c.GetMetadata(), Linux: &runtimeapi.LinuxPodSandboxConfig{}}
	})
}

// bare says only what a container is made of.
func bare(c *runtimeapi.ContainerConfig) { c.Linux, c.LogPath = nil, "" }

// TestBare leaves out whatever may be left out.
func TestBare(t *testing.T) {
	p := barePod(t)
	for name, change := range map[string]func(*runtimeapi.ContainerConfig){
		"nothing": bare,
		"linux":   func(c *runtimeapi.ContainerConfig) { bare(c); c.Linux = &runtimeapi.LinuxContainerConfig{} },
		"log":     func(c *runtimeapi.ContainerConfig) { c.Linux = nil },
		"empty": func(c *runtimeapi.ContainerConfig) {
			bare(c)
			c.Linux = &runtimeapi.LinuxContainerConfig{
				Resources:       &runtimeapi.LinuxContainerResources{},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{},
			}
		},
		"image's command": func(c *runtimeapi.ContainerConfig) { bare(c); c.Command, c.Image = nil, spec(cluster.AgnhostImage) },
	} {
		t.Run(name, func(t *testing.T) {
			if name == "image's command" {
				pulled(t, cluster.AgnhostImage)
			}
			id, _ := p.start(change)
			if s := p.status(id); s.GetState() != runtimeapi.ContainerState_CONTAINER_RUNNING {
				t.Errorf("%v", s)
			}
			if got := p.sh(id, "echo hello"); got != "hello" {
				t.Errorf("exec: %q", got)
			}
		})
	}
	r, err := rs.PodSandboxStatus(t.Context(), &runtimeapi.PodSandboxStatusRequest{PodSandboxId: p.id, Verbose: true})
	if err != nil || r.GetStatus().GetNetwork().GetIp() == "" || len(r.GetInfo()) == 0 {
		t.Errorf("status: %v, %v", r, err)
	}
	if r.GetTimestamp() != 0 { // a kubelet 1.37.2 with EventedPLEG would not list the pod's containers
		t.Error("the status has a timestamp")
	}
}

// TestStates makes calls that do not fit the state.
func TestStates(t *testing.T) {
	p := newPod(t, nil)
	created, _, err := p.create(nil)
	if err != nil {
		t.Fatal(err)
	}
	running, _ := p.start(nil)
	if _, err := rs.ExecSync(t.Context(), &runtimeapi.ExecSyncRequest{ContainerId: created, Cmd: []string{"true"}}); err == nil {
		t.Error("a container that was not started executes something")
	}
	for _, id := range []string{created, running} {
		twice(t, "remove container", func(ctx context.Context) error {
			_, err := rs.RemoveContainer(ctx, &runtimeapi.RemoveContainerRequest{ContainerId: id})
			return err
		})
		if _, err := rs.ContainerStatus(t.Context(), &runtimeapi.ContainerStatusRequest{ContainerId: id}); err == nil {
			t.Errorf("container %s has a status after its removal", id)
		}
	}
	waiting, _, err := p.create(nil)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := rs.StopPodSandbox(t.Context(), &runtimeapi.StopPodSandboxRequest{PodSandboxId: p.id}); err != nil {
		t.Fatal(err)
	}
	if _, _, err := p.create(nil); err == nil {
		t.Error("a container is created in a stopped sandbox")
	}
	if _, err := rs.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: waiting}); err == nil {
		t.Error("a container starts in a stopped sandbox")
	}
	other := newPod(t, nil)
	id, _ := other.start(nil)
	twice(t, "remove sandbox", func(ctx context.Context) error {
		_, err := rs.RemovePodSandbox(ctx, &runtimeapi.RemovePodSandboxRequest{PodSandboxId: other.id})
		return err
	})
	l, err := rs.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: id}})
	if err != nil || len(l.GetContainers()) != 0 {
		t.Errorf("containers of a removed sandbox: %v, %v", l, err)
	}
}

// refused runs a sandbox that cannot be.
func refused(t *testing.T, what string, change func(*runtimeapi.PodSandboxConfig), handler string) {
	t.Helper()
	cfg := &runtimeapi.PodSandboxConfig{
		Metadata: &runtimeapi.PodSandboxMetadata{Name: "bad", Uid: "bad", Namespace: "default"},
		Linux: &runtimeapi.LinuxPodSandboxConfig{
			SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{NamespaceOptions: &runtimeapi.NamespaceOption{}},
		},
	}
	change(cfg)
	r, err := rs.RunPodSandbox(t.Context(), &runtimeapi.RunPodSandboxRequest{Config: cfg, RuntimeHandler: handler})
	if err == nil {
		t.Errorf("accepted: %s", what)
		if _, err := rs.RemovePodSandbox(t.Context(), &runtimeapi.RemovePodSandboxRequest{PodSandboxId: r.GetPodSandboxId()}); err != nil {
			t.Error(err)
		}
	}
}

func TestRefusedSandboxes(t *testing.T) {
	refused(t, "an unknown handler", func(*runtimeapi.PodSandboxConfig) {}, "not-there")
	refused(t, "a group without a user", func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.RunAsGroup = &runtimeapi.Int64Value{Value: 1}
	}, "")
	one := []*runtimeapi.IDMapping{{HostId: 1 << 20, Length: 65536}}
	two := []*runtimeapi.IDMapping{{HostId: 1 << 20, Length: 1}, {HostId: 1 << 21, ContainerId: 1, Length: 1}}
	for what, u := range map[string]*runtimeapi.UserNamespace{
		"mode CONTAINER":        {Mode: runtimeapi.NamespaceMode_CONTAINER, Uids: one, Gids: one},
		"mode TARGET":           {Mode: runtimeapi.NamespaceMode_TARGET, Uids: one, Gids: one},
		"no mappings":           {Mode: runtimeapi.NamespaceMode_POD},
		"users only":            {Mode: runtimeapi.NamespaceMode_POD, Uids: one},
		"groups only":           {Mode: runtimeapi.NamespaceMode_POD, Gids: one},
		"two mappings":          {Mode: runtimeapi.NamespaceMode_POD, Uids: two, Gids: two},
		"users unlike groups":   {Mode: runtimeapi.NamespaceMode_POD, Uids: one, Gids: two},
		"a mapping of length 0": {Mode: runtimeapi.NamespaceMode_POD, Uids: []*runtimeapi.IDMapping{{HostId: 1}}, Gids: []*runtimeapi.IDMapping{{HostId: 1}}},
	} {
		refused(t, "a user namespace with "+what, func(c *runtimeapi.PodSandboxConfig) {
			c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = u
		}, "")
	}
	if onNodeagent() { // runc says it to containerd when the sandbox has begun
		refused(t, "a sysctl of the node", func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = map[string]string{"kernel.pid_max": "4000"} }, "")
	}
}

// TestSysctlNames writes sysctls with either separator, those that the kubelet calls safe and those it does not.
func TestSysctlNames(t *testing.T) {
	for _, sysctls := range []map[string]string{
		{"kernel.shm_rmid_forced": "1", "fs.mqueue.msg_max": "100"},
		{"kernel/shm_rmid_forced": "1", "fs/mqueue/msg_max": "100"},
	} {
		p := newPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.Sysctls = sysctls })
		id, _ := p.start(nil)
		got := strings.Fields(p.sh(id, "cat /proc/sys/kernel/shm_rmid_forced /proc/sys/fs/mqueue/msg_max"))
		if strings.Join(got, " ") != "1 100" {
			t.Errorf("%v: %v", sysctls, got)
		}
	}
}
