// SPDX-License-Identifier: Apache-2.0

package containerd

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/containerd/containerd/api/services/tasks/v1"
	"github.com/containerd/containerd/api/types/runc/options"
	"github.com/containerd/containerd/v2/core/content"
	"github.com/containerd/containerd/v2/core/diff"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/containerd/v2/pkg/rootfs"
	"github.com/containerd/errdefs/pkg/errgrpc"
	"github.com/containerd/typeurl/v2"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// PauseTask freezes all processes of a task.
func (c *Client) PauseTask(ctx context.Context, id string) error {
	if _, err := c.c.TaskService().Pause(ctx, &tasks.PauseTaskRequest{ContainerID: id}); err != nil {
		return fmt.Errorf("pause task %s: %w", id, errgrpc.ToNative(err))
	}
	return nil
}

// ResumeTask takes PauseTask back.
func (c *Client) ResumeTask(ctx context.Context, id string) error {
	if _, err := c.c.TaskService().Resume(ctx, &tasks.ResumeTaskRequest{ContainerID: id}); err != nil {
		return fmt.Errorf("resume task %s: %w", id, errgrpc.ToNative(err))
	}
	return nil
}

// DumpTask has CRIU write a task's state into the directory images, and its log into
// work. The task goes on.
func (c *Client) DumpTask(ctx context.Context, id string, r Runtime, images, work string) error {
	// containerd's own shim could not restore connections, and so does not dump them.
	ours := r.Type == ShimType
	opts, err := typeurl.MarshalAnyToProto(&options.CheckpointOptions{
		ImagePath: images, WorkPath: work, OpenTcp: ours, ExternalUnixSockets: ours, FileLocks: ours,
	})
	if err != nil {
		return fmt.Errorf("encode checkpoint of task %s: %w", id, err)
	}
	if _, err = c.c.TaskService().Checkpoint(ctx, &tasks.CheckpointTaskRequest{ContainerID: id, Options: opts}); err != nil {
		return fmt.Errorf("checkpoint task %s: %w", id, errgrpc.ToNative(err))
	}
	return nil
}

// diffLife is how long containerd keeps a diff that nobody came back for.
const diffLife = time.Hour

// WriteDiff writes what a container has changed in its root file system as a tar in
// the form of an image's layer.
func (c *Client) WriteDiff(ctx context.Context, snapshotter, key string, w io.Writer) (retErr error) {
	lease, err := c.c.LeasesService().Create(ctx, leases.WithRandomID(), leases.WithExpiration(diffLife))
	if err != nil {
		return fmt.Errorf("create lease for diff of %s: %w", key, err)
	}
	defer func() {
		clean, cancel := context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
		defer cancel()
		retErr = errors.Join(retErr, c.DeleteLeases(clean, lease.ID))
	}()
	ctx = leases.WithLease(ctx, lease.ID)
	desc, err := rootfs.CreateDiff(ctx, key, c.c.SnapshotService(snapshotter), c.c.DiffService(), diff.WithMediaType(ocispec.MediaTypeImageLayer))
	if err != nil {
		return fmt.Errorf("diff of snapshot %s: %w", key, err)
	}
	ra, err := c.c.ContentStore().ReaderAt(ctx, desc)
	if err != nil {
		return fmt.Errorf("read diff of snapshot %s: %w", key, err)
	}
	defer ra.Close() //nolint:errcheck // read-only
	if _, err := io.Copy(w, content.NewReader(ra)); err != nil {
		return fmt.Errorf("read diff of snapshot %s: %w", key, err)
	}
	return nil
}
