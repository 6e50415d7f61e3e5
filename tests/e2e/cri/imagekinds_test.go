// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"
	"slices"
	"strings"
	"testing"
	"time"

	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// TestImageTags has one image with three tags, and two images that differ.
func TestImageTags(t *testing.T) {
	tags := []string{"registry.local/tags:1", "registry.local/tags:2", "registry.local/tags:3"}
	ids := map[string]bool{}
	for _, ref := range tags {
		ids[pulled(t, ref).GetId()] = true
	}
	im := imageStatus(t, tags[0])
	got := slices.Sorted(slices.Values(im.GetRepoTags()))
	if len(ids) != 1 || !slices.Equal(got, tags) || len(im.GetRepoDigests()) != 1 {
		t.Errorf("%d ids, tags %v, digests %v", len(ids), got, im.GetRepoDigests())
	}
	a, b := pulled(t, "registry.local/different:1"), pulled(t, "registry.local/different:2")
	n := 0
	for _, l := range listed(t, "") {
		if slices.Contains([]string{im.GetId(), a.GetId(), b.GetId()}, l.GetId()) {
			n++
		}
	}
	if n != 3 {
		t.Errorf("%d of three images are listed", n)
	}
	removed(t, tags[1])
	for _, ref := range tags {
		removed(t, ref)
	}
	removed(t, a.GetId())
	if imageStatus(t, tags[0]) != nil || imageStatus(t, a.GetId()) != nil || imageStatus(t, b.GetId()) == nil {
		t.Error("the wrong images are left")
	}
	removed(t, b.GetId())
}

// TestImageUsers finds the user of an image, by number or by name.
func TestImageUsers(t *testing.T) {
	for tag, want := range map[string]struct {
		uid  int64
		name string
	}{"uid": {1002, ""}, "uid-group": {1003, ""}, "name": {0, "www-data"}, "name-group": {0, "www-data"}} {
		ref := "registry.local/user:" + tag
		im := pulled(t, ref)
		if im.GetUid().GetValue() != want.uid || im.GetUsername() != want.name || (im.GetUid() == nil) != (want.name != "") {
			t.Errorf("%s: %v %q", ref, im.GetUid(), im.GetUsername())
		}
		removed(t, ref)
	}
}

// TestImageStatusVerbose finds an image by its other names, and is told more when it asks for it.
func TestImageStatusVerbose(t *testing.T) {
	const ref = "registry.local/different:1"
	pulled(t, ref)
	r, err := images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: spec(ref), Verbose: true})
	if err != nil || len(r.GetInfo()) == 0 {
		t.Errorf("verbose: %v, %v", r, err)
	}
	digest := r.GetImage().GetRepoDigests()[0]
	_, sum, _ := strings.Cut(digest, "@")
	for _, form := range []string{ref + "@" + sum, strings.TrimPrefix(r.GetImage().GetId(), "sha256:")} {
		if got := imageStatus(t, form); got.GetId() != r.GetImage().GetId() {
			t.Errorf("%s is %v", form, got)
		}
	}
	removed(t, ref)
}

// TestPullDeadline is given no time.
func TestPullDeadline(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Millisecond)
	defer cancel()
	_, err := images.PullImage(ctx, &runtimeapi.PullImageRequest{Image: spec("registry.local/different:2")})
	if status.Code(err) != codes.DeadlineExceeded {
		t.Errorf("a pull without time: %v", err)
	}
	removed(t, pulled(t, "registry.local/different:2").GetId())
}
