// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"
	"fmt"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/protobuf/types/known/wrapperspb"

	"github.com/nodeagent/nodeagent/csi/volume"
)

type controller struct {
	csipb.UnimplementedControllerServer
	*Server
}

var _ csipb.ControllerServer = (*controller)(nil)

// ControllerGetCapabilities lists what the controller can do.
func (s *controller) ControllerGetCapabilities(context.Context, *csipb.ControllerGetCapabilitiesRequest) (*csipb.ControllerGetCapabilitiesResponse, error) {
	out := &csipb.ControllerGetCapabilitiesResponse{}
	for _, t := range []csipb.ControllerServiceCapability_RPC_Type{
		csipb.ControllerServiceCapability_RPC_CREATE_DELETE_VOLUME,
		csipb.ControllerServiceCapability_RPC_LIST_VOLUMES,
		csipb.ControllerServiceCapability_RPC_GET_CAPACITY,
		csipb.ControllerServiceCapability_RPC_CREATE_DELETE_SNAPSHOT,
		csipb.ControllerServiceCapability_RPC_LIST_SNAPSHOTS,
		csipb.ControllerServiceCapability_RPC_GET_SNAPSHOT,
		csipb.ControllerServiceCapability_RPC_CLONE_VOLUME,
		csipb.ControllerServiceCapability_RPC_EXPAND_VOLUME,
		csipb.ControllerServiceCapability_RPC_GET_VOLUME,
		csipb.ControllerServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		csipb.ControllerServiceCapability_RPC_MODIFY_VOLUME,
		csipb.ControllerServiceCapability_RPC_GET_VOLUME_HEALTH,
		csipb.ControllerServiceCapability_RPC_LIST_VOLUME_HEALTH,
	} {
		out.Capabilities = append(out.Capabilities, &csipb.ControllerServiceCapability{
			Type: &csipb.ControllerServiceCapability_Rpc{Rpc: &csipb.ControllerServiceCapability_RPC{Type: t}},
		})
	}
	return out, nil
}

// CreateVolume makes a volume on this node.
func (s *controller) CreateVolume(ctx context.Context, req *csipb.CreateVolumeRequest) (*csipb.CreateVolumeResponse, error) {
	if err := checkName(req.GetName()); err != nil {
		return nil, err
	}
	caps, err := capabilities(req.GetVolumeCapabilities())
	if err != nil {
		return nil, err
	}
	src, err := contentSource(req.GetVolumeContentSource())
	if err != nil {
		return nil, err
	}
	if !s.reachable(req.GetAccessibilityRequirements()) {
		return nil, fmt.Errorf("%w: the topology asked for does not include node %s", volume.ErrElsewhere, s.cfg.NodeName)
	}
	v, err := s.volumes.Create(ctx, volume.CreateRequest{
		Name: req.GetName(), Required: req.GetCapacityRange().GetRequiredBytes(), Limit: req.GetCapacityRange().GetLimitBytes(),
		Capabilities: caps, Parameters: req.GetParameters(), Mutable: req.GetMutableParameters(), Source: src,
	})
	if err != nil {
		return nil, err
	}
	return &csipb.CreateVolumeResponse{Volume: s.volumeProto(v)}, nil
}

func (s *Server) volumeProto(v volume.Volume) *csipb.Volume {
	return &csipb.Volume{
		VolumeId: v.ID, CapacityBytes: v.Bytes, ContentSource: sourceProto(v.Source),
		AccessibleTopology: []*csipb.Topology{s.topology()},
	}
}

// DeleteVolume removes a volume.
func (s *controller) DeleteVolume(ctx context.Context, req *csipb.DeleteVolumeRequest) (*csipb.DeleteVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := s.volumes.Delete(ctx, req.GetVolumeId()); err != nil {
		return nil, err
	}
	return &csipb.DeleteVolumeResponse{}, nil
}

// ValidateVolumeCapabilities confirms what the volume can be used as.
func (s *controller) ValidateVolumeCapabilities(_ context.Context, req *csipb.ValidateVolumeCapabilitiesRequest) (*csipb.ValidateVolumeCapabilitiesResponse, error) {
	if err := required("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	caps, err := capabilities(req.GetVolumeCapabilities())
	if err != nil {
		return nil, err
	}
	if _, err := s.volumes.Get(req.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := s.volumes.CheckCapabilities(req.GetVolumeId(), caps); err != nil {
		return &csipb.ValidateVolumeCapabilitiesResponse{Message: err.Error()}, nil //nolint:nilerr // the answer is "not confirmed", and why
	}
	return &csipb.ValidateVolumeCapabilitiesResponse{Confirmed: &csipb.ValidateVolumeCapabilitiesResponse_Confirmed{
		VolumeContext: req.GetVolumeContext(), VolumeCapabilities: req.GetVolumeCapabilities(), Parameters: req.GetParameters(),
	}}, nil
}

// ListVolumes lists this node's volumes.
func (s *controller) ListVolumes(_ context.Context, req *csipb.ListVolumesRequest) (*csipb.ListVolumesResponse, error) {
	all := s.volumes.List()
	p, err := cutPage(ids(all), req.GetStartingToken(), req.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	out := &csipb.ListVolumesResponse{NextToken: p.next}
	for _, v := range all[p.from:p.to] {
		out.Entries = append(out.Entries, &csipb.ListVolumesResponse_Entry{Volume: s.volumeProto(v)})
	}
	return out, nil
}

func ids(list []volume.Volume) []string {
	out := make([]string, len(list))
	for i, v := range list {
		out[i] = v.ID
	}
	return out
}

// ControllerGetVolume returns one volume.
func (s *controller) ControllerGetVolume(_ context.Context, req *csipb.ControllerGetVolumeRequest) (*csipb.ControllerGetVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	v, err := s.volumes.Get(req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csipb.ControllerGetVolumeResponse{Volume: s.volumeProto(v), Status: &csipb.ControllerGetVolumeResponse_VolumeStatus{}}, nil
}

// GetCapacity says what a class can still get here.
func (s *controller) GetCapacity(ctx context.Context, req *csipb.GetCapacityRequest) (*csipb.GetCapacityResponse, error) {
	if req.GetAccessibleTopology() != nil && !s.matches(req.GetAccessibleTopology()) {
		return &csipb.GetCapacityResponse{}, nil
	}
	c, err := s.volumes.Capacity(ctx, req.GetParameters())
	if err != nil {
		return nil, err
	}
	return &csipb.GetCapacityResponse{
		AvailableCapacity: c.Available, MaximumVolumeSize: wrapperspb.Int64(c.Largest), MinimumVolumeSize: wrapperspb.Int64(c.Smallest),
	}, nil
}

// ControllerExpandVolume grows a volume's payload.
func (s *controller) ControllerExpandVolume(ctx context.Context, req *csipb.ControllerExpandVolumeRequest) (*csipb.ControllerExpandVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	if req.GetCapacityRange() == nil {
		return nil, invalid("capacity_range is missing")
	}
	e, err := s.volumes.Expand(ctx, req.GetVolumeId(), req.GetCapacityRange().GetRequiredBytes(), req.GetCapacityRange().GetLimitBytes())
	if err != nil {
		return nil, err
	}
	return &csipb.ControllerExpandVolumeResponse{CapacityBytes: e.Bytes, NodeExpansionRequired: e.NodeExpansion}, nil
}

// ControllerModifyVolume changes a volume's limits.
func (s *controller) ControllerModifyVolume(ctx context.Context, req *csipb.ControllerModifyVolumeRequest) (*csipb.ControllerModifyVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId()); err != nil {
		return nil, err
	}
	if err := s.volumes.Modify(ctx, req.GetVolumeId(), req.GetMutableParameters()); err != nil {
		return nil, err
	}
	return &csipb.ControllerModifyVolumeResponse{}, nil
}

// ControllerGetVolumeHealth lists what is wrong with a volume.
func (s *controller) ControllerGetVolumeHealth(ctx context.Context, req *csipb.ControllerGetVolumeHealthRequest) (*csipb.ControllerGetVolumeHealthResponse, error) {
	h, err := s.volumeHealth(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csipb.ControllerGetVolumeHealthResponse{VolumeHealth: h}, nil
}

// ControllerListVolumeHealth lists the volumes with which something is wrong.
func (s *controller) ControllerListVolumeHealth(ctx context.Context, req *csipb.ControllerListVolumeHealthRequest) (*csipb.ControllerListVolumeHealthResponse, error) {
	var sick []*csipb.VolumeHealth
	var names []string
	for _, v := range s.volumes.List() {
		h, err := s.volumeHealth(ctx, v.ID)
		if err == nil && len(h.GetHealthStatuses()) > 0 {
			sick = append(sick, h)
			names = append(names, v.ID)
		}
	}
	p, err := cutPage(names, req.GetStartingToken(), req.GetMaxEntries())
	if err != nil {
		return nil, err
	}
	return &csipb.ControllerListVolumeHealthResponse{Entries: sick[p.from:p.to], NextToken: p.next}, nil
}
