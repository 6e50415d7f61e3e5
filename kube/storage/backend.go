// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
)

// Volumes is what of a CSI controller service keeps volumes. A csi.ControllerClient
// is one.
type Volumes interface {
	CreateVolume(context.Context, *csi.CreateVolumeRequest, ...grpc.CallOption) (*csi.CreateVolumeResponse, error)
	DeleteVolume(context.Context, *csi.DeleteVolumeRequest, ...grpc.CallOption) (*csi.DeleteVolumeResponse, error)
	GetCapacity(context.Context, *csi.GetCapacityRequest, ...grpc.CallOption) (*csi.GetCapacityResponse, error)
	ControllerExpandVolume(context.Context, *csi.ControllerExpandVolumeRequest, ...grpc.CallOption) (*csi.ControllerExpandVolumeResponse, error)
	ControllerModifyVolume(context.Context, *csi.ControllerModifyVolumeRequest, ...grpc.CallOption) (*csi.ControllerModifyVolumeResponse, error)
}

// Snapshots is what of a CSI controller service keeps snapshots. A
// csi.ControllerClient is one.
type Snapshots interface {
	CreateSnapshot(context.Context, *csi.CreateSnapshotRequest, ...grpc.CallOption) (*csi.CreateSnapshotResponse, error)
	DeleteSnapshot(context.Context, *csi.DeleteSnapshotRequest, ...grpc.CallOption) (*csi.DeleteSnapshotResponse, error)
	ListSnapshots(context.Context, *csi.ListSnapshotsRequest, ...grpc.CallOption) (*csi.ListSnapshotsResponse, error)
}

// Groups is what of a CSI group controller service keeps group snapshots. A
// csi.GroupControllerClient is one.
type Groups interface {
	CreateVolumeGroupSnapshot(context.Context, *csi.CreateVolumeGroupSnapshotRequest, ...grpc.CallOption) (*csi.CreateVolumeGroupSnapshotResponse, error)
	DeleteVolumeGroupSnapshot(context.Context, *csi.DeleteVolumeGroupSnapshotRequest, ...grpc.CallOption) (*csi.DeleteVolumeGroupSnapshotResponse, error)
	GetVolumeGroupSnapshot(context.Context, *csi.GetVolumeGroupSnapshotRequest, ...grpc.CallOption) (*csi.GetVolumeGroupSnapshotResponse, error)
}

var (
	_ Volumes   = csi.ControllerClient(nil)
	_ Snapshots = csi.ControllerClient(nil)
	_ Groups    = csi.GroupControllerClient(nil)
)

// final reports whether the driver's error says that nothing is under way any
// more. After one that is not, the same call has to be made again before the
// object may be forgotten. The list is that of the CSI sidecars.
func final(err error) bool {
	switch status.Code(err) {
	case codes.Canceled, codes.DeadlineExceeded, codes.Unavailable, codes.ResourceExhausted, codes.Aborted:
		return false
	default:
		return true
	}
}

// infeasible reports whether only another request can succeed.
func infeasible(err error) bool {
	switch status.Code(err) {
	case codes.InvalidArgument, codes.OutOfRange, codes.NotFound:
		return true
	default:
		return false
	}
}

// message is the driver's error for a person, without the words of gRPC.
func message(err error) string {
	if s, ok := status.FromError(err); ok {
		return s.Message()
	}
	return err.Error()
}
