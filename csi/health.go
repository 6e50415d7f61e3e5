// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/nodeagent/nodeagent/csi/volume"
)

func (s *Server) volumeHealth(ctx context.Context, id string) (*csipb.VolumeHealth, error) {
	if err := required("volume_id", id); err != nil {
		return nil, err
	}
	conds, err := s.volumes.Health(ctx, id)
	if err != nil {
		return nil, err
	}
	out := &csipb.VolumeHealth{VolumeId: id}
	for _, c := range conds {
		out.HealthStatuses = append(out.HealthStatuses, &csipb.VolumeHealth_VolumeHealthEntry{
			Status: map[volume.ConditionType]csipb.VolumeHealthErrorType{
				volume.Degraded:     csipb.VolumeHealthErrorType_DEGRADED,
				volume.Inaccessible: csipb.VolumeHealthErrorType_INACCESSIBLE,
				volume.DataLoss:     csipb.VolumeHealthErrorType_DATA_LOSS,
			}[c.Type],
			Reason: c.Reason, Message: c.Message,
		})
	}
	return out, nil
}

// maxStorageConditions is what the kubelet accepts; with more it would drop all.
const maxStorageConditions = 16

func (s *Server) storageHealth(ctx context.Context) *csipb.NodeGetStorageHealthResponse {
	out := &csipb.NodeGetStorageHealthResponse{}
	for _, c := range s.volumes.PoolHealth(ctx) {
		if len(out.BackendHealth) == maxStorageConditions {
			break
		}
		st := csipb.StorageHealthErrorType_STORAGE_DEGRADED
		if c.Type != volume.Degraded {
			st = csipb.StorageHealthErrorType_STORAGE_UNREACHABLE
		}
		out.BackendHealth = append(out.BackendHealth, &csipb.NodeGetStorageHealthResponse_StorageBackendHealth{
			Status: st, Reason: c.Reason, Message: "pool " + c.Pool + ": " + c.Message,
		})
	}
	return out
}
