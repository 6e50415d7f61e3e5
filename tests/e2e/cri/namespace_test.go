// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// of is a namespace of the node's own.
func of(t *testing.T, kind string) string {
	t.Helper()
	ns, err := os.Readlink(fmt.Sprintf("/proc/%d/ns/%s", node.PID, kind))
	if err != nil {
		t.Fatal(err)
	}
	return ns
}

func TestNamespaces(t *testing.T) {
	for _, kind := range []string{"net", "ipc", "pid"} {
		for _, mode := range []runtimeapi.NamespaceMode{runtimeapi.NamespaceMode_POD, runtimeapi.NamespaceMode_NODE} {
			p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
				o := c.Linux.SecurityContext.NamespaceOptions
				*map[string]*runtimeapi.NamespaceMode{"net": &o.Network, "ipc": &o.Ipc, "pid": &o.Pid}[kind] = mode
			})
			a, _ := p.start(nil)
			b, _ := p.start(nil)
			script := "readlink /proc/self/ns/" + kind
			inA, inB := p.sh(a, script), p.sh(b, script)
			if inA != inB {
				t.Errorf("%s %s: two containers are in %s and %s", kind, mode, inA, inB)
			}
			if (inA == of(t, kind)) != (mode == runtimeapi.NamespaceMode_NODE) {
				t.Errorf("%s %s: a container is in %s, the node in %s", kind, mode, inA, of(t, kind))
			}
		}
	}
}

func TestProcesses(t *testing.T) {
	own := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.Pid = runtimeapi.NamespaceMode_CONTAINER
	})
	id, _ := own.start(nil)
	if got := own.sh(id, "tr '\\0' ' ' </proc/1/cmdline"); !strings.Contains(got, "sleep 3600") {
		t.Errorf("process 1 is %q", got)
	}
	target, _ := own.start(func(c *runtimeapi.ContainerConfig) {
		c.Linux.SecurityContext.NamespaceOptions = &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_TARGET, TargetId: id}
	})
	if a, b := own.sh(id, "readlink /proc/self/ns/pid"), own.sh(target, "readlink /proc/self/ns/pid"); a != b {
		t.Errorf("a container is in %s, its target in %s", b, a)
	}

	shared := newPod(t, nil)
	id, _ = shared.start(nil)
	if got := shared.sh(id, "tr '\\0' ' ' </proc/1/cmdline"); strings.Contains(got, "sleep 3600") {
		t.Errorf("process 1 of the pod is its container: %q", got)
	}
}

func TestHostnameAndSysctls(t *testing.T) {
	p := newPod(t, func(c *runtimeapi.PodSandboxConfig) {
		c.Hostname = "a-name"
		c.Linux.Sysctls = map[string]string{"kernel.shm_rmid_forced": "1", "net.ipv4.ip_local_port_range": "1024 65000"}
	})
	id, _ := p.start(nil)
	got := p.sh(id, "hostname; cat /etc/hostname /proc/sys/kernel/shm_rmid_forced /proc/sys/net/ipv4/ip_local_port_range | tr '\\t' ' '")
	if got != "a-name\na-name\n1\n1024 65000" {
		t.Errorf("got %q", got)
	}
}

// userNamespaces says whether the node's runtime says that it has them.
func userNamespaces(t *testing.T) bool {
	t.Helper()
	s, err := rs.Status(t.Context(), &runtimeapi.StatusRequest{})
	if err != nil {
		t.Fatal(err)
	}
	i := slices.IndexFunc(s.GetRuntimeHandlers(), func(h *runtimeapi.RuntimeHandler) bool { return h.GetName() == "" })
	return i >= 0 && s.GetRuntimeHandlers()[i].GetFeatures().GetUserNamespaces()
}

// TestUserNamespace: a runtime that reports user namespaces makes them, and nodeagent refuses them where it does not.
func TestUserNamespace(t *testing.T) {
	ids := []*runtimeapi.IDMapping{{HostId: 1 << 20, ContainerId: 0, Length: 65536}}
	mapped := func(c *runtimeapi.PodSandboxConfig) {
		c.Linux.SecurityContext.NamespaceOptions.UsernsOptions = &runtimeapi.UserNamespace{Mode: runtimeapi.NamespaceMode_POD, Uids: ids, Gids: ids}
	}
	if !userNamespaces(t) && onNodeagent() {
		lacking(t, mapped, "pods cannot have user namespaces on this node")
		return
	}
	p := newPod(t, mapped)
	id, _ := p.start(nil)
	if got := strings.Fields(p.sh(id, "cat /proc/self/uid_map")); strings.Join(got, " ") != "0 1048576 65536" {
		t.Errorf("mapping %q", got)
	}
	p.sh(id, "touch /x && [ $(stat -c %u /x) = 0 ]")
}
