// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// reconcileVolume keeps the finalizer of one PersistentVolume right, and
// deletes the volume behind it when it is released and to be deleted.
func (p *provisioner) reconcileVolume(ctx context.Context, name string) error {
	pv, ok, err := get[*corev1.PersistentVolume](p.volumes, name)
	if err != nil || !ok || !p.ownVolume(pv) {
		return err
	}
	deletes := pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete
	protected := slices.Contains(pv.Finalizers, finalizerVolume)
	switch {
	case deletes && pv.Status.Phase == corev1.VolumeReleased && (protected || pv.DeletionTimestamp == nil):
		return p.deleteVolume(ctx, pv)
	case deletes && !protected && pv.DeletionTimestamp == nil && pv.Status.Phase == corev1.VolumeBound:
		return p.setFinalizer(ctx, pv, true)
	case !deletes && protected:
		return p.setFinalizer(ctx, pv, false)
	default:
		return nil
	}
}

func (p *provisioner) deleteVolume(ctx context.Context, pv *corev1.PersistentVolume) error {
	call, cancel := p.withTimeout(ctx)
	defer cancel()
	if _, err := p.deps.Volumes.DeleteVolume(call, &csi.DeleteVolumeRequest{VolumeId: pv.Spec.CSI.VolumeHandle}); err != nil {
		p.events.Event(pv, corev1.EventTypeWarning, "VolumeFailedDelete", fmt.Sprintf("node %s: %s", p.deps.Node, message(err)))
		return fmt.Errorf("delete volume %s: %w", pv.Spec.CSI.VolumeHandle, err)
	}
	if err := p.removeObject(ctx, pv); err != nil {
		return err
	}
	p.log.InfoContext(ctx, "volume deleted", "volume", pv.Name, "handle", pv.Spec.CSI.VolumeHandle)
	p.CapacityChanged()
	return nil
}

// removeObject takes the PersistentVolume of a volume that is no more.
func (p *provisioner) removeObject(ctx context.Context, pv *corev1.PersistentVolume) error {
	err := p.client.Volumes().Delete(ctx, pv.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &pv.UID},
	})
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("delete PersistentVolume %s: %w", pv.Name, err)
	}
	return p.setFinalizer(ctx, pv, false)
}

// setFinalizer adds or removes the finalizer; an object that is gone has none.
func (p *provisioner) setFinalizer(ctx context.Context, pv *corev1.PersistentVolume, on bool) error {
	api := p.client.Volumes()
	now, err := api.Get(ctx, pv.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("get PersistentVolume %s: %w", pv.Name, err)
	}
	if now.UID != pv.UID || slices.Contains(now.Finalizers, finalizerVolume) == on {
		return nil
	}
	next := slices.DeleteFunc(slices.Clone(now.Finalizers), func(f string) bool { return f == finalizerVolume })
	if on {
		next = append(next, finalizerVolume)
	}
	patch, err := json.Marshal(map[string]any{"metadata": map[string]any{
		"resourceVersion": now.ResourceVersion, "finalizers": next,
	}})
	if err != nil {
		return err
	}
	_, err = api.Patch(ctx, pv.Name, types.MergePatchType, patch)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("patch finalizers of PersistentVolume %s: %w", pv.Name, err)
	}
	return nil
}
