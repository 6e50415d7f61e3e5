// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"

	"github.com/nodeagent/nodeagent/cri/container"
	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/image"
)

// imageFinder is the image service as containers use it.
type imageFinder struct {
	images     *image.Service
	containerd *containerd.Client
}

var _ container.Images = imageFinder{}

// Resolve finds an image in memory.
func (f imageFinder) Resolve(ctx context.Context, ref string) (container.Image, error) {
	i, err := f.images.Resolve(ctx, ref)
	if err != nil {
		return container.Image{}, err
	}
	out := container.Image{
		ID: i.ID, Ref: i.Ref(), Name: i.Name, Tag: i.Ref(), ChainID: i.ChainID.String(), Config: i.Config.Config,
	}
	if len(i.RepoTags) > 0 {
		out.Tag = i.RepoTags[0]
	}
	return out, nil
}

// Unpack makes the image's snapshots.
func (f imageFinder) Unpack(ctx context.Context, i container.Image, snapshotter string) error {
	rec, err := f.containerd.ImageRecord(ctx, i.Name)
	if err != nil {
		return err
	}
	return f.containerd.UnpackImage(ctx, rec, snapshotter)
}
