// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"fmt"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/api/resource"
	"k8s.io/apimachinery/pkg/types"
)

// resizer grows the volumes of this node's claims: the backing here, the file
// system by the kubelet afterwards. The states are those of Kubernetes'
// RecoverVolumeExpansionFailure.
//
//	request > volume ─▶ ControllerResizeInProgress ─ok─▶ volume's object grown ─▶ NodeResizePending ─▶ (kubelet)
//	                           │ refused                                      └─▶ done, for a raw block volume
//	                           └─▶ ControllerResizeInfeasible, until the request changes or there is room
type resizer struct {
	*Controllers
	queue *reconciler

	mu      sync.Mutex
	refused refusals // guarded by mu
}

func (c *Controllers) addResizer(context.Context) error {
	r := &resizer{Controllers: c, refused: refusals{every: c.cfg.CapacityPeriod, seen: map[types.UID]refusal{}}}
	r.queue = c.add("resizer", r.reconcile)
	return c.followBound(r.queue)
}

func (r *resizer) reconcile(ctx context.Context, key string) error {
	claim, pv, err := r.boundVolume(key)
	if err != nil || claim == nil {
		return err
	}
	want := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	have := pv.Spec.Capacity[corev1.ResourceStorage]
	state := claim.Status.AllocatedResourceStatuses[corev1.ResourceStorage]
	switch {
	case want.Cmp(have) > 0:
		// A size that may be half done comes before a smaller one.
		tried := claim.Status.AllocatedResources[corev1.ResourceStorage]
		if state == corev1.PersistentVolumeClaimControllerResizeInProgress && tried.Cmp(want) > 0 {
			want = tried
		}
		return quiet(r.grow(ctx, key, claim, pv, want))
	case state == corev1.PersistentVolumeClaimControllerResizeInProgress:
		// The volume has grown, and the agent ended before it could say so.
		return quiet(r.grow(ctx, key, claim, pv, have))
	default:
		return nil
	}
}

// grow makes the volume as large as size and says so.
func (r *resizer) grow(ctx context.Context, key string, claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, size resource.Quantity) error {
	r.mu.Lock()
	wait := r.refused.wait(claim.UID, size.String())
	r.mu.Unlock()
	if wait > 0 {
		r.queue.queue.AddAfter(key, wait)
		return nil
	}
	claim, err := r.patchClaimStatus(ctx, claim, func(s *corev1.PersistentVolumeClaimStatus) {
		setAllocated(s, size, corev1.PersistentVolumeClaimControllerResizeInProgress)
		setCondition(s, corev1.PersistentVolumeClaimResizing, "")
	})
	if err != nil {
		return err
	}
	r.events.Eventf(claim, corev1.EventTypeNormal, "Resizing", "node %s is growing volume %s to %s", r.deps.Node, pv.Name, &size)
	caps, err := capabilities(pv.Spec.AccessModes, pv.Spec.VolumeMode, nil)
	if err != nil {
		return err
	}
	call, cancel := r.withTimeout(ctx)
	defer cancel()
	resp, err := r.deps.Volumes.ControllerExpandVolume(call, &csi.ControllerExpandVolumeRequest{
		VolumeId: pv.Spec.CSI.VolumeHandle, CapacityRange: &csi.CapacityRange{RequiredBytes: size.Value()}, VolumeCapability: caps[0],
	})
	if err != nil {
		return r.failed(ctx, key, claim, size, err)
	}
	r.CapacityChanged()
	return r.grown(ctx, claim, pv, resp)
}

// failed says why a volume could not grow.
func (r *resizer) failed(ctx context.Context, key string, claim *corev1.PersistentVolumeClaim, size resource.Quantity, why error) error {
	r.events.Event(claim, corev1.EventTypeWarning, "VolumeResizeFailed", fmt.Sprintf("node %s: %s", r.deps.Node, message(why)))
	state := corev1.PersistentVolumeClaimControllerResizeInProgress
	if infeasible(why) {
		state = corev1.PersistentVolumeClaimControllerResizeInfeasible
	}
	_, err := r.patchClaimStatus(ctx, claim, func(s *corev1.PersistentVolumeClaimStatus) {
		setAllocated(s, size, state)
		setCondition(s, corev1.PersistentVolumeClaimControllerResizeError, message(why))
	})
	if err != nil {
		return err
	}
	if infeasible(why) {
		r.mu.Lock()
		r.refused.add(claim.UID, size.String())
		r.mu.Unlock()
		r.queue.queue.AddAfter(key, r.refused.every)
		return nil
	}
	return fmt.Errorf("grow volume of claim %s to %s: %w", key, &size, why)
}

// grown writes down the volume's new size, and what is left to the kubelet.
func (r *resizer) grown(ctx context.Context, claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, resp *csi.ControllerExpandVolumeResponse) error {
	size := *resource.NewQuantity(resp.GetCapacityBytes(), resource.BinarySI)
	patch := fmt.Sprintf(`{"metadata":{"uid":%q},"spec":{"capacity":{"storage":%q}}}`, pv.UID, size.String())
	if have := pv.Spec.Capacity[corev1.ResourceStorage]; have.Cmp(size) < 0 {
		_, err := r.client.Volumes().Patch(ctx, pv.Name, types.MergePatchType, []byte(patch))
		if err != nil {
			return fmt.Errorf("patch size of PersistentVolume %s: %w", pv.Name, err)
		}
	}
	if resp.GetNodeExpansionRequired() {
		_, err := r.patchClaimStatus(ctx, claim, func(s *corev1.PersistentVolumeClaimStatus) {
			setAllocated(s, size, corev1.PersistentVolumeClaimNodeResizePending)
			dropConditions(s, corev1.PersistentVolumeClaimControllerResizeError)
			setCondition(s, corev1.PersistentVolumeClaimFileSystemResizePending,
				"Waiting for user to (re-)start a pod to finish file system resize of volume on node.")
		})
		r.events.Event(claim, corev1.EventTypeNormal, "FileSystemResizeRequired", "Require file system resize of volume on node")
		return err
	}
	_, err := r.patchClaimStatus(ctx, claim, func(s *corev1.PersistentVolumeClaimStatus) {
		s.Capacity = corev1.ResourceList{corev1.ResourceStorage: size}
		setAllocated(s, size, "")
		dropConditions(s, corev1.PersistentVolumeClaimResizing, corev1.PersistentVolumeClaimControllerResizeError,
			corev1.PersistentVolumeClaimFileSystemResizePending, corev1.PersistentVolumeClaimNodeResizeError)
	})
	r.events.Event(claim, corev1.EventTypeNormal, "VolumeResizeSuccessful", "Resize volume succeeded")
	return err
}

// setAllocated writes down the size that is aimed at and how far it is; "" is
// done.
func setAllocated(s *corev1.PersistentVolumeClaimStatus, size resource.Quantity, state corev1.ClaimResourceStatus) {
	if s.AllocatedResources == nil {
		s.AllocatedResources = corev1.ResourceList{}
	}
	s.AllocatedResources[corev1.ResourceStorage] = size
	if state == "" {
		delete(s.AllocatedResourceStatuses, corev1.ResourceStorage)
		return
	}
	if s.AllocatedResourceStatuses == nil {
		s.AllocatedResourceStatuses = map[corev1.ResourceName]corev1.ClaimResourceStatus{}
	}
	s.AllocatedResourceStatuses[corev1.ResourceStorage] = state
}
