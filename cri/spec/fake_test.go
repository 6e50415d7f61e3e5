// SPDX-License-Identifier: Apache-2.0

package spec_test

import (
	"fmt"
	"io/fs"
	"path"
	"strings"
	"testing/fstest"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/spec"
)

// fakeSystem is a machine in a few maps. It records what a Build would have changed.
type fakeSystem struct {
	Links     map[string]string
	Missing   map[string]bool
	Mounts    map[string]spec.Propagation
	Nodes     map[string][]specs.LinuxDevice
	Files     map[string]string
	Made      []string
	Relabeled []string
	Released  []string
	Profiles  []string
	fail      map[string]error
}

func (s *fakeSystem) FailNext(op string, err error) {
	if s.fail == nil {
		s.fail = map[string]error{}
	}
	s.fail[op] = err
}

func (s *fakeSystem) failed(op string) error {
	err := s.fail[op]
	delete(s.fail, op)
	return err
}

func (s *fakeSystem) LoadAppArmor(name string) error {
	if err := s.failed("apparmor"); err != nil {
		return err
	}
	s.Profiles = append(s.Profiles, name)
	return nil
}

func (s *fakeSystem) Source(p string, create bool) (string, error) {
	if err := s.failed("source"); err != nil {
		return "", err
	}
	if to, ok := s.Links[p]; ok {
		return to, nil
	}
	if s.Missing[p] {
		if !create {
			return "", fmt.Errorf("%s: no such file or directory: %w", p, errdefs.ErrNotFound)
		}
		s.Made = append(s.Made, p)
	}
	return p, nil
}

func (s *fakeSystem) Propagation(p string) (spec.Propagation, string, error) {
	best := "/"
	for point := range s.Mounts {
		if (p == point || strings.HasPrefix(p, point+"/")) && len(point) > len(best) {
			best = point
		}
	}
	return s.Mounts[best], best, s.failed("propagation")
}

func (s *fakeSystem) Devices(p string) ([]specs.LinuxDevice, error) {
	if nodes, ok := s.Nodes[p]; ok {
		return nodes, s.failed("devices")
	}
	return nil, fmt.Errorf("%s: %w", p, errdefs.ErrNotFound)
}

func (s *fakeSystem) ReadFile(p string) ([]byte, error) {
	if text, ok := s.Files[p]; ok {
		return []byte(text), nil
	}
	return nil, &fs.PathError{Op: "open", Path: p, Err: fs.ErrNotExist}
}

func (s *fakeSystem) Labels(options []string) (spec.Labels, error) {
	if len(options) == 1 && options[0] == "disable" {
		return spec.Labels{Mount: "system_u:object_r:container_file_t:s0"}, nil
	}
	label := map[string]string{"user": "system_u", "role": "system_r", "type": "container_t", "level": "s0:c7,c8"}
	for _, o := range options {
		key, value, _ := strings.Cut(o, ":")
		label[key] = value
	}
	l := spec.Labels{
		Process: strings.Join([]string{label["user"], label["role"], label["type"], label["level"]}, ":"),
		Mount:   "system_u:object_r:container_file_t:" + label["level"],
	}
	return l, s.failed("labels")
}

func (s *fakeSystem) Release(process string) { s.Released = append(s.Released, process) }

func (s *fakeSystem) Relabel(p, label string) error {
	s.Relabeled = append(s.Relabeled, path.Clean(p)+" "+label)
	return s.failed("relabel")
}

const (
	passwd = "root:x:0:0:root:/root:/bin/sh\nweb:x:101:102:,,,:/:/bin/false\n# comment\nbroken\nalice:x:1000:1000::/:/bin/sh\n"
	groups = "root:x:0:root\nbin:x:1:root,daemon\nweb:x:102:\nstaff:x:50:alice,web\nextra:x:5000:alice\n"
)

// fixture is an ordinary container of an ordinary pod on a cgroup v2 host. Tests change one thing each.
func fixture() (spec.Input, *fakeSystem) {
	sys := &fakeSystem{
		Links:  map[string]string{"/var/lib/link": "/srv/real"},
		Mounts: map[string]spec.Propagation{"/": spec.Private, "/mnt/shared": spec.Shared, "/mnt/slave": spec.Slave},
		Nodes: map[string][]specs.LinuxDevice{
			"/dev/fuse": {{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229, UID: new(uint32), GID: new(uint32)}},
			"/dev/snd":  {{Path: "/dev/snd/seq", Type: "c", Major: 116, Minor: 1}, {Path: "/dev/snd/pcm", Type: "c", Major: 116, Minor: 2}},
			"/dev":      {{Path: "/dev/fuse", Type: "c", Major: 10, Minor: 229}, {Path: "/dev/sda", Type: "b", Major: 8, Minor: 0}},
			"/dev/none": {},
		},
		Files: map[string]string{
			"/profiles/ok.json":                      `{"defaultAction":"SCMP_ACT_ALLOW"}`,
			"/profiles/bad.json":                     `{`,
			"/profiles/empty.json":                   `{}`,
			"/sys/kernel/security/apparmor/profiles": "cri-containerd.apparmor.d (enforce)\nlocal (complain)\n",
		},
	}
	in := spec.Input{
		ID: "c0ffee",
		Config: &runtimeapi.ContainerConfig{
			Metadata: &runtimeapi.ContainerMetadata{Name: "app"},
			Linux: &runtimeapi.LinuxContainerConfig{
				Resources: &runtimeapi.LinuxContainerResources{},
				SecurityContext: &runtimeapi.LinuxContainerSecurityContext{
					NamespaceOptions: &runtimeapi.NamespaceOption{Pid: runtimeapi.NamespaceMode_CONTAINER},
				},
			},
		},
		Image: spec.Image{
			Name:   "example.com/app:1",
			Rootfs: fstest.MapFS{"etc/passwd": {Data: []byte(passwd)}, "etc/group": {Data: []byte(groups)}},
		},
		Sandbox: spec.Sandbox{
			ID: "beef",
			Config: &runtimeapi.PodSandboxConfig{
				Metadata: &runtimeapi.PodSandboxMetadata{Name: "web-0", Namespace: "shop", Uid: "1234"},
				Hostname: "web-0",
				Linux:    &runtimeapi.LinuxPodSandboxConfig{CgroupParent: "/kubepods/burstable/pod1234", SecurityContext: &runtimeapi.LinuxSandboxSecurityContext{}},
			},
			Namespaces: spec.Namespaces{Net: "/ns/net", IPC: "/ns/ipc", UTS: "/ns/uts"},
			Hostname:   "/sb/hostname", Hosts: "/sb/hosts", ResolvConf: "/sb/resolv.conf", Shm: "/sb/shm",
		},
		Host: spec.Host{
			Hostname: "node1", Cgroup: spec.CgroupV2, CgroupMountOptions: []string{"nsdelegate"}, Swap: true, Hugetlb: true, MinOOMScoreAdj: -1000,
			Capabilities: []string{"CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_NET_ADMIN"}, Seccomp: true,
		},
		Handler: spec.Handler{Name: "runc", RecursiveReadOnlyMounts: true, IDMapMounts: true, UserNamespaces: true},
		System:  sys,
	}
	in.Image.Config.Entrypoint = []string{"/app"}
	in.Image.Config.Cmd = []string{"--serve"}
	in.Image.Config.Env = []string{"PATH=/bin", "LANG=C"}
	return in, sys
}
