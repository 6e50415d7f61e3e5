// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"fmt"
	"slices"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/nodeagent/nodeagent/csi/volume"
)

func (s *Server) snapshotProto(v volume.Volume) *csipb.Snapshot {
	out := &csipb.Snapshot{
		SnapshotId: v.ID, SourceVolumeId: v.Volume, SizeBytes: v.Bytes, CreationTime: timestamppb.New(v.Created),
		ReadyToUse: true, AccessibleTopology: []*csipb.Topology{s.topology()},
	}
	if v.Group != nil {
		out.GroupSnapshotId = v.Group.ID
	}
	return out
}

// CreateSnapshot takes a snapshot; it is ready on return.
func (s *controller) CreateSnapshot(ctx context.Context, req *csipb.CreateSnapshotRequest) (*csipb.CreateSnapshotResponse, error) {
	if err := checkName(req.GetName()); err != nil {
		return nil, err
	}
	if err := required("source_volume_id", req.GetSourceVolumeId()); err != nil {
		return nil, err
	}
	if !s.reachable(req.GetAccessibilityRequirements()) {
		return nil, fmt.Errorf("%w: the topology asked for does not include node %s", volume.ErrElsewhere, s.cfg.NodeName)
	}
	v, err := s.volumes.Snapshot(ctx, volume.SnapshotRequest{Name: req.GetName(), Volume: req.GetSourceVolumeId(), Parameters: req.GetParameters()})
	if err != nil {
		return nil, err
	}
	return &csipb.CreateSnapshotResponse{Snapshot: s.snapshotProto(v)}, nil
}

// DeleteSnapshot removes a snapshot.
func (s *controller) DeleteSnapshot(ctx context.Context, req *csipb.DeleteSnapshotRequest) (*csipb.DeleteSnapshotResponse, error) {
	if err := required("snapshot_id", req.GetSnapshotId()); err != nil {
		return nil, err
	}
	if err := s.volumes.DeleteSnapshot(ctx, req.GetSnapshotId()); err != nil {
		return nil, err
	}
	return &csipb.DeleteSnapshotResponse{}, nil
}

// GetSnapshot returns one snapshot.
func (s *controller) GetSnapshot(_ context.Context, req *csipb.GetSnapshotRequest) (*csipb.GetSnapshotResponse, error) {
	if err := required("snapshot_id", req.GetSnapshotId()); err != nil {
		return nil, err
	}
	v, err := s.volumes.GetSnapshot(req.GetSnapshotId())
	if err != nil {
		return nil, err
	}
	return &csipb.GetSnapshotResponse{Snapshot: s.snapshotProto(v)}, nil
}

// ListSnapshots lists snapshots, all or by snapshot or source.
func (s *controller) ListSnapshots(_ context.Context, req *csipb.ListSnapshotsRequest) (*csipb.ListSnapshotsResponse, error) {
	all := slices.DeleteFunc(s.volumes.Snapshots(), func(v volume.Volume) bool {
		return v.Broken != nil || (req.GetSnapshotId() != "" && v.ID != req.GetSnapshotId()) ||
			(req.GetSourceVolumeId() != "" && v.Volume != req.GetSourceVolumeId())
	})
	p, err := cutPage(ids(all), req.GetStartingToken(), req.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	out := &csipb.ListSnapshotsResponse{NextToken: p.next}
	for _, v := range all[p.from:p.to] {
		out.Entries = append(out.Entries, &csipb.ListSnapshotsResponse_Entry{Snapshot: s.snapshotProto(v)})
	}
	return out, nil
}

type groups struct {
	csipb.UnimplementedGroupControllerServer
	*Server
}

var _ csipb.GroupControllerServer = (*groups)(nil)

// GroupControllerGetCapabilities lists what the group controller can do.
func (s *groups) GroupControllerGetCapabilities(context.Context, *csipb.GroupControllerGetCapabilitiesRequest) (*csipb.GroupControllerGetCapabilitiesResponse, error) {
	return &csipb.GroupControllerGetCapabilitiesResponse{Capabilities: []*csipb.GroupControllerServiceCapability{{
		Type: &csipb.GroupControllerServiceCapability_Rpc{Rpc: &csipb.GroupControllerServiceCapability_RPC{
			Type: csipb.GroupControllerServiceCapability_RPC_CREATE_DELETE_GET_VOLUME_GROUP_SNAPSHOT,
		}},
	}}}, nil
}

func (s *Server) groupProto(g volume.Group, members []volume.Volume) *csipb.VolumeGroupSnapshot {
	out := &csipb.VolumeGroupSnapshot{GroupSnapshotId: g.ID, CreationTime: timestamppb.New(g.Created), ReadyToUse: true}
	for _, v := range members {
		out.Snapshots = append(out.Snapshots, s.snapshotProto(v))
	}
	return out
}

// CreateVolumeGroupSnapshot takes snapshots of several volumes at one moment.
func (s *groups) CreateVolumeGroupSnapshot(ctx context.Context, req *csipb.CreateVolumeGroupSnapshotRequest) (*csipb.CreateVolumeGroupSnapshotResponse, error) {
	if err := checkName(req.GetName()); err != nil {
		return nil, err
	}
	if len(req.GetSourceVolumeIds()) == 0 || slices.Contains(req.GetSourceVolumeIds(), "") {
		return nil, invalid("source_volume_ids are missing")
	}
	g, members, err := s.volumes.SnapshotGroup(ctx, volume.GroupRequest{Name: req.GetName(), Volumes: req.GetSourceVolumeIds(), Parameters: req.GetParameters()})
	if err != nil {
		return nil, err
	}
	return &csipb.CreateVolumeGroupSnapshotResponse{GroupSnapshot: s.groupProto(g, members)}, nil
}

// DeleteVolumeGroupSnapshot removes a group with its snapshots.
func (s *groups) DeleteVolumeGroupSnapshot(ctx context.Context, req *csipb.DeleteVolumeGroupSnapshotRequest) (*csipb.DeleteVolumeGroupSnapshotResponse, error) {
	if err := required("group_snapshot_id", req.GetGroupSnapshotId()); err != nil {
		return nil, err
	}
	if err := s.volumes.DeleteGroup(ctx, req.GetGroupSnapshotId(), req.GetSnapshotIds()); err != nil {
		return nil, err
	}
	return &csipb.DeleteVolumeGroupSnapshotResponse{}, nil
}

// GetVolumeGroupSnapshot returns a group with its snapshots.
func (s *groups) GetVolumeGroupSnapshot(_ context.Context, req *csipb.GetVolumeGroupSnapshotRequest) (*csipb.GetVolumeGroupSnapshotResponse, error) {
	if err := required("group_snapshot_id", req.GetGroupSnapshotId()); err != nil {
		return nil, err
	}
	g, members, err := s.volumes.GetGroup(req.GetGroupSnapshotId(), req.GetSnapshotIds())
	if err != nil {
		return nil, err
	}
	return &csipb.GetVolumeGroupSnapshotResponse{GroupSnapshot: s.groupProto(g, members)}, nil
}
