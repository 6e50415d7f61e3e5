// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// security changes a container's security context.
func security(change func(*runtimeapi.LinuxContainerSecurityContext)) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) { change(c.GetLinux().GetSecurityContext()) }
}

func TestWhoRuns(t *testing.T) {
	p := newPod(t, nil)
	uid, gid := &runtimeapi.Int64Value{Value: 1001}, &runtimeapi.Int64Value{Value: 1002}
	tests := []struct {
		name, script, want string
		change             func(*runtimeapi.LinuxContainerSecurityContext)
	}{
		{"root by default", "id -u", "0", func(*runtimeapi.LinuxContainerSecurityContext) {}},
		{"user", "id -u", "1001", func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser = uid }},
		{"user by name", "id -un", "web", func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUsername = "web" }},
		{"group", "id -u; id -g", "1001\n1002", func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsUser, s.RunAsGroup = uid, gid }},
		{"groups", "id -G", "0 1234 5678", func(s *runtimeapi.LinuxContainerSecurityContext) { s.SupplementalGroups = []int64{1234, 5678} }},
		{"may gain privileges", "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t0", func(*runtimeapi.LinuxContainerSecurityContext) {}},
		{"must not gain privileges", "grep NoNewPrivs /proc/self/status", "NoNewPrivs:\t1", func(s *runtimeapi.LinuxContainerSecurityContext) { s.NoNewPrivs = true }},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			id, _ := p.start(security(tt.change))
			got := p.sh(id, tt.script)
			if tt.name == "groups" {
				got = strings.TrimPrefix(strings.Join(strings.Fields(got), " "), "0 10 ")
				if !strings.HasSuffix(got, "1234 5678") {
					t.Errorf("got %q", got)
				}
				return
			}
			if got != tt.want {
				t.Errorf("got %q, want %q", got, tt.want)
			}
		})
	}
	if _, _, err := p.create(security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.RunAsGroup = gid })); err == nil {
		t.Error("a group without a user is accepted")
	}
}

func TestCapabilities(t *testing.T) {
	const script = "ip link set lo down && ip link set lo up"
	privileged := newPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	id, _ := privileged.start(security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Privileged = true }))
	privileged.sh(id, script)
	privileged.sh(id, "mount -t tmpfs x /tmp && touch /sys/fs/cgroup")

	p := newPod(t, nil)
	id, _ = p.start(nil)
	p.fails(id, script, "Operation not permitted")
	id, _ = p.start(security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.Capabilities.AddCapabilities = []string{"NET_ADMIN"}
	}))
	p.sh(id, script)
	id, _ = p.start(security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Capabilities.AddCapabilities = []string{"ALL"} }))
	p.sh(id, script)
	id, _ = p.start(security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.Capabilities.DropCapabilities = []string{"ALL"} }))
	if got := p.sh(id, "grep CapEff /proc/self/status"); got != "CapEff:\t0000000000000000" {
		t.Errorf("everything dropped: %q", got)
	}
}

func TestPaths(t *testing.T) {
	p := newPod(t, nil)
	id, _ := p.start(security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		s.MaskedPaths, s.ReadonlyPaths = []string{"/etc/group", "/not/there"}, []string{"/tmp", "/not/there"}
	}))
	if got := p.sh(id, "wc -c </etc/group"); got != "0" {
		t.Errorf("a masked file has %s bytes", got)
	}
	p.fails(id, "touch /tmp/x", "Read-only file system")
	p.sh(id, "touch /x")
	id, _ = p.start(security(func(s *runtimeapi.LinuxContainerSecurityContext) { s.ReadonlyRootfs = true }))
	p.fails(id, "touch /x", "Read-only file system")
	id, _ = p.start(nil)
	p.sh(id, "touch /x /tmp/x")
}

func TestSeccomp(t *testing.T) {
	const profile = "/var/lib/kubelet/seccomp/no-chmod.json"
	if err := node.WriteFile(profile, []byte(`{"defaultAction":"SCMP_ACT_ALLOW","syscalls":[{"names":["chmod","fchmodat"],"action":"SCMP_ACT_ERRNO"}]}`)); err != nil {
		t.Fatal(err)
	}
	kind := func(k runtimeapi.SecurityProfile_ProfileType, path string) func(*runtimeapi.LinuxContainerSecurityContext) {
		return func(s *runtimeapi.LinuxContainerSecurityContext) {
			s.Seccomp = &runtimeapi.SecurityProfile{ProfileType: k, LocalhostRef: path}
		}
	}
	p := newPod(t, nil)
	for _, tt := range []struct {
		name, want string
		change     func(*runtimeapi.LinuxContainerSecurityContext)
	}{
		{"none", "0", func(*runtimeapi.LinuxContainerSecurityContext) {}},
		{"unconfined", "0", kind(runtimeapi.SecurityProfile_Unconfined, "")},
		{"default", "2", kind(runtimeapi.SecurityProfile_RuntimeDefault, "")},
		{"localhost", "2", kind(runtimeapi.SecurityProfile_Localhost, profile)},
	} {
		id, _ := p.start(security(tt.change))
		if got := p.sh(id, "awk '/^Seccomp:/ { print $2 }' /proc/self/status"); got != tt.want {
			t.Errorf("%s: mode %q, want %q", tt.name, got, tt.want)
		}
		if tt.name == "localhost" {
			p.fails(id, "chmod 400 /tmp", "Operation not permitted")
		}
	}
	for _, path := range []string{"/not/there.json", ""} {
		id, _, err := p.create(security(kind(runtimeapi.SecurityProfile_Localhost, path)))
		if err == nil {
			_, err = rs.StartContainer(t.Context(), &runtimeapi.StartContainerRequest{ContainerId: id})
		}
		if err == nil {
			t.Errorf("a container runs with the profile %q", path)
		}
	}
	privileged := newPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
	id, _ := privileged.start(security(func(s *runtimeapi.LinuxContainerSecurityContext) {
		kind(runtimeapi.SecurityProfile_Localhost, profile)(s)
		s.Privileged = true
	}))
	privileged.sh(id, "chmod 400 /tmp")
}
