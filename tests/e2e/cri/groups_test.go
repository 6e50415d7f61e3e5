// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// TestGroups asks for groups in all forms, and for what the status says of them.
func TestGroups(t *testing.T) {
	p := newPod(t, nil)
	id1000, gid := &runtimeapi.Int64Value{Value: 1000}, &runtimeapi.Int64Value{Value: 2000}
	strict := runtimeapi.SupplementalGroupsPolicy_Strict
	for name, tt := range map[string]struct {
		want   string
		change func(*runtimeapi.LinuxContainerSecurityContext)
	}{
		"name and group": {"1000 2000", func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername, s.RunAsGroup = "web", gid }},
		"strict": {"1000 2000 3000", func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups, s.SupplementalGroupsPolicy = id1000, gid, []int64{3000}, strict
		}},
		"merged": {"1000 2000 3000", func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.RunAsUser, s.RunAsGroup, s.SupplementalGroups = id1000, gid, []int64{3000}
		}},
	} {
		t.Run(name, func(t *testing.T) {
			id, _ := p.start(security(tt.change))
			if got := strings.Join(strings.Fields(p.sh(id, "id -u; id -G")), " "); got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
			u := p.status(id).GetUser().GetLinux()
			if u.GetUid() != 1000 || u.GetGid() != 2000 || !slices.Contains(u.GetSupplementalGroups(), 2000) {
				t.Errorf("status: %v", u)
			}
		})
	}
	if _, _, err := p.create(security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "nobody-knows" })); err == nil && onNodeagent() {
		t.Error("a user that the image does not have is accepted")
	}
}

// TestPrivilegeEscalation runs a program that becomes root, if it may.
func TestPrivilegeEscalation(t *testing.T) {
	const image = "registry.local/setuid:1"
	pulled(t, image)
	p := newPod(t, nil)
	for _, no := range []bool{false, true} {
		id, cfg := p.start(func(c *runtimeapi.ContainerConfig) {
			c.Image, c.Command = spec(image), []string{"/bin/become", "-p", "-c", "echo $EUID"}
			c.Linux.SecurityContext.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
			c.Linux.SecurityContext.NoNewPrivs = no
		})
		p.exited(id)
		if got, want := strings.TrimSpace(p.log(cfg.GetLogPath())), map[bool]string{false: "0", true: "1000"}[no]; got != want {
			t.Errorf("no_new_privs %t: user %q", no, got)
		}
	}
}

// TestHostnameCall may be made with CAP_SYS_ADMIN only, which opens the default profile for it, too.
func TestHostnameCall(t *testing.T) {
	const profile = "/var/lib/kubelet/seccomp/no-hostname.json"
	if err := node.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["sethostname"],"action":"SCMP_ACT_ERRNO"}]}`)); err != nil {
		t.Fatal(err)
	}
	p := newPod(t, nil)
	for _, tt := range []struct {
		kind  runtimeapi.SecurityProfile_ProfileType
		admin bool
		works bool
	}{
		{runtimeapi.SecurityProfile_Unconfined, true, true},
		{runtimeapi.SecurityProfile_Unconfined, false, false},
		{runtimeapi.SecurityProfile_RuntimeDefault, true, true},
		{runtimeapi.SecurityProfile_RuntimeDefault, false, false},
		{runtimeapi.SecurityProfile_Localhost, true, false},
	} {
		id, _ := p.start(security(func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: tt.kind}
			if tt.kind == runtimeapi.SecurityProfile_Localhost {
				s.Seccomp.LocalhostRef = profile
			}
			if tt.admin {
				s.Capabilities.AddCapabilities = []string{"SYS_ADMIN"}
			}
		}))
		if tt.works {
			p.sh(id, "hostname changed")
		} else {
			p.fails(id, "hostname changed", "Operation not permitted")
		}
	}
}

// TestAmbient gives a capability to a process that is not root.
func TestAmbient(t *testing.T) {
	if !onNodeagent() {
		t.Skip("containerd's plugin clears ambient capabilities")
	}
	p := newPod(t, nil)
	id, _ := p.start(security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.RunAsUser = &runtimeapi.Int64Value{Value: 1000}
		s.Capabilities.AddAmbientCapabilities = []string{"NET_ADMIN"}
		s.Capabilities.AddCapabilities = []string{"NET_ADMIN"}
	}))
	p.sh(id, "ip link set lo down && ip link set lo up")
}

// TestOOMScore gives a process its score.
func TestOOMScore(t *testing.T) {
	p := newPod(t, nil)
	id, _ := p.start(func(c *runtimeapi.ContainerConfig) {
		c.Image = spec(cluster.BusyboxImage)
		c.Linux.Resources = &runtimeapi.LinuxContainerResources{OomScoreAdj: 999}
	})
	if got := p.sh(id, "cat /proc/1/oom_score_adj /proc/self/oom_score_adj | sort -u"); !strings.Contains(got, "999") {
		t.Errorf("score %q", got)
	}
}
