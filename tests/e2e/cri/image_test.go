// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/tests/e2e/cluster"
)

// The same image under other names: other images of the registry than those the tests run.
const (
	otherTag    = "docker.io/library/busybox:latest"
	agnhostName = "registry.k8s.io/e2e-test-images/agnhost"
)

func spec(ref string) *runtimeapi.ImageSpec { return &runtimeapi.ImageSpec{Image: ref} }

func pulled(t *testing.T, ref string) *runtimeapi.Image {
	t.Helper()
	r, err := images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: spec(ref)})
	if err != nil {
		t.Fatalf("pull %s: %v", ref, err)
	}
	im := imageStatus(t, ref)
	if im.GetId() == "" || im.GetId() != r.GetImageRef() {
		t.Errorf("pulling %s returns %q, its id is %q", ref, r.GetImageRef(), im.GetId())
	}
	return im
}

// imageStatus is nil when there is no such image.
func imageStatus(t *testing.T, ref string) *runtimeapi.Image {
	t.Helper()
	r, err := images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: spec(ref)})
	if err != nil {
		t.Fatalf("status of %s: %v", ref, err)
	}
	return r.GetImage()
}

func removed(t *testing.T, ref string) {
	t.Helper()
	for range 2 { // what is not there is removed already
		if _, err := images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: spec(ref)}); err != nil {
			t.Errorf("remove %s: %v", ref, err)
		}
	}
}

func listed(t *testing.T, filter string) []*runtimeapi.Image {
	t.Helper()
	req := &runtimeapi.ListImagesRequest{}
	if filter != "" {
		req.Filter = &runtimeapi.ImageFilter{Image: spec(filter)}
	}
	r, err := images.ListImages(t.Context(), req)
	if err != nil {
		t.Fatal(err)
	}
	return r.GetImages()
}

func TestImageByTagAndDigest(t *testing.T) {
	im := pulled(t, cluster.AgnhostImage)
	if !slices.Contains(im.GetRepoTags(), cluster.AgnhostImage) || len(im.GetRepoDigests()) != 1 || im.GetSize() == 0 {
		t.Errorf("status: %v", im)
	}
	digest := im.GetRepoDigests()[0]
	if !strings.HasPrefix(digest, agnhostName+"@sha256:") {
		t.Errorf("digest %q", digest)
	}
	for _, ref := range []string{cluster.AgnhostImage, digest, im.GetId()} {
		if got := imageStatus(t, ref); got.GetId() != im.GetId() {
			t.Errorf("%s is %v", ref, got)
		}
		if got := listed(t, ref); onNodeagent() && (len(got) != 1 || got[0].GetId() != im.GetId()) { // containerd lists all
			t.Errorf("list of %s: %v", ref, got)
		}
	}
	removed(t, im.GetId())
	if got := imageStatus(t, cluster.AgnhostImage); got != nil {
		t.Errorf("after the removal: %v", got)
	}
	byDigest := pulled(t, digest)
	if byDigest.GetId() != im.GetId() || !slices.Contains(byDigest.GetRepoDigests(), digest) {
		t.Errorf("by digest: %v", byDigest)
	}
	removed(t, digest)
	if got := imageStatus(t, digest); got != nil {
		t.Errorf("after the removal by digest: %v", got)
	}
	if _, err := images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: spec("registry.local/not/there:1")}); err == nil {
		t.Error("what the registry does not have is pulled")
	}
}

func TestImageWithoutTag(t *testing.T) {
	a, b := pulled(t, cluster.BusyboxImage), pulled(t, strings.TrimSuffix(otherTag, ":latest"))
	if a.GetId() != b.GetId() {
		t.Errorf("one image has the ids %s and %s", a.GetId(), b.GetId())
	}
	if tags := b.GetRepoTags(); !slices.Contains(tags, otherTag) || !slices.Contains(tags, cluster.BusyboxImage) {
		t.Errorf("tags %v", tags)
	}
	n := 0
	for _, im := range listed(t, "") {
		if im.GetId() == a.GetId() {
			n++
		}
	}
	if n != 1 {
		t.Errorf("it is listed %d times", n)
	}
}

// TestImageID finds the same id in whatever names an image.
func TestImageID(t *testing.T) {
	p := newPod(t, nil)
	id, _ := p.start(nil)
	im := imageStatus(t, cluster.BusyboxImage)
	s := p.status(id)
	if s.GetImageId() != "" && s.GetImageId() != im.GetId() {
		t.Errorf("the container's image is %s, not %s", s.GetImageId(), im.GetId())
	}
	if onNodeagent() && s.GetImageId() == "" {
		t.Error("the container has no image id")
	}
	r, err := rs.ListContainers(t.Context(), &runtimeapi.ListContainersRequest{Filter: &runtimeapi.ContainerFilter{Id: id}})
	if err != nil || len(r.GetContainers()) != 1 {
		t.Fatalf("list: %v, %v", r, err)
	}
	if got := r.GetContainers()[0].GetImageId(); got != s.GetImageId() {
		t.Errorf("listed with image %s", got)
	}
	byID, cfg, err := p.create(func(c *runtimeapi.ContainerConfig) { c.Image = spec(im.GetId()) })
	if err != nil || p.status(byID).GetImageRef() == "" {
		t.Errorf("container of image id %v: %v", cfg.GetImage(), err)
	}
	u := imageStatus(t, cluster.WebImage)
	if u.GetUid().GetValue() != 1000 {
		t.Errorf("the image's user is %v %q", u.GetUid(), u.GetUsername())
	}
	p.eventually(func() error {
		fs, err := images.ImageFsInfo(t.Context(), &runtimeapi.ImageFsInfoRequest{})
		if err == nil && (len(fs.GetImageFilesystems()) == 0 || fs.GetImageFilesystems()[0].GetUsedBytes().GetValue() == 0) {
			err = fmt.Errorf("file system of images: %v", fs)
		}
		return err
	})
}
