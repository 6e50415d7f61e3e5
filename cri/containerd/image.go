// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"encoding/json"
	"fmt"
	"time"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodeagent/nodeagent/cri/checkpoint"
)

// ErrNotConnected is the fate of calls before Start.
var ErrNotConnected = fmt.Errorf("containerd is not connected: %w", errdefs.ErrUnavailable)

// ImageRecord is one name in containerd's image store.
type ImageRecord struct {
	Name      string
	Target    ocispec.Descriptor
	Labels    map[string]string
	UpdatedAt time.Time
}

// ImageInfo is what an image's manifest and configuration say, for this
// machine's platform.
type ImageInfo struct {
	// ConfigDigest is the image's id.
	ConfigDigest digest.Digest
	// ChainID names the snapshot of all layers; empty for an image without any.
	ChainID digest.Digest
	// Size in bytes of all blobs as they are in the registry.
	Size   int64
	Config ocispec.Image
	Layers []ocispec.Descriptor
	// Checkpoint means that it holds a container's checkpoint.
	Checkpoint bool
}

// ImageRecords lists all names.
func (c *Client) ImageRecords(ctx context.Context) ([]ImageRecord, error) {
	store, err := c.images()
	if err != nil {
		return nil, err
	}
	list, err := store.List(ctx)
	if err != nil {
		return nil, fmt.Errorf("list images: %w", err)
	}
	records := make([]ImageRecord, 0, len(list))
	for _, img := range list {
		records = append(records, recordOf(img))
	}
	return records, nil
}

// ImageRecord returns one name; errdefs.ErrNotFound when there is none.
func (c *Client) ImageRecord(ctx context.Context, name string) (ImageRecord, error) {
	store, err := c.images()
	if err != nil {
		return ImageRecord{}, err
	}
	img, err := store.Get(ctx, name)
	if err != nil {
		return ImageRecord{}, fmt.Errorf("get image %s: %w", name, err)
	}
	return recordOf(img), nil
}

// PutImageRecord creates the name or points it to the target; labels are
// added to those that it has.
func (c *Client) PutImageRecord(ctx context.Context, rec ImageRecord) error {
	store, err := c.images()
	if err != nil {
		return err
	}
	img := images.Image{Name: rec.Name, Target: rec.Target, Labels: rec.Labels}
	_, err = store.Create(ctx, img)
	if err == nil {
		return nil
	}
	if !errdefs.IsAlreadyExists(err) {
		return fmt.Errorf("create image %s: %w", rec.Name, err)
	}
	fields := []string{"target"}
	for k := range rec.Labels {
		fields = append(fields, "labels."+k)
	}
	if _, err := store.Update(ctx, img, fields...); err != nil {
		return fmt.Errorf("update image %s: %w", rec.Name, err)
	}
	return nil
}

// DeleteImageRecord removes a name; absent is success. With collect it returns
// when containerd has freed what nothing refers to any more.
func (c *Client) DeleteImageRecord(ctx context.Context, name string, collect bool) error {
	store, err := c.images()
	if err != nil {
		return err
	}
	var opts []images.DeleteOpt
	if collect {
		opts = append(opts, images.SynchronousDelete())
	}
	if err := store.Delete(ctx, name, opts...); err != nil && !errdefs.IsNotFound(err) {
		return fmt.Errorf("delete image %s: %w", name, err)
	}
	return nil
}

// InspectImage reads manifest and configuration of an image. Content that is
// missing, or no manifest for this platform, is errdefs.ErrNotFound.
func (c *Client) InspectImage(ctx context.Context, target ocispec.Descriptor) (ImageInfo, error) {
	if c.c == nil {
		return ImageInfo{}, ErrNotConnected
	}
	store := c.c.ContentStore()
	manifest, err := images.Manifest(ctx, store, target, platforms.Default())
	if err != nil {
		return ImageInfo{}, fmt.Errorf("read manifest of image %s: %w", target.Digest, err)
	}
	blob, err := content.ReadBlob(ctx, store, manifest.Config)
	if err != nil {
		return ImageInfo{}, fmt.Errorf("read config of image %s: %w", target.Digest, err)
	}
	info := ImageInfo{
		ConfigDigest: manifest.Config.Digest,
		Size:         target.Size + manifest.Config.Size,
		Layers:       manifest.Layers,
		Checkpoint:   manifest.Annotations[checkpoint.AnnotationName] != "",
	}
	if err := json.Unmarshal(blob, &info.Config); err != nil {
		return ImageInfo{}, fmt.Errorf("decode config of image %s: %w", target.Digest, err)
	}
	for _, layer := range manifest.Layers {
		info.Size += layer.Size
	}
	if ids := info.Config.RootFS.DiffIDs; len(ids) > 0 {
		info.ChainID = identity.ChainID(ids)
	}
	return info, nil
}

// images returns containerd's image store.
func (c *Client) images() (images.Store, error) {
	if c.c == nil {
		return nil, ErrNotConnected
	}
	return c.c.ImageService(), nil
}

func recordOf(img images.Image) ImageRecord {
	return ImageRecord{Name: img.Name, Target: img.Target, Labels: img.Labels, UpdatedAt: img.UpdatedAt}
}
