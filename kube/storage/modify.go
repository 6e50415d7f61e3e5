// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"errors"
	"fmt"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"
)

// modifier gives the volumes of this node's claims the parameters of their
// VolumeAttributesClass when a claim names another one than the volume has.
type modifier struct {
	*Controllers
	queue *reconciler

	mu      sync.Mutex
	refused refusals // guarded by mu
}

func (c *Controllers) addModifier(context.Context) error {
	m := &modifier{Controllers: c, refused: refusals{every: c.cfg.CapacityPeriod, seen: map[types.UID]refusal{}}}
	m.queue = c.add("modifier", m.reconcile)
	return c.followBound(m.queue)
}

func (m *modifier) reconcile(ctx context.Context, key string) error {
	claim, pv, err := m.boundVolume(key)
	if err != nil || claim == nil {
		return err
	}
	want := deref(claim.Spec.VolumeAttributesClassName, "")
	has := deref(pv.Spec.VolumeAttributesClassName, "")
	if want == "" || want == has && claim.Status.ModifyVolumeStatus == nil {
		return nil
	}
	m.mu.Lock()
	wait := m.refused.wait(claim.UID, want)
	m.mu.Unlock()
	if wait > 0 {
		m.queue.queue.AddAfter(key, wait)
		return nil
	}
	return quiet(m.modify(ctx, key, claim, pv, want))
}

// modify gives the volume the parameters of a class.
func (m *modifier) modify(ctx context.Context, key string, claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, class string) error {
	params, err := m.mutableParameters(ctx, class)
	if err != nil {
		m.events.Event(claim, corev1.EventTypeWarning, "VolumeModifyFailed", err.Error())
		state := corev1.PersistentVolumeClaimModifyVolumePending // it may come
		if errors.Is(err, errForeignClass) {
			state = corev1.PersistentVolumeClaimModifyVolumeInfeasible
		}
		return m.refuse(ctx, claim, class, state, err.Error())
	}
	claim, err = m.patchClaimStatus(ctx, claim, func(s *corev1.PersistentVolumeClaimStatus) {
		setModify(s, class, corev1.PersistentVolumeClaimModifyVolumeInProgress)
		setCondition(s, corev1.PersistentVolumeClaimVolumeModifyingVolume, "")
	})
	if err != nil {
		return err
	}
	call, cancel := m.withTimeout(ctx)
	defer cancel()
	_, err = m.deps.Volumes.ControllerModifyVolume(call, &csi.ControllerModifyVolumeRequest{
		VolumeId: pv.Spec.CSI.VolumeHandle, MutableParameters: params,
	})
	if err == nil {
		return m.modified(ctx, claim, pv, class)
	}
	m.events.Event(claim, corev1.EventTypeWarning, "VolumeModifyFailed", fmt.Sprintf("node %s: %s", m.deps.Node, message(err)))
	if infeasible(err) {
		return m.refuse(ctx, claim, class, corev1.PersistentVolumeClaimModifyVolumeInfeasible, message(err))
	}
	if serr := m.say(ctx, claim, class, corev1.PersistentVolumeClaimModifyVolumeInProgress, message(err)); serr != nil {
		return serr
	}
	return fmt.Errorf("modify volume of claim %s to class %s: %w", key, class, err)
}

// refuse writes down that a class cannot be given now, and tries again rarely.
func (m *modifier) refuse(ctx context.Context, claim *corev1.PersistentVolumeClaim, class string,
	state corev1.PersistentVolumeClaimModifyVolumeStatus, why string,
) error {
	if err := m.say(ctx, claim, class, state, why); err != nil {
		return err
	}
	m.mu.Lock()
	m.refused.add(claim.UID, class)
	m.mu.Unlock()
	m.queue.queue.AddAfter(claim.Namespace+"/"+claim.Name, m.refused.every)
	return nil
}

// say writes down how far it is, and why not further.
func (m *modifier) say(ctx context.Context, claim *corev1.PersistentVolumeClaim, class string, state corev1.PersistentVolumeClaimModifyVolumeStatus, why string) error {
	_, err := m.patchClaimStatus(ctx, claim, func(s *corev1.PersistentVolumeClaimStatus) {
		setModify(s, class, state)
		setCondition(s, corev1.PersistentVolumeClaimVolumeModifyVolumeError, why)
	})
	return err
}

// modified writes down that the volume has the class now.
func (m *modifier) modified(ctx context.Context, claim *corev1.PersistentVolumeClaim, pv *corev1.PersistentVolume, class string) error {
	patch := fmt.Sprintf(`{"metadata":{"uid":%q},"spec":{"volumeAttributesClassName":%q}}`, pv.UID, class)
	if _, err := m.client.Volumes().Patch(ctx, pv.Name, types.MergePatchType, []byte(patch)); err != nil {
		return fmt.Errorf("patch class of PersistentVolume %s: %w", pv.Name, err)
	}
	_, err := m.patchClaimStatus(ctx, claim, func(s *corev1.PersistentVolumeClaimStatus) {
		s.CurrentVolumeAttributesClassName, s.ModifyVolumeStatus = &class, nil
		dropConditions(s, corev1.PersistentVolumeClaimVolumeModifyingVolume, corev1.PersistentVolumeClaimVolumeModifyVolumeError)
	})
	if err != nil {
		return err
	}
	m.events.Eventf(claim, corev1.EventTypeNormal, "VolumeModifySuccessful", "volume %s has class %s", pv.Name, class)
	return nil
}

func setModify(s *corev1.PersistentVolumeClaimStatus, class string, state corev1.PersistentVolumeClaimModifyVolumeStatus) {
	s.ModifyVolumeStatus = &corev1.ModifyVolumeStatus{TargetVolumeAttributesClassName: class, Status: state}
}
