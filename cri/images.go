// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"context"

	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/container"
	"github.com/nodeagent/nodeagent/cri/containerd"
	"github.com/nodeagent/nodeagent/cri/image"
	"github.com/nodeagent/nodeagent/cri/store"
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
		Checkpoint: i.Checkpoint,
	}
	if len(i.RepoTags) > 0 {
		out.Tag = i.RepoTags[0]
	}
	return out, nil
}

// MountVolume mounts an image for a sandbox, once however often it is asked for.
func (f imageFinder) MountVolume(ctx context.Context, sb *store.Sandbox, m *runtimeapi.Mount) (path, ref string, err error) {
	v, err := f.images.MountVolume(ctx, image.VolumeRequest{
		Owner: sb.ID, Ref: m.GetImage().GetImage(), Handler: sb.Handler, SubPath: m.GetImageSubPath(),
	})
	if err != nil {
		return "", "", err
	}
	return v.Path, v.ImageRef, nil
}

// Unpack makes the image's snapshots.
func (f imageFinder) Unpack(ctx context.Context, i container.Image, snapshotter string) error {
	rec, err := f.containerd.ImageRecord(ctx, i.Name)
	if err != nil {
		return err
	}
	return f.containerd.UnpackImage(ctx, rec, snapshotter)
}
