// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"fmt"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// hostDir is a directory of the node with a file in it and, below it, a mount point of that
// propagation.
func hostDir(t *testing.T, propagation string) string {
	t.Helper()
	dir := fmt.Sprintf("/var/lib/volume%d", serial.Add(1))
	for _, cmd := range [][]string{
		{"mkdir", "-p", dir + "/sub", dir + "/source"},
		{"touch", dir + "/flag", dir + "/source/inner"},
		{"mount", "--bind", dir, dir},
		{"mount", "--make-r" + propagation, dir},
	} {
		if _, err := node.Run(t.Context(), cmd[0], cmd[1:]...); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		if _, err := node.Run(context.WithoutCancel(t.Context()), "umount", "--recursive", dir); err != nil {
			t.Error(err)
		}
	})
	return dir
}

func mount(m *runtimeapi.Mount) func(*runtimeapi.ContainerConfig) {
	return func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{m}
		c.Linux.SecurityContext.Privileged = true
	}
}

func privilegedPod(t *testing.T) *pod {
	t.Helper()
	return newPod(t, func(c *runtimeapi.PodSandboxConfig) { c.Linux.SecurityContext.Privileged = true })
}

func TestVolumes(t *testing.T) {
	p := privilegedPod(t)
	dir := hostDir(t, "private")
	if _, err := node.Run(t.Context(), "ln", "-sfn", dir, dir+"-link"); err != nil {
		t.Fatal(err)
	}
	for _, host := range []string{dir, dir + "-link"} {
		m := &runtimeapi.Mount{HostPath: host, ContainerPath: "/v"}
		id, _ := p.start(mount(m))
		p.sh(id, "test -e /v/flag && touch /v/written")
		got := p.status(id).GetMounts()
		if len(got) != 1 || got[0].GetHostPath() != host || got[0].GetContainerPath() != "/v" || got[0].GetReadonly() {
			t.Errorf("status: %v", got)
		}
	}
	id, _ := p.start(mount(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/v", Readonly: true}))
	p.fails(id, "touch /v/x", "Read-only file system")
}

func TestPropagation(t *testing.T) {
	p := privilegedPod(t)
	for _, tt := range []struct {
		host    string
		mode    runtimeapi.MountPropagation
		in, out bool
	}{
		{"private", runtimeapi.MountPropagation_PROPAGATION_PRIVATE, false, false},
		{"shared", runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER, true, false},
		{"shared", runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL, true, true},
	} {
		t.Run(tt.mode.String(), func(t *testing.T) {
			dir := hostDir(t, tt.host)
			id, _ := p.start(mount(&runtimeapi.Mount{HostPath: dir, ContainerPath: dir, Propagation: tt.mode}))
			if got := p.status(id).GetMounts()[0].GetPropagation(); got != tt.mode {
				t.Errorf("status says %s", got)
			}
			if _, err := node.Run(t.Context(), "mount", "--bind", dir+"/source", dir+"/sub"); err != nil {
				t.Fatal(err)
			}
			_, _, code := p.exec(id, "test", "-e", dir+"/sub/inner")
			if (code == 0) != tt.in {
				t.Errorf("a mount of the node is seen inside: %t", code == 0)
			}
			p.sh(id, "mkdir "+dir+"/inside && mount --bind /etc "+dir+"/inside")
			_, err := node.ReadFile(dir + "/inside/passwd")
			if (err == nil) != tt.out {
				t.Errorf("a mount of the container is seen outside: %t", err == nil)
			}
		})
	}
}

func TestRecursiveReadOnly(t *testing.T) {
	p := privilegedPod(t)
	dir := hostDir(t, "private")
	if _, err := node.Run(t.Context(), "mount", "-t", "tmpfs", "x", dir+"/sub"); err != nil {
		t.Fatal(err)
	}
	id, _ := p.start(mount(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/v", Readonly: true}))
	p.sh(id, "touch /v/sub/x")
	id, _ = p.start(mount(&runtimeapi.Mount{HostPath: dir, ContainerPath: "/v", Readonly: true, RecursiveReadOnly: true}))
	p.fails(id, "touch /v/sub/y", "Read-only file system")
	for _, bad := range []*runtimeapi.Mount{
		{Readonly: true, RecursiveReadOnly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_HOST_TO_CONTAINER},
		{Readonly: true, RecursiveReadOnly: true, Propagation: runtimeapi.MountPropagation_PROPAGATION_BIDIRECTIONAL},
		{Readonly: false, RecursiveReadOnly: true},
	} {
		bad.HostPath, bad.ContainerPath = dir, "/v"
		if _, _, err := p.create(mount(bad)); err == nil {
			t.Errorf("accepted: %v", bad)
		}
	}
}

// TestImageVolume mounts an image's content.
func TestImageVolume(t *testing.T) {
	p := newPod(t, nil)
	volume := func(readonly bool, sub string) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) {
			c.Mounts = []*runtimeapi.Mount{{
				ContainerPath: "/v", Readonly: readonly, ImageSubPath: sub, Image: &runtimeapi.ImageSpec{Image: cluster.BusyboxImage, UserSpecifiedImage: cluster.BusyboxImage},
			}}
		}
	}
	id, _ := p.start(volume(true, ""))
	p.sh(id, "/v/bin/ls /v/etc/passwd")
	p.fails(id, "touch /v/x", "Read-only file system")
	id, _ = p.start(volume(true, "etc"))
	p.sh(id, "ls /v/passwd && test ! -e /v/etc")
	if _, _, err := p.create(volume(true, "not-there")); err == nil {
		t.Error("a sub-path that is not in the image is accepted")
	}
}
