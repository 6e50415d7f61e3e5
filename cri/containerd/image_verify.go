// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"

	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/images"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/identity"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// VerifyImage reads all blobs of an image for this platform and returns those
// that are missing or not what their digests say. It reads every byte.
func (c *Client) VerifyImage(ctx context.Context, target ocispec.Descriptor) ([]digest.Digest, error) {
	if c.c == nil {
		return nil, ErrNotConnected
	}
	store := c.c.ContentStore()
	// The index first: nothing below it can be trusted before.
	if ok, err := verifyBlob(ctx, store, target); err != nil || !ok {
		return []digest.Digest{target.Digest}, err
	}
	var bad []digest.Digest
	handler := images.HandlerFunc(func(ctx context.Context, desc ocispec.Descriptor) ([]ocispec.Descriptor, error) {
		ok, err := verifyBlob(ctx, store, desc)
		if err != nil {
			return nil, err
		}
		if !ok {
			bad = append(bad, desc.Digest)
			return nil, images.ErrSkipDesc
		}
		return images.Children(ctx, store, desc)
	})
	only := images.LimitManifests(images.FilterPlatforms(handler, platforms.Default()), platforms.Default(), 1)
	if err := images.Walk(ctx, only, target); err != nil {
		return nil, fmt.Errorf("verify image %s: %w", target.Digest, err)
	}
	return bad, nil
}

// verifyBlob reads one blob; false when it is missing or another.
func verifyBlob(ctx context.Context, store content.Store, desc ocispec.Descriptor) (bool, error) {
	r, err := store.ReaderAt(ctx, ocispec.Descriptor{Digest: desc.Digest})
	if errdefs.IsNotFound(err) {
		return false, nil
	}
	if err != nil {
		return false, fmt.Errorf("open blob %s: %w", desc.Digest, err)
	}
	defer r.Close() //nolint:errcheck // read-only
	v := desc.Digest.Verifier()
	n, err := io.Copy(v, content.NewReader(r))
	if err != nil {
		return false, fmt.Errorf("read blob %s: %w", desc.Digest, err)
	}
	return n == desc.Size && v.Verified(), nil
}

// DeleteContent removes blobs; absent is success.
func (c *Client) DeleteContent(ctx context.Context, blobs ...digest.Digest) error {
	if c.c == nil {
		return ErrNotConnected
	}
	var errs []error
	for _, d := range blobs {
		if err := c.c.ContentStore().Delete(ctx, d); err != nil && !errdefs.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete blob %s: %w", d, err))
		}
	}
	return errors.Join(errs...)
}

// RemoveLayers removes the snapshots of layers, the topmost first, down to the
// first that another image or a container uses. It fails with
// errdefs.ErrFailedPrecondition when that is the topmost one.
func (c *Client) RemoveLayers(ctx context.Context, snapshotter string, diffIDs []digest.Digest) error {
	if c.c == nil {
		return ErrNotConnected
	}
	s := c.c.SnapshotService(snapshotter)
	for n := len(diffIDs); n > 0; n-- {
		key := identity.ChainID(diffIDs[:n]).String()
		err := s.Remove(ctx, key)
		if errdefs.IsFailedPrecondition(err) && n < len(diffIDs) {
			return nil
		}
		if err != nil && !errdefs.IsNotFound(err) {
			return fmt.Errorf("remove snapshot %s: %w", key, err)
		}
	}
	return nil
}

// ContentRoot returns the directory of containerd's blobs.
func (c *Client) ContentRoot(ctx context.Context) (string, error) {
	return c.pluginRoot(ctx, "io.containerd.content.v1", "content")
}
