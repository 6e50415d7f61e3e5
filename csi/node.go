// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/nodeagent/nodeagent/csi/volume"
)

// What the kubelet adds to a volume's context when the CSIDriver object says
// podInfoOnMount.
const (
	contextEphemeral = "csi.storage.k8s.io/ephemeral"
	contextPodName   = "csi.storage.k8s.io/pod.name"
	contextPodSpace  = "csi.storage.k8s.io/pod.namespace"
	contextPodUID    = "csi.storage.k8s.io/pod.uid"
)

type node struct {
	csipb.UnimplementedNodeServer
	*Server
}

var _ csipb.NodeServer = (*node)(nil)

// NodeGetCapabilities lists what the node can do. The kubelet asks three times
// before each stage and each publish: it takes no lock.
func (s *node) NodeGetCapabilities(context.Context, *csipb.NodeGetCapabilitiesRequest) (*csipb.NodeGetCapabilitiesResponse, error) {
	out := &csipb.NodeGetCapabilitiesResponse{}
	for _, t := range []csipb.NodeServiceCapability_RPC_Type{
		csipb.NodeServiceCapability_RPC_STAGE_UNSTAGE_VOLUME,
		csipb.NodeServiceCapability_RPC_GET_VOLUME_STATS,
		csipb.NodeServiceCapability_RPC_EXPAND_VOLUME,
		csipb.NodeServiceCapability_RPC_SINGLE_NODE_MULTI_WRITER,
		csipb.NodeServiceCapability_RPC_GET_VOLUME_HEALTH,
		csipb.NodeServiceCapability_RPC_GET_STORAGE_HEALTH,
		csipb.NodeServiceCapability_RPC_VOLUME_MOUNT_GROUP,
	} {
		out.Capabilities = append(out.Capabilities, &csipb.NodeServiceCapability{
			Type: &csipb.NodeServiceCapability_Rpc{Rpc: &csipb.NodeServiceCapability_RPC{Type: t}},
		})
	}
	return out, nil
}

// NodeGetInfo names the node.
func (s *node) NodeGetInfo(context.Context, *csipb.NodeGetInfoRequest) (*csipb.NodeGetInfoResponse, error) {
	return &csipb.NodeGetInfoResponse{NodeId: s.cfg.NodeName, MaxVolumesPerNode: s.cfg.MaxVolumes, AccessibleTopology: s.topology()}, nil
}

// NodeStageVolume attaches a volume and mounts it at the staging path.
func (s *node) NodeStageVolume(ctx context.Context, req *csipb.NodeStageVolumeRequest) (*csipb.NodeStageVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId(), "staging_target_path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	c, err := capability(req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	if err := s.volumes.Stage(ctx, volume.StageRequest{ID: req.GetVolumeId(), Path: req.GetStagingTargetPath(), Capability: c}); err != nil {
		return nil, err
	}
	return &csipb.NodeStageVolumeResponse{}, nil
}

// NodeUnstageVolume takes a volume from the staging path and detaches it.
func (s *node) NodeUnstageVolume(ctx context.Context, req *csipb.NodeUnstageVolumeRequest) (*csipb.NodeUnstageVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId(), "staging_target_path", req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	if err := s.volumes.Unstage(ctx, req.GetVolumeId(), req.GetStagingTargetPath()); err != nil {
		return nil, err
	}
	return &csipb.NodeUnstageVolumeResponse{}, nil
}

// NodePublishVolume gives a staged volume to a pod, or makes an inline one.
func (s *node) NodePublishVolume(ctx context.Context, req *csipb.NodePublishVolumeRequest) (*csipb.NodePublishVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId(), "target_path", req.GetTargetPath()); err != nil {
		return nil, err
	}
	c, err := capability(req.GetVolumeCapability())
	if err != nil {
		return nil, err
	}
	info := req.GetVolumeContext()
	pod := volume.PodRef{Namespace: info[contextPodSpace], Name: info[contextPodName], UID: info[contextPodUID]}
	if info[contextEphemeral] == "true" {
		err = s.volumes.PublishEphemeral(ctx, volume.EphemeralRequest{
			ID: req.GetVolumeId(), Target: req.GetTargetPath(), Capability: c, ReadOnly: req.GetReadonly(), Attributes: info,
			Pod: pod,
		})
	} else {
		err = s.volumes.Publish(ctx, volume.PublishRequest{
			ID: req.GetVolumeId(), Staging: req.GetStagingTargetPath(), Target: req.GetTargetPath(), Capability: c,
			ReadOnly: req.GetReadonly(), Pod: pod,
		})
	}
	if err != nil {
		return nil, err
	}
	return &csipb.NodePublishVolumeResponse{}, nil
}

// NodeUnpublishVolume takes a volume from a pod.
func (s *node) NodeUnpublishVolume(ctx context.Context, req *csipb.NodeUnpublishVolumeRequest) (*csipb.NodeUnpublishVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId(), "target_path", req.GetTargetPath()); err != nil {
		return nil, err
	}
	if err := s.volumes.Unpublish(ctx, req.GetVolumeId(), req.GetTargetPath()); err != nil {
		return nil, err
	}
	return &csipb.NodeUnpublishVolumeResponse{}, nil
}

// NodeGetVolumeStats measures a published volume.
func (s *node) NodeGetVolumeStats(ctx context.Context, req *csipb.NodeGetVolumeStatsRequest) (*csipb.NodeGetVolumeStatsResponse, error) {
	if err := required("volume_id", req.GetVolumeId(), "volume_path", req.GetVolumePath()); err != nil {
		return nil, err
	}
	st, err := s.volumes.Stats(ctx, req.GetVolumeId(), req.GetVolumePath())
	if err != nil {
		return nil, err
	}
	bytes := &csipb.VolumeUsage{Unit: csipb.VolumeUsage_BYTES, Total: st.Total}
	if !st.Block {
		bytes.Used, bytes.Available = st.Used, st.Available
	}
	out := &csipb.NodeGetVolumeStatsResponse{Usage: []*csipb.VolumeUsage{bytes}}
	if st.Inodes > 0 {
		out.Usage = append(out.Usage, &csipb.VolumeUsage{
			Unit: csipb.VolumeUsage_INODES, Total: st.Inodes, Used: st.InodesUsed, Available: st.InodesFree,
		})
	}
	return out, nil
}

// NodeExpandVolume makes device and file system as large as the volume.
func (s *node) NodeExpandVolume(ctx context.Context, req *csipb.NodeExpandVolumeRequest) (*csipb.NodeExpandVolumeResponse, error) {
	if err := required("volume_id", req.GetVolumeId(), "volume_path", req.GetVolumePath()); err != nil {
		return nil, err
	}
	n, err := s.volumes.ExpandOnNode(ctx, req.GetVolumeId(), req.GetVolumePath(), req.GetCapacityRange().GetRequiredBytes())
	if err != nil {
		return nil, err
	}
	return &csipb.NodeExpandVolumeResponse{CapacityBytes: n}, nil
}

// NodeGetVolumeHealth lists what is wrong with a volume on this node.
func (s *node) NodeGetVolumeHealth(ctx context.Context, req *csipb.NodeGetVolumeHealthRequest) (*csipb.NodeGetVolumeHealthResponse, error) {
	h, err := s.volumeHealth(ctx, req.GetVolumeId())
	if err != nil {
		return nil, err
	}
	return &csipb.NodeGetVolumeHealthResponse{VolumeHealth: h}, nil
}

// NodeGetStorageHealth lists what is wrong with the pools of this node.
func (s *node) NodeGetStorageHealth(ctx context.Context, _ *csipb.NodeGetStorageHealthRequest) (*csipb.NodeGetStorageHealthResponse, error) {
	return s.storageHealth(ctx), nil
}
