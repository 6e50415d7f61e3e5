// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"encoding/json"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/spec"
)

// FuzzBuild feeds any container and pod that the wire can carry. Whatever comes out must be a whole spec: it marshals, joins no
// namespace that nobody gave, and mounts nothing outside the container; and what is refused changes nothing.
func FuzzBuild(f *testing.F) {
	in, _ := fixture()
	pod, err := proto.Marshal(in.Sandbox.Config)
	if err != nil {
		f.Fatal(err)
	}
	for _, c := range []*runtimeapi.ContainerConfig{in.Config, {}, {
		Mounts:  []*mount{{ContainerPath: "/a/../b", HostPath: "/x", Propagation: 2, UidMappings: span(0, 1, 2)}},
		Devices: []*runtimeapi.Device{{HostPath: "/dev/snd", Permissions: "rwm"}},
		Linux: &runtimeapi.LinuxContainerConfig{SecurityContext: &sec{
			Privileged: true, Seccomp: profile(2, "/profiles/ok.json"), Capabilities: &runtimeapi.Capability{AddCapabilities: []string{"ALL"}},
		}, Resources: &runtimeapi.LinuxContainerResources{Unified: map[string]string{"a.b": "c"}, CpusetCpus: "0-3"}},
	}} {
		raw, err := proto.Marshal(c)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(raw, pod, "web:staff", passwd)
	}
	f.Fuzz(func(t *testing.T, container, pod []byte, image, accounts string) {
		in, sys := fixture()
		in.Config, in.Sandbox.Config = &runtimeapi.ContainerConfig{}, &runtimeapi.PodSandboxConfig{}
		if proto.Unmarshal(container, in.Config) != nil || proto.Unmarshal(pod, in.Sandbox.Config) != nil {
			return
		}
		in.Image.Config.User = image
		in.Image.Rootfs = rootfs(accounts)
		in.Sandbox.Namespaces.User = "/ns/user"
		in.Host.SELinux, in.Host.AppArmor = true, true
		out, err := spec.Build(in)
		if err != nil {
			if out != nil || len(sys.Made) > 0 {
				t.Fatalf("refused (%v) but returned %v and made %v", err, out, sys.Made)
			}
			return
		}
		whole(t, out.Spec)
	})
}

func whole(t *testing.T, s *specs.Spec) {
	t.Helper()
	if _, err := json.Marshal(s); err != nil {
		t.Fatal(err)
	}
	if len(s.Process.Args) == 0 || s.Version == "" || !strings.HasPrefix(s.Process.Cwd, "/") {
		t.Fatalf("not a whole spec: %+v", s.Process)
	}
	for _, m := range s.Mounts {
		if !strings.HasPrefix(m.Destination, "/") || strings.HasPrefix(m.Destination, "/..") {
			t.Fatalf("mount %+v", m)
		}
	}
	for _, n := range s.Linux.Namespaces {
		if n.Path != "" && !strings.HasPrefix(n.Path, "/ns/") {
			t.Fatalf("namespace %+v", n)
		}
	}
}
