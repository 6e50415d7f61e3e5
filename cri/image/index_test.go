// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"os/exec"
	"path/filepath"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/image"
)

// ctr runs containerd's own client.
func (n *node) ctr(t *testing.T, args ...string) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), filepath.Join(cache(), "bin", "ctr"), append([]string{"-a", n.socket, "-n", "k8s.io"}, args...)...)
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("ctr %v: %v\n%s", args, err, out)
	}
}

func (n *node) has(t *testing.T, ref string) bool {
	t.Helper()
	resp, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
	if err != nil {
		t.Fatal(err)
	}
	return resp.Image != nil
}

// TestRootOthers: what others pull, tag and remove shows without a call to us.
func TestRootOthers(t *testing.T) {
	n, r := newNode(t), newRegistry(t)
	img := r.push(t, "other:v1", 1, "", 4096)
	n.ctr(t, "images", "pull", "--plain-http", img.ref)
	eventually(t, "the image of ctr", func() bool { return n.has(t, img.ref) })
	n.expectList(t, img.id)
	n.ctr(t, "images", "tag", img.ref, "docker.io/library/alias:1")
	eventually(t, "the tag of ctr", func() bool { return n.has(t, "alias:1") })
	n.ctr(t, "images", "rm", img.ref)
	eventually(t, "the first name to go", func() bool { return !n.has(t, img.ref) })
	n.expectList(t, img.id)
	n.ctr(t, "images", "rm", "docker.io/library/alias:1")
	eventually(t, "the image to go", func() bool { return !n.has(t, img.id) })
	n.expectList(t)
}

// TestRootTagMoves: a tag that moves on leaves the old image without it.
func TestRootTagMoves(t *testing.T) {
	n, r := newNode(t), newRegistry(t)
	old := n.pulled(t, r, "app:latest", 1)
	fresh := n.pulled(t, r, "app:latest", 2)
	got, err := n.images.Resolve(t.Context(), old.id)
	if err != nil || len(got.RepoTags) != 0 || len(got.RepoDigests) != 1 {
		t.Errorf("old image %+v, %v", got, err)
	}
	got, err = n.images.Resolve(t.Context(), fresh.ref)
	if err != nil || got.ID != fresh.id || len(got.RepoTags) != 1 {
		t.Errorf("fresh image %+v, %v", got, err)
	}
}

// TestRootPinned: pinned by configuration, also seen by the next daemon.
func TestRootPinned(t *testing.T) {
	n := newNode(t)
	r := newRegistry(t)
	n.cfg.Pinned = []string{r.host + "/pause:1"}
	n.start(t)
	img, other := n.pulled(t, r, "pause:1", 1), n.pulled(t, r, "app:1", 2)
	for range 2 {
		for ref, want := range map[string]bool{img.ref: true, other.ref: false} {
			if got, err := n.images.Resolve(t.Context(), ref); err != nil || got.Pinned != want {
				t.Errorf("%s: %+v, %v", ref, got, err)
			}
		}
		n.start(t)
	}
}

func TestRootFsInfo(t *testing.T) {
	n := newNode(t)
	img := n.pulled(t, newRegistry(t), "app:1", 1)
	v, err := n.images.Resolve(t.Context(), img.ref)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := n.ctrd.PrepareSnapshot(t.Context(), "overlayfs", "ctr1", v.ChainID.String(), nil); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the layer's size", func() bool {
		l, ok := n.images.Layer("", "ctr1")
		return ok && l.Inodes > 0 && l.Mountpoint != "" && l.Device != ""
	})
	eventually(t, "the images' size", func() bool {
		info, err := n.images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
		if err != nil {
			t.Fatal(err)
		}
		return len(info.ImageFilesystems) == 1 && len(info.ContainerFilesystems) == 1 &&
			info.ImageFilesystems[0].UsedBytes.Value >= 4096 && info.ImageFilesystems[0].Timestamp > 0 &&
			info.ImageFilesystems[0].FsId.Mountpoint == info.ContainerFilesystems[0].FsId.Mountpoint
	})
	if err := n.ctrd.RemoveSnapshot(t.Context(), "overlayfs", "ctr1"); err != nil {
		t.Fatal(err)
	}
	eventually(t, "the layer to go", func() bool {
		l, ok := n.images.Layer("overlayfs", "ctr1") // what is not known is new, and empty
		return ok && l.Inodes == 0 && l.Mountpoint != ""
	})
}

func TestConfig(t *testing.T) {
	if err := image.Default().Validate(); err != nil {
		t.Error(err)
	}
	bad := image.Config{
		HostsDir: "a", Pinned: []string{"ok", "BAD REF"}, Snapshotters: map[string]string{"x": ""},
		PullProgressTimeout: -1, PullRetries: -1, MaxParallelPulls: -1,
	}
	want := "hostsDir: \"a\" is not absolute\nstateDir: must not be empty\npinned[1]: \"BAD REF\": invalid reference format: repository name (library/BAD REF) must be lowercase\n" +
		"snapshotters[x]: must not be empty\npullProgressTimeout: -1ns is negative\npullRetries: -1 is negative\nmaxParallelPulls: -1 is negative\nusageInterval: 0s is not positive"
	if err := bad.Validate(); err == nil || err.Error() != want {
		t.Errorf("%v", err)
	}
}
