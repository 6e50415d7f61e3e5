// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestHostPaths mounts a file, what is not there, and what is below a mount.
func TestHostPaths(t *testing.T) {
	p := newPod(t, nil)
	dir := hostDir(t, "private")
	mounts := func(m ...*runtimeapi.Mount) func(*runtimeapi.ContainerConfig) {
		return func(c *runtimeapi.ContainerConfig) { c.Mounts = m }
	}
	id, _ := p.start(mounts(&runtimeapi.Mount{HostPath: dir + "/flag", ContainerPath: "/etc/deep/er/flag"}))
	p.sh(id, "test -f /etc/deep/er/flag && echo written >/etc/deep/er/flag")
	if got := string(mustRead(t, dir+"/flag")); got != "written\n" {
		t.Errorf("the file on the node has %q", got)
	}
	absent := dir + "/not/there"
	id, _ = p.start(mounts(&runtimeapi.Mount{HostPath: absent, ContainerPath: absent}))
	if got := p.sh(id, "ls -A "+absent); got != "" {
		t.Errorf("what was not there has %q", got)
	}
	p.sh(id, "touch "+absent+"/x")
	mustRead(t, absent+"/x")
	id, _ = p.start(mounts(
		&runtimeapi.Mount{HostPath: dir + "/source", ContainerPath: "/v/a/b"}, &runtimeapi.Mount{HostPath: dir, ContainerPath: "/v"},
		&runtimeapi.Mount{HostPath: "/etc/hostname", ContainerPath: "/v/a/b/inner", Readonly: true},
	))
	p.sh(id, "test -e /v/flag && test -s /v/a/b/inner")
	if onNodeagent() { // containerd takes them as relative to its own directory
		for _, bad := range []*runtimeapi.Mount{{HostPath: "relative", ContainerPath: "/v"}, {HostPath: dir}} {
			if _, _, err := p.create(mounts(bad)); err == nil {
				t.Errorf("accepted: %v", bad)
			}
		}
	}
}

// TestContainerDeviceInterface injects what a vendor's file describes.
func TestContainerDeviceInterface(t *testing.T) {
	const file = `{"cdiVersion":"0.6.0","kind":"vendor.test/thing","devices":[{"name":"one","containerEdits":{
		"env":["THING=one"],"deviceNodes":[{"path":"/dev/thing","hostPath":"/dev/null"}]}}]}`
	if err := node.WriteFile("/etc/cdi/thing.json", []byte(file)); err != nil {
		t.Fatal(err)
	}
	p := newPod(t, nil)
	id, _ := p.start(func(c *runtimeapi.ContainerConfig) {
		c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.test/thing=one"}}
	})
	if got := p.sh(id, "echo $THING; test -c /dev/thing && echo x >/dev/thing"); got != "one" {
		t.Errorf("the environment has %q", got)
	}
	_, _, err := p.create(func(c *runtimeapi.ContainerConfig) {
		c.CDIDevices = []*runtimeapi.CDIDevice{{Name: "vendor.test/thing=two"}}
	})
	if err == nil || !strings.Contains(err.Error(), "two") {
		t.Errorf("a device that nobody describes: %v", err)
	}
}

// TestImageVolumeDigest is told which image it got.
func TestImageVolumeDigest(t *testing.T) {
	if !onNodeagent() {
		t.Skip("containerd's plugin does not tell")
	}
	const ref = "registry.local/different:1"
	im := pulled(t, ref)
	p := newPod(t, nil)
	id, _ := p.start(func(c *runtimeapi.ContainerConfig) {
		c.Mounts = []*runtimeapi.Mount{{ContainerPath: "/v", Readonly: true, Image: &runtimeapi.ImageSpec{Image: ref}}}
	})
	got := p.status(id).GetMounts()[0].GetImage()
	if got.GetImageRef() != im.GetRepoDigests()[0] && got.GetImageRef() != im.GetId() {
		t.Errorf("the volume's image is %v, not %v", got, im)
	}
	if what := p.sh(id, "cat /v/etc/what"); what != "1" {
		t.Errorf("its content is %q", what)
	}
}
