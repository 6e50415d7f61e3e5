// SPDX-License-Identifier: Apache-2.0

package container

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"

	"github.com/containerd/containerd/v2/core/mount"
	continuityfs "github.com/containerd/continuity/fs"
	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/proto"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/store"
)

// imageRoot is a new container's root file system as it is before its first
// start. It is mounted when it is first looked into.
type imageRoot struct {
	ctx  context.Context //nolint:containedctx // fs.FS has no room for one
	m    *Manager
	c    *store.Container
	dir  string // where it is mounted; "" before the first use
	root *os.Root
	fsys fs.FS
}

var (
	_ fs.FS         = (*imageRoot)(nil)
	_ fs.ReadLinkFS = (*imageRoot)(nil)
)

// mounted mounts the file system on its first call.
func (r *imageRoot) mounted() (fs.ReadLinkFS, error) {
	if r.fsys == nil {
		mounts, err := r.m.rootfs(r.ctx, r.c)
		if err != nil {
			return nil, err
		}
		dir := filepath.Join(r.m.dir(r.c), "rootfs")
		if err := os.MkdirAll(dir, 0o700); err != nil {
			return nil, fmt.Errorf("make mount point of image: %w", err)
		}
		if err := mount.All(readOnly(mounts), dir); err != nil {
			return nil, fmt.Errorf("mount image: %w", err)
		}
		r.dir = dir
		if r.root, err = os.OpenRoot(dir); err != nil {
			return nil, fmt.Errorf("open image: %w", err)
		}
		r.fsys = r.root.FS()
	}
	l, ok := r.fsys.(fs.ReadLinkFS)
	if !ok {
		return nil, fmt.Errorf("image %s: %w", r.c.ImageID, errors.ErrUnsupported)
	}
	return l, nil
}

// readOnly drops the writable layer's own mount options and identity mapping:
// a reader wants the image's owners.
func readOnly(mounts []mount.Mount) []mount.Mount {
	out := make([]mount.Mount, 0, len(mounts))
	for _, m := range mounts {
		opts := make([]string, 0, len(m.Options)+1)
		for _, o := range m.Options {
			if o != "rw" {
				opts = append(opts, o)
			}
		}
		m.Options = append(opts, "ro")
		out = append(out, m)
	}
	return out
}

// Open opens a file of the image.
func (r *imageRoot) Open(name string) (fs.File, error) {
	f, err := r.mounted()
	if err != nil {
		return nil, err
	}
	return f.Open(name)
}

// ReadLink reads a link of the image.
func (r *imageRoot) ReadLink(name string) (string, error) {
	f, err := r.mounted()
	if err != nil {
		return "", err
	}
	return f.ReadLink(name)
}

// Lstat describes a file of the image.
func (r *imageRoot) Lstat(name string) (fs.FileInfo, error) {
	f, err := r.mounted()
	if err != nil {
		return nil, err
	}
	return f.Lstat(name)
}

// close unmounts; the directory goes with the container's.
func (r *imageRoot) close() {
	if r.root != nil {
		closer(r.root)
	}
	if r.dir != "" {
		if err := mount.UnmountAll(r.dir, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil {
			r.m.deps.Log.WarnContext(r.ctx, "image stays mounted", "container", r.c.ID, "err", err)
		}
	}
}

// volumes makes a directory for each path that the image declares as a volume
// and the pod does not mount, filled with what the image has there.
func (b *building) volumes(root *imageRoot) (map[string]string, error) {
	declared := b.image.Config.Volumes
	if len(declared) == 0 {
		return nil, nil
	}
	taken := map[string]bool{}
	for _, m := range b.c.Config.M.GetMounts() {
		taken[path.Clean(m.GetContainerPath())] = true
	}
	out := map[string]string{}
	for v := range declared {
		if taken[path.Clean(v)] {
			continue
		}
		sum := sha256.Sum256([]byte(v))
		dir := filepath.Join(b.m.root(b.c.ID), "volumes", hex.EncodeToString(sum[:8]))
		if err := os.MkdirAll(dir, 0o755); err != nil { //nolint:gosec // a volume is open as its image's directory
			return nil, fmt.Errorf("make volume %s: %w", v, err)
		}
		if err := root.copyInto(dir, v); err != nil {
			return nil, fmt.Errorf("fill volume %s: %w", v, err)
		}
		out[v] = dir
	}
	return out, nil
}

// imageMounts mounts the images that the container mounts as volumes, and notes
// their digests for the status.
func (b *building) imageMounts(ctx context.Context) (map[string]string, error) {
	mounts := b.c.Config.M.GetMounts()
	isImage := func(m *runtimeapi.Mount) bool { return m.GetImage().GetImage() != "" }
	if !slices.ContainsFunc(mounts, isImage) {
		return nil, nil
	}
	out := map[string]string{}
	b.c.Mounts = nil
	for _, m := range mounts {
		if isImage(m) {
			path, ref, err := b.m.deps.Images.MountVolume(ctx, b.sb, m)
			if err != nil {
				return nil, err
			}
			out[m.GetContainerPath()] = path
			m = withImageRef(m, ref)
		}
		b.c.Mounts = append(b.c.Mounts, store.Message[runtimeapi.Mount, *runtimeapi.Mount]{M: m})
	}
	return out, nil
}

// withImageRef is the mount as the status shows it.
func withImageRef(m *runtimeapi.Mount, ref string) *runtimeapi.Mount {
	if c, ok := proto.Clone(m).(*runtimeapi.Mount); ok {
		c.Image.ImageRef = ref
		return c
	}
	return m
}

// copyInto copies the image's directory p, when it has one, into dir.
func (r *imageRoot) copyInto(dir, p string) error {
	if _, err := r.mounted(); err != nil {
		return err
	}
	src, err := continuityfs.RootPath(r.dir, p)
	if err != nil {
		return fmt.Errorf("find %s in image: %w", p, err)
	}
	st, err := os.Stat(src)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("look at %s in image: %w", p, err)
	}
	if !st.IsDir() {
		return nil
	}
	return continuityfs.CopyDir(dir, src)
}

// removeDirs removes the container's two directories.
func (m *Manager) removeDirs(c *store.Container) error {
	m.mounts.drop(c.ID)
	dir := m.dir(c)
	if err := mount.UnmountAll(filepath.Join(dir, "rootfs"), unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unmount image: %w", err)
	}
	for _, d := range []string{dir, m.root(c.ID)} {
		if err := os.RemoveAll(d); err != nil {
			return fmt.Errorf("remove container directory: %w", err)
		}
	}
	if sb, ok := m.deps.Store.Sandboxes.Get(c.SandboxID); !ok || sb.State != store.SandboxReady {
		// A creation that overtook the sandbox's end made its directory anew;
		// one that still holds something stays.
		_ = os.Remove(filepath.Dir(dir))
		_ = os.Remove(string(m.deps.SandboxDir(c.SandboxID)))
	}
	return nil
}
