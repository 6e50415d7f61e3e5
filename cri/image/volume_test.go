// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mountinfo"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/image"
)

// pulled pushes an image and pulls it.
func (n *node) pulled(t *testing.T, r *registry, name string, seed uint64) pushed {
	t.Helper()
	img := r.push(t, name, seed, "", 4096)
	if _, err := n.images.PullImage(t.Context(), pullRequest(img.ref, nil)); err != nil {
		t.Fatal(err)
	}
	return img
}

func TestRootVolume(t *testing.T) {
	n := newNode(t)
	img := n.pulled(t, newRegistry(t), "data:v1", 1)
	var wg sync.WaitGroup
	for range 4 { // the containers of a pod
		wg.Go(func() {
			v, err := n.images.MountVolume(t.Context(), image.VolumeRequest{Owner: "pod", Ref: img.ref})
			if err != nil {
				t.Error(err)
				return
			}
			if b, err := os.ReadFile(filepath.Join(v.Path, "file0")); err != nil || len(b) != 4096 {
				t.Errorf("%d bytes, %v", len(b), err)
			}
			if !strings.HasSuffix(v.ImageRef, img.manifest.String()) {
				t.Errorf("image_ref %s", v.ImageRef)
			}
			if err := os.WriteFile(filepath.Join(v.Path, "new"), nil, 0o600); err == nil {
				t.Error("writable")
			}
		})
	}
	wg.Wait()
	for sub, want := range map[string]string{"dir": "/dir", "/dir/": "/dir", "inside": "/dir"} {
		v, err := n.images.MountVolume(t.Context(), image.VolumeRequest{Owner: "pod", Ref: img.id, SubPath: sub, Handler: "runc"})
		if err != nil || !strings.HasSuffix(v.Path, want) {
			t.Errorf("%q: %v, %v", sub, v, err)
		}
	}
	n.start(t) // another daemon
	for range 2 {
		if err := n.images.UnmountVolumes(t.Context(), "pod"); err != nil {
			t.Fatal(err)
		}
	}
	n.expectNoVolumes(t)
}

// expectNoVolumes checks that nothing of a volume is left.
func (n *node) expectNoVolumes(t *testing.T) {
	t.Helper()
	mounts, err := mountinfo.GetMounts(mountinfo.PrefixFilter(n.cfg.StateDir))
	if err != nil || len(mounts) != 0 {
		t.Errorf("mounts left: %v, %v", mounts, err)
	}
	if owners, err := n.images.VolumeOwners(); err != nil || len(owners) != 0 {
		t.Errorf("owners left: %v, %v", owners, err)
	}
	usages, err := n.ctrd.SnapshotUsages(t.Context(), "overlayfs", nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, u := range usages {
		if !u.Committed {
			t.Errorf("snapshot left: %v", u)
		}
	}
}

func TestRootVolumeFails(t *testing.T) {
	n := newNode(t)
	img := n.pulled(t, newRegistry(t), "data:v1", 1)
	for _, c := range []struct {
		r  image.VolumeRequest
		is func(error) bool
	}{
		{image.VolumeRequest{Owner: "pod", Ref: "none"}, errdefs.IsNotFound},
		{image.VolumeRequest{Owner: "pod", Ref: img.id, SubPath: "none"}, errdefs.IsNotFound},
		{image.VolumeRequest{Owner: "pod", Ref: img.id, SubPath: "outside"}, errdefs.IsNotFound},
		{image.VolumeRequest{Owner: "pod", Ref: img.id, SubPath: "file0"}, errdefs.IsInvalidArgument},
		{image.VolumeRequest{Owner: "pod", Ref: img.id, SubPath: "dir/../.."}, errdefs.IsInvalidArgument},
		{image.VolumeRequest{Owner: "pod", Ref: img.id, Handler: "none"}, errdefs.IsInvalidArgument},
		{image.VolumeRequest{Owner: "a/b", Ref: img.id}, errdefs.IsInvalidArgument},
	} {
		_, err := n.images.MountVolume(t.Context(), c.r)
		if err == nil || !strings.HasPrefix(err.Error(), "ImageVolumeMountFailed: ") || !c.is(err) {
			t.Errorf("%+v: %v", c.r, err)
		}
	}
	if err := n.images.UnmountVolumes(t.Context(), "pod"); err != nil {
		t.Error(err)
	}
}

// TestRootUnpackOther: an image that is there but not unpacked for the
// handler's snapshotter is unpacked when it is needed.
func TestRootUnpackOther(t *testing.T) {
	n := newNode(t, func(c *image.Config) { c.Snapshotters = map[string]string{"runc": "native"} })
	img := n.pulled(t, newRegistry(t), "data:v1", 1)
	v, err := n.images.MountVolume(t.Context(), image.VolumeRequest{Owner: "pod", Ref: img.ref, Handler: "runc"})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(v.Path, "file0")); err != nil {
		t.Error(err)
	}
	if err := n.images.UnmountVolumes(t.Context(), "pod"); err != nil {
		t.Error(err)
	}
	req := pullRequest(img.ref, nil)
	req.Image.RuntimeHandler = "runc"
	if _, err := n.images.PullImage(t.Context(), req); err != nil {
		t.Errorf("pull for the other snapshotter: %v", err)
	}
	if _, err := n.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{}); err != nil {
		t.Error(err)
	}
}
