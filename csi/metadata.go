// SPDX-License-Identifier: Apache-2.0

package csi

import (
	"context"

	csipb "github.com/container-storage-interface/spec/lib/go/csi"

	"github.com/nodeagent/nodeagent/csi/backend"
)

type snapshotMetadata struct {
	csipb.UnimplementedSnapshotMetadataServer
	*Server
}

var _ csipb.SnapshotMetadataServer = (*snapshotMetadata)(nil)

// rangesPerMessage is how many ranges one message carries when the caller does
// not say.
const rangesPerMessage = 4096

// batch collects ranges into messages; its first error ends the walk.
type batch struct {
	most int
	held []*csipb.BlockMetadata
	send func([]*csipb.BlockMetadata) error
	err  error
	sent bool
}

func newBatch(most int32, send func([]*csipb.BlockMetadata) error) *batch {
	b := &batch{most: rangesPerMessage, send: send}
	if most > 0 {
		b.most = min(int(most), rangesPerMessage)
	}
	return b
}

func (b *batch) add(r backend.Range) bool {
	b.held = append(b.held, &csipb.BlockMetadata{ByteOffset: r.Offset, SizeBytes: r.Length})
	if len(b.held) >= b.most {
		b.flush()
	}
	return b.err == nil
}

func (b *batch) flush() {
	if b.err == nil && (len(b.held) > 0 || !b.sent) {
		b.err = b.send(b.held)
		b.held, b.sent = nil, true
	}
}

// GetMetadataAllocated streams the ranges of a snapshot that hold data.
func (s *snapshotMetadata) GetMetadataAllocated(req *csipb.GetMetadataAllocatedRequest, out csipb.SnapshotMetadata_GetMetadataAllocatedServer) error {
	if err := required("snapshot_id", req.GetSnapshotId()); err != nil {
		return err
	}
	size, err := s.snapshotBytes(req.GetSnapshotId(), req.GetMaxResults())
	if err != nil {
		return err
	}
	b := newBatch(req.GetMaxResults(), func(list []*csipb.BlockMetadata) error {
		return out.Send(&csipb.GetMetadataAllocatedResponse{
			BlockMetadataType: csipb.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: size, BlockMetadata: list,
		})
	})
	return b.drive(out.Context(), func(ctx context.Context, yield func(backend.Range) bool) error {
		_, err := s.volumes.Allocated(ctx, req.GetSnapshotId(), req.GetStartingOffset(), yield)
		return err
	})
}

// GetMetadataDelta streams the ranges in which two snapshots differ.
func (s *snapshotMetadata) GetMetadataDelta(req *csipb.GetMetadataDeltaRequest, out csipb.SnapshotMetadata_GetMetadataDeltaServer) error {
	if err := required("base_snapshot_id", req.GetBaseSnapshotId(), "target_snapshot_id", req.GetTargetSnapshotId()); err != nil {
		return err
	}
	size, err := s.snapshotBytes(req.GetTargetSnapshotId(), req.GetMaxResults())
	if err != nil {
		return err
	}
	b := newBatch(req.GetMaxResults(), func(list []*csipb.BlockMetadata) error {
		return out.Send(&csipb.GetMetadataDeltaResponse{
			BlockMetadataType: csipb.BlockMetadataType_VARIABLE_LENGTH, VolumeCapacityBytes: size, BlockMetadata: list,
		})
	})
	return b.drive(out.Context(), func(ctx context.Context, yield func(backend.Range) bool) error {
		_, err := s.volumes.Delta(ctx, req.GetBaseSnapshotId(), req.GetTargetSnapshotId(), req.GetStartingOffset(), yield)
		return err
	})
}

func (s *Server) snapshotBytes(id string, most int32) (int64, error) {
	if most < 0 {
		return 0, invalid("max_results is negative")
	}
	v, err := s.volumes.GetSnapshot(id)
	if err != nil {
		return 0, err
	}
	return v.Bytes, nil
}

func (b *batch) drive(ctx context.Context, walk func(context.Context, func(backend.Range) bool) error) error {
	if err := walk(ctx, b.add); err != nil {
		return err
	}
	b.flush()
	return b.err
}
