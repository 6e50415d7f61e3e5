// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"errors"
	"net/http/httptest"
	"slices"
	"testing"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// fakeImages has images, and containers that use some.
type fakeImages struct {
	images  []*runtimeapi.Image
	uses    []*runtimeapi.Container
	removed []string
	fails   string // the image that cannot be removed
}

func (f *fakeImages) ListImages(context.Context, *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	return &runtimeapi.ListImagesResponse{Images: f.images}, nil
}

func (f *fakeImages) ListContainers(context.Context, *runtimeapi.ListContainersRequest) (*runtimeapi.ListContainersResponse, error) {
	return &runtimeapi.ListContainersResponse{Containers: f.uses}, nil
}

func (f *fakeImages) RemoveImage(_ context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	if r.Image.Image == f.fails {
		return nil, errors.New("it is held")
	}
	f.removed = append(f.removed, r.Image.Image)
	return &runtimeapi.RemoveImageResponse{}, nil
}

func someImages() *fakeImages {
	return &fakeImages{
		images: []*runtimeapi.Image{
			{Id: "sha256:1", RepoTags: []string{"one:v1"}},
			{Id: "sha256:2", RepoTags: []string{"two:v1"}, RepoDigests: []string{"two@sha256:22"}},
			{Id: "sha256:3", RepoTags: []string{"three:v1"}, Pinned: true},
			{Id: "sha256:4", RepoTags: []string{"four:v1"}, Size: 5},
			{Id: "sha256:5", RepoDigests: []string{"five@sha256:55"}},
		},
		uses: []*runtimeapi.Container{
			{ImageId: "sha256:1", Image: &runtimeapi.ImageSpec{Image: "other"}},
			{Image: &runtimeapi.ImageSpec{Image: "two@sha256:22"}},
		},
	}
}

// TestCollectImages: what is used by any name, or pinned, stays; a failure is
// told and does not keep the others.
func TestCollectImages(t *testing.T) {
	for _, tt := range []struct {
		query   string
		fails   string
		removed []string
		want    []garbage
	}{
		{"", "", nil, nil},
		{"?images=true&dryRun=true", "", nil, []garbage{
			{Kind: "image", Object: "four:v1", Why: "no container uses it", Bytes: 5},
			{Kind: "image", Object: "five@sha256:55", Why: "no container uses it"},
		}},
		{"?images=true", "sha256:4", []string{"sha256:5"}, []garbage{
			{Kind: "image", Object: "four:v1", Why: "no container uses it", Bytes: 5, Error: "it is held"},
			{Kind: "image", Object: "five@sha256:55", Why: "no container uses it", Removed: true},
		}},
	} {
		f := someImages()
		f.fails = tt.fails
		broken := collector{"volume", func(context.Context, gcRequest) ([]garbage, error) { return nil, errors.New("a room fails") }}
		got, err := collect([]collector{broken, collectImages(f, f)})(httptest.NewRequest("POST", "/v1/gc"+tt.query, nil))
		if err != nil || len(got) == 0 || got[0] != (garbage{Kind: "volume", Error: "a room fails"}) {
			t.Fatalf("%q: %+v, %v", tt.query, got, err)
		}
		if got = got[1:]; !slices.Equal(got, tt.want) || !slices.Equal(f.removed, tt.removed) {
			t.Errorf("%q: %+v, removed %v; want %+v, %v", tt.query, got, f.removed, tt.want, tt.removed)
		}
	}
}
