// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"maps"
	"slices"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	"google.golang.org/protobuf/types/known/timestamppb"
	"google.golang.org/protobuf/types/known/wrapperspb"
)

// fakeDriver keeps volumes and snapshots in memory, by the rules of CSI.
type fakeDriver struct {
	mu        sync.Mutex
	total     int64
	volumes   map[string]*csi.CreateVolumeRequest // by id
	sizes     map[string]int64
	snapshots map[string]*csi.Snapshot
	groups    map[string]*csi.VolumeGroupSnapshot
	mutable   map[string]map[string]string
	fail      map[string][]error
	calls     []string
}

var (
	_ Volumes   = (*fakeDriver)(nil)
	_ Snapshots = (*fakeDriver)(nil)
	_ Groups    = (*fakeDriver)(nil)
)

func newFakeDriver(total int64) *fakeDriver {
	return &fakeDriver{
		total: total, volumes: map[string]*csi.CreateVolumeRequest{}, sizes: map[string]int64{},
		snapshots: map[string]*csi.Snapshot{}, groups: map[string]*csi.VolumeGroupSnapshot{}, mutable: map[string]map[string]string{}, fail: map[string][]error{},
	}
}

// FailNext makes the next call of op fail.
func (d *fakeDriver) FailNext(op string, err error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.fail[op] = append(d.fail[op], err)
}

// count of the calls of op.
func (d *fakeDriver) count(op string) int {
	d.mu.Lock()
	defer d.mu.Unlock()
	n := 0
	for _, c := range d.calls {
		if c == op {
			n++
		}
	}
	return n
}

func (d *fakeDriver) ids() []string {
	d.mu.Lock()
	defer d.mu.Unlock()
	return slices.Sorted(maps.Keys(d.volumes))
}

// enter notes the call; it is called with mu held.
func (d *fakeDriver) enter(op string) error {
	d.calls = append(d.calls, op)
	if errs := d.fail[op]; len(errs) > 0 {
		d.fail[op] = errs[1:]
		return errs[0]
	}
	return nil
}

func (d *fakeDriver) free() int64 {
	free := d.total
	for _, s := range d.sizes {
		free -= s
	}
	return free
}

func (d *fakeDriver) CreateVolume(_ context.Context, r *csi.CreateVolumeRequest, _ ...grpc.CallOption) (*csi.CreateVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter("create"); err != nil {
		return nil, err
	}
	id := "vol-" + r.GetName()
	if d.volumes[id] == nil {
		if r.GetCapacityRange().GetRequiredBytes() > d.free() {
			return nil, status.Errorf(codes.ResourceExhausted, "pool default has %d bytes left", d.free())
		}
		d.volumes[id], d.sizes[id] = r, r.GetCapacityRange().GetRequiredBytes()
	}
	return &csi.CreateVolumeResponse{Volume: &csi.Volume{
		VolumeId: id, CapacityBytes: d.sizes[id], ContentSource: r.GetVolumeContentSource(),
		AccessibleTopology: r.GetAccessibilityRequirements().GetRequisite(),
	}}, nil
}

func (d *fakeDriver) DeleteVolume(_ context.Context, r *csi.DeleteVolumeRequest, _ ...grpc.CallOption) (*csi.DeleteVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter("delete"); err != nil {
		return nil, err
	}
	delete(d.volumes, r.GetVolumeId())
	delete(d.sizes, r.GetVolumeId())
	return &csi.DeleteVolumeResponse{}, nil
}

func (d *fakeDriver) GetCapacity(context.Context, *csi.GetCapacityRequest, ...grpc.CallOption) (*csi.GetCapacityResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter("capacity"); err != nil {
		return nil, err
	}
	return &csi.GetCapacityResponse{AvailableCapacity: d.free(), MaximumVolumeSize: wrapperspb.Int64(d.free())}, nil
}

func (d *fakeDriver) ControllerExpandVolume(_ context.Context, r *csi.ControllerExpandVolumeRequest, _ ...grpc.CallOption) (*csi.ControllerExpandVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter("expand"); err != nil {
		return nil, err
	}
	size := d.sizes[r.GetVolumeId()]
	if size == 0 {
		return nil, status.Errorf(codes.NotFound, "volume %s not found", r.GetVolumeId())
	}
	want := r.GetCapacityRange().GetRequiredBytes()
	if want-size > d.free() {
		return nil, status.Errorf(codes.OutOfRange, "pool default has %d bytes left", d.free())
	}
	d.sizes[r.GetVolumeId()] = max(want, size)
	return &csi.ControllerExpandVolumeResponse{CapacityBytes: max(want, size), NodeExpansionRequired: r.GetVolumeCapability().GetBlock() == nil}, nil
}

func (d *fakeDriver) ControllerModifyVolume(_ context.Context, r *csi.ControllerModifyVolumeRequest, _ ...grpc.CallOption) (*csi.ControllerModifyVolumeResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter("modify"); err != nil {
		return nil, err
	}
	d.mutable[r.GetVolumeId()] = r.GetMutableParameters()
	return &csi.ControllerModifyVolumeResponse{}, nil
}

func (d *fakeDriver) CreateSnapshot(_ context.Context, r *csi.CreateSnapshotRequest, _ ...grpc.CallOption) (*csi.CreateSnapshotResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter("snapshot"); err != nil {
		return nil, err
	}
	id := "snap-" + r.GetName()
	if d.snapshots[id] == nil {
		if d.volumes[r.GetSourceVolumeId()] == nil {
			return nil, status.Errorf(codes.NotFound, "volume %s not found", r.GetSourceVolumeId())
		}
		d.snapshots[id] = &csi.Snapshot{
			SnapshotId: id, SourceVolumeId: r.GetSourceVolumeId(), SizeBytes: d.sizes[r.GetSourceVolumeId()],
			CreationTime: timestamppb.New(time.Unix(1700000000, 0)), ReadyToUse: true,
		}
	}
	return &csi.CreateSnapshotResponse{Snapshot: d.snapshots[id]}, nil
}

func (d *fakeDriver) DeleteSnapshot(_ context.Context, r *csi.DeleteSnapshotRequest, _ ...grpc.CallOption) (*csi.DeleteSnapshotResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter("delete-snapshot"); err != nil {
		return nil, err
	}
	if d.snapshots[r.GetSnapshotId()].GetGroupSnapshotId() != "" {
		return nil, status.Error(codes.InvalidArgument, "member of a group")
	}
	delete(d.snapshots, r.GetSnapshotId())
	return &csi.DeleteSnapshotResponse{}, nil
}

func (d *fakeDriver) ListSnapshots(_ context.Context, r *csi.ListSnapshotsRequest, _ ...grpc.CallOption) (*csi.ListSnapshotsResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter("list-snapshots"); err != nil {
		return nil, err
	}
	out := &csi.ListSnapshotsResponse{}
	if s := d.snapshots[r.GetSnapshotId()]; s != nil {
		out.Entries = append(out.Entries, &csi.ListSnapshotsResponse_Entry{Snapshot: s})
	}
	return out, nil
}

func (d *fakeDriver) CreateVolumeGroupSnapshot(_ context.Context, r *csi.CreateVolumeGroupSnapshotRequest, _ ...grpc.CallOption) (*csi.CreateVolumeGroupSnapshotResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter("group"); err != nil {
		return nil, err
	}
	now, g := timestamppb.New(time.Unix(1700000000, 0)), &csi.VolumeGroupSnapshot{GroupSnapshotId: "group-" + r.GetName(), ReadyToUse: true}
	for _, v := range r.GetSourceVolumeIds() {
		if d.volumes[v] == nil {
			return nil, status.Errorf(codes.NotFound, "volume %s not found", v)
		}
		s := &csi.Snapshot{SnapshotId: "member-" + v, SourceVolumeId: v, SizeBytes: d.sizes[v], CreationTime: now, ReadyToUse: true, GroupSnapshotId: g.GroupSnapshotId}
		g.Snapshots, d.snapshots[s.SnapshotId] = append(g.Snapshots, s), s
	}
	g.CreationTime, d.groups[g.GroupSnapshotId] = now, g
	return &csi.CreateVolumeGroupSnapshotResponse{GroupSnapshot: g}, nil
}

func (d *fakeDriver) DeleteVolumeGroupSnapshot(_ context.Context, r *csi.DeleteVolumeGroupSnapshotRequest, _ ...grpc.CallOption) (*csi.DeleteVolumeGroupSnapshotResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if err := d.enter("delete-group"); err != nil {
		return nil, err
	}
	for _, id := range r.GetSnapshotIds() {
		delete(d.snapshots, id)
	}
	delete(d.groups, r.GetGroupSnapshotId())
	return &csi.DeleteVolumeGroupSnapshotResponse{}, nil
}

func (d *fakeDriver) GetVolumeGroupSnapshot(_ context.Context, r *csi.GetVolumeGroupSnapshotRequest, _ ...grpc.CallOption) (*csi.GetVolumeGroupSnapshotResponse, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if g := d.groups[r.GetGroupSnapshotId()]; g != nil {
		return &csi.GetVolumeGroupSnapshotResponse{GroupSnapshot: g}, nil
	}
	return nil, status.Errorf(codes.NotFound, "group %s not found", r.GetGroupSnapshotId())
}
