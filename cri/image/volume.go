// SPDX-License-Identifier: Apache-2.0

package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/containerd/v2/core/mount"
	"github.com/containerd/errdefs"
	securejoin "github.com/cyphar/filepath-securejoin"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
	crierrors "k8s.io/cri-api/pkg/errors"
)

// Views makes read-only snapshots of images.
type Views interface {
	ViewImage(ctx context.Context, snapshotter, key, chainID string) ([]mount.Mount, error)
	RemoveView(ctx context.Context, snapshotter, key string) error
}

// VolumeRequest asks for an image as a volume.
type VolumeRequest struct {
	// Owner is the sandbox; its volumes go together.
	Owner string
	// Ref is the image, by any name that Resolve knows.
	Ref string
	// Handler is the sandbox's runtime handler.
	Handler string
	// SubPath is a directory in the image; empty means all of it.
	SubPath string
}

// Volume is an image that is mounted read-only.
type Volume struct {
	// Path is what to bind into the container, read-only.
	Path string
	// ImageRef is the digest that the container's status shows.
	ImageRef string
}

// MountVolume mounts an image for a sandbox, once however often it is asked
// for. Errors begin with the words that the kubelet looks for.
func (s *Service) MountVolume(ctx context.Context, r VolumeRequest) (*Volume, error) {
	v, err := s.mountVolume(ctx, r)
	if err != nil {
		return nil, fmt.Errorf("%w: image %s: %w", crierrors.ErrImageVolumeMountFailed, r.Ref, err)
	}
	return v, nil
}

func (s *Service) mountVolume(ctx context.Context, r VolumeRequest) (*Volume, error) {
	if r.Owner == "" || strings.ContainsRune(r.Owner, filepath.Separator) {
		return nil, fmt.Errorf("owner %q is not an id: %w", r.Owner, errdefs.ErrInvalidArgument)
	}
	if sub := strings.TrimLeft(r.SubPath, "/"); sub != "" && !filepath.IsLocal(sub) {
		return nil, fmt.Errorf("image_sub_path %q leaves the image: %w", r.SubPath, errdefs.ErrInvalidArgument)
	}
	img, err := s.Resolve(ctx, r.Ref)
	if err != nil {
		return nil, err
	}
	snapshotter, err := s.Snapshotter(r.Handler)
	if err != nil {
		return nil, err
	}
	if err := s.EnsureUnpacked(ctx, img, snapshotter); err != nil {
		return nil, err
	}
	s.volumeLock.Lock(r.Owner)
	defer s.volumeLock.Unlock(r.Owner) //nolint:errcheck // it is locked
	sum := sha256.Sum256([]byte(img.ID + snapshotter))
	name := hex.EncodeToString(sum[:8])
	dir := filepath.Join(s.volumesOf(r.Owner), name+"."+snapshotter)
	if err := s.mountAt(ctx, dir, volumeKey(r.Owner, name), snapshotter, img.ChainID.String()); err != nil {
		return nil, err
	}
	path, err := below(dir, r.SubPath)
	if err != nil {
		return nil, err
	}
	return &Volume{Path: path, ImageRef: img.Ref()}, nil
}

// EnsureUnpacked makes an image's snapshots when a snapshotter lacks them, as
// for images that somebody pulled otherwise.
func (s *Service) EnsureUnpacked(ctx context.Context, img *Image, snapshotter string) error {
	if img.ChainID == "" {
		return nil
	}
	ok, err := s.deps.Snapshots.HasSnapshot(ctx, snapshotter, img.ChainID.String())
	if err != nil || ok {
		return err
	}
	rec, err := s.deps.Records.ImageRecord(ctx, img.Name)
	if err != nil {
		return err
	}
	return s.deps.Snapshots.UnpackImage(ctx, rec, snapshotter)
}

// mountAt mounts a view of a snapshot on dir unless it is mounted.
func (s *Service) mountAt(ctx context.Context, dir, key, snapshotter, chainID string) error {
	if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // a container's user looks into it
		return fmt.Errorf("make mount point: %w", err)
	}
	mounted, err := mountinfo.Mounted(dir)
	if err != nil || mounted {
		return err
	}
	mounts, err := s.deps.Views.ViewImage(ctx, snapshotter, key, chainID)
	if err != nil {
		return err
	}
	for i := range mounts {
		mounts[i].Options = append(mounts[i].Options, "ro")
	}
	if err := mount.All(mounts, dir); err != nil {
		return errors.Join(fmt.Errorf("mount: %w", err), s.deps.Views.RemoveView(context.WithoutCancel(ctx), snapshotter, key))
	}
	return nil
}

// below finds an existing directory below root. Links are followed inside
// root only; nobody can change them meanwhile, for the mount is read-only.
func below(root, sub string) (string, error) {
	if sub == "" {
		return root, nil
	}
	path, err := securejoin.SecureJoin(root, sub)
	if err != nil {
		return "", fmt.Errorf("image_sub_path %q: %w", sub, err)
	}
	st, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return "", fmt.Errorf("image_sub_path %q does not exist in the image: %w", sub, errdefs.ErrNotFound)
	}
	if err != nil {
		return "", fmt.Errorf("image_sub_path %q: %w", sub, err)
	}
	if !st.IsDir() {
		return "", fmt.Errorf("image_sub_path %q is not a directory: %w", sub, errdefs.ErrInvalidArgument)
	}
	return path, nil
}

// UnmountVolumes unmounts all image volumes of a sandbox; none is success. It
// knows them from the state directory, so it works after a restart.
func (s *Service) UnmountVolumes(ctx context.Context, owner string) error {
	s.volumeLock.Lock(owner)
	defer s.volumeLock.Unlock(owner) //nolint:errcheck // it is locked
	entries, err := os.ReadDir(s.volumesOf(owner))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("list image volumes: %w", err)
	}
	var errs []error
	for _, e := range entries {
		name, snapshotter, _ := strings.Cut(e.Name(), ".")
		dir := filepath.Join(s.volumesOf(owner), e.Name())
		if err := mount.UnmountAll(dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			errs = append(errs, fmt.Errorf("unmount image volume %s: %w", dir, err))
			continue
		}
		if err := s.deps.Views.RemoveView(ctx, snapshotter, volumeKey(owner, name)); err != nil {
			errs = append(errs, err)
			continue
		}
		errs = append(errs, os.Remove(dir))
	}
	if err := errors.Join(errs...); err != nil {
		return err
	}
	if err := os.Remove(s.volumesOf(owner)); err != nil {
		return fmt.Errorf("remove directory of image volumes: %w", err)
	}
	return nil
}

// VolumeOwners lists the sandboxes that have image volumes, for a caller that
// unmounts those of sandboxes that are no more.
func (s *Service) VolumeOwners() ([]string, error) {
	entries, err := os.ReadDir(filepath.Join(s.cfg.StateDir, "volumes"))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, fmt.Errorf("list image volumes: %w", err)
	}
	out := make([]string, 0, len(entries))
	for _, e := range entries {
		out = append(out, e.Name())
	}
	return out, nil
}

func (s *Service) volumesOf(owner string) string {
	return filepath.Join(s.cfg.StateDir, "volumes", owner)
}

func volumeKey(owner, name string) string { return "nodeagent-volume-" + owner + "-" + name }
