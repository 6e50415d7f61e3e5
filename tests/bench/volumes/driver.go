// SPDX-License-Identifier: Apache-2.0

package volumes

import (
	"context"
	"fmt"
	"os"
	"path/filepath"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/credentials/insecure"

	"github.com/nodeagent/nodeagent/tests/bench/lab"
)

const (
	socket = "/var/lib/kubelet/plugins/csi.nodeagent.dev/csi.sock"
	stages = "/var/lib/bench/stages"
	mounts = "/var/lib/bench/mounts"
)

// driver speaks CSI as a kubelet and a provisioner do.
type driver struct {
	box  *lab.Box
	conn *grpc.ClientConn
	ctrl csi.ControllerClient
	node csi.NodeClient
}

func connect(b *lab.Box) (*driver, error) {
	conn, err := grpc.NewClient("unix://"+b.Path(socket), grpc.WithTransportCredentials(insecure.NewCredentials()))
	if err != nil {
		return nil, fmt.Errorf("connect to the driver: %w", err)
	}
	return &driver{b, conn, csi.NewControllerClient(conn), csi.NewNodeClient(conn)}, nil
}

func capability() *csi.VolumeCapability {
	return &csi.VolumeCapability{
		AccessType: &csi.VolumeCapability_Mount{Mount: &csi.VolumeCapability_MountVolume{FsType: "ext4"}},
		AccessMode: &csi.VolumeCapability_AccessMode{Mode: csi.VolumeCapability_AccessMode_SINGLE_NODE_WRITER},
	}
}

// volume is one from its creation to its deletion.
type volume struct {
	d       *driver
	name    string
	id      string
	context map[string]string
}

func (d *driver) create(ctx context.Context, pool, name string, bytes int64) (*volume, error) {
	r, err := d.ctrl.CreateVolume(ctx, &csi.CreateVolumeRequest{
		Name: name, CapacityRange: &csi.CapacityRange{RequiredBytes: bytes},
		VolumeCapabilities: []*csi.VolumeCapability{capability()}, Parameters: map[string]string{"pool": pool},
	})
	if err != nil {
		return nil, fmt.Errorf("create %s: %w", name, err)
	}
	return &volume{d, name, r.Volume.VolumeId, r.Volume.VolumeContext}, nil
}

func (v *volume) staging() string { return filepath.Join(stages, v.name) }

// target is where the volume is published, as the node sees it.
func (v *volume) target() string { return filepath.Join(mounts, v.name) }

func (v *volume) stage(ctx context.Context) error {
	if err := os.MkdirAll(v.d.box.Path(v.staging()), 0o755); err != nil {
		return err
	}
	if err := os.MkdirAll(v.d.box.Path(mounts), 0o755); err != nil {
		return err
	}
	_, err := v.d.node.NodeStageVolume(ctx, &csi.NodeStageVolumeRequest{
		VolumeId: v.id, StagingTargetPath: v.staging(), VolumeCapability: capability(), VolumeContext: v.context,
	})
	return wrap("stage", v, err)
}

func (v *volume) publish(ctx context.Context) error {
	_, err := v.d.node.NodePublishVolume(ctx, &csi.NodePublishVolumeRequest{
		VolumeId: v.id, StagingTargetPath: v.staging(), TargetPath: v.target(), VolumeCapability: capability(), VolumeContext: v.context,
	})
	return wrap("publish", v, err)
}

func (v *volume) unpublish(ctx context.Context) error {
	_, err := v.d.node.NodeUnpublishVolume(ctx, &csi.NodeUnpublishVolumeRequest{VolumeId: v.id, TargetPath: v.target()})
	return wrap("unpublish", v, err)
}

func (v *volume) unstage(ctx context.Context) error {
	_, err := v.d.node.NodeUnstageVolume(ctx, &csi.NodeUnstageVolumeRequest{VolumeId: v.id, StagingTargetPath: v.staging()})
	return wrap("unstage", v, err)
}

func (v *volume) remove(ctx context.Context) error {
	_, err := v.d.ctrl.DeleteVolume(ctx, &csi.DeleteVolumeRequest{VolumeId: v.id})
	return wrap("delete", v, err)
}

func (v *volume) snapshot(ctx context.Context) (string, error) {
	r, err := v.d.ctrl.CreateSnapshot(ctx, &csi.CreateSnapshotRequest{SourceVolumeId: v.id, Name: "snap-" + v.name})
	return r.GetSnapshot().GetSnapshotId(), wrap("snapshot", v, err)
}

func (v *volume) removeSnapshot(ctx context.Context, id string) error {
	_, err := v.d.ctrl.DeleteSnapshot(ctx, &csi.DeleteSnapshotRequest{SnapshotId: id})
	return wrap("delete snapshot of", v, err)
}

func wrap(verb string, v *volume, err error) error {
	if err != nil {
		return fmt.Errorf("%s %s: %w", verb, v.name, err)
	}
	return nil
}
