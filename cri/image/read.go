// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/containerd/errdefs"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"google.golang.org/grpc"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// streamChunk is how many images go into one message of StreamImages.
const streamChunk = 100

// Resolve finds an image by id, tag, digest, tag@digest, short name or a
// unique beginning of the id, without asking containerd. Absent is
// errdefs.ErrNotFound.
func (s *Service) Resolve(_ context.Context, ref string) (*Image, error) {
	if ref == "" {
		return nil, fmt.Errorf("image reference is empty: %w", errdefs.ErrInvalidArgument)
	}
	return s.index.lookup(ref)
}

// ListImages serves the CRI from memory. A filter names one image as in
// Resolve; one that is absent gives an empty list.
func (s *Service) ListImages(_ context.Context, r *runtimeapi.ListImagesRequest) (*runtimeapi.ListImagesResponse, error) {
	images, err := s.filtered(r.GetFilter())
	if err != nil {
		return nil, err
	}
	return &runtimeapi.ListImagesResponse{Images: images}, nil
}

// StreamImages is ListImages in messages of bounded size.
func (s *Service) StreamImages(r *runtimeapi.StreamImagesRequest, stream grpc.ServerStreamingServer[runtimeapi.StreamImagesResponse]) error {
	images, err := s.filtered(r.GetFilter())
	if err != nil {
		return err
	}
	for len(images) > 0 {
		n := min(len(images), streamChunk)
		if err := stream.Send(&runtimeapi.StreamImagesResponse{Images: images[:n]}); err != nil {
			return err
		}
		images = images[n:]
	}
	return nil
}

// filtered lists the images that a filter lets through.
func (s *Service) filtered(f *runtimeapi.ImageFilter) ([]*runtimeapi.Image, error) {
	if ref := f.GetImage().GetImage(); ref != "" {
		img, err := s.index.lookup(ref)
		if errdefs.IsNotFound(err) {
			return nil, nil
		}
		if err != nil {
			return nil, err
		}
		return []*runtimeapi.Image{img.CRI()}, nil
	}
	all := s.index.all()
	out := make([]*runtimeapi.Image, 0, len(all))
	for _, img := range all {
		out = append(out, img.CRI())
	}
	return out, nil
}

// ImageStatus describes one image. An absent one is an empty response, as the
// kubelet expects.
func (s *Service) ImageStatus(ctx context.Context, r *runtimeapi.ImageStatusRequest) (*runtimeapi.ImageStatusResponse, error) {
	img, err := s.Resolve(ctx, r.GetImage().GetImage())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.ImageStatusResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	resp := &runtimeapi.ImageStatusResponse{Image: img.CRI()}
	if r.GetVerbose() {
		info, err := json.Marshal(verbose{ChainID: img.ChainID.String(), ImageSpec: img.Config})
		if err != nil {
			return nil, fmt.Errorf("describe image %s: %w", img.ID, err)
		}
		resp.Info = map[string]string{"info": string(info)}
	}
	return resp, nil
}

// verbose is the info of a verbose ImageStatus, with containerd's names.
type verbose struct {
	ChainID   string        `json:"chainID"`
	ImageSpec ocispec.Image `json:"imageSpec"`
}

// RemoveImage removes all names of an image, in all registries, and returns
// when its space is free. Absent is success. Containers that use it go on.
func (s *Service) RemoveImage(ctx context.Context, r *runtimeapi.RemoveImageRequest) (*runtimeapi.RemoveImageResponse, error) {
	img, err := s.Resolve(ctx, r.GetImage().GetImage())
	if errdefs.IsNotFound(err) {
		return &runtimeapi.RemoveImageResponse{}, nil
	}
	if err != nil {
		return nil, err
	}
	records := s.index.records(img.ID)
	for i, name := range records {
		last := i == len(records)-1
		if err := s.deps.Records.DeleteImageRecord(ctx, name, last); err != nil {
			return nil, fmt.Errorf("remove image %s: %w", img.ID, err)
		}
		s.index.drop(name)
	}
	return &runtimeapi.RemoveImageResponse{}, nil
}
