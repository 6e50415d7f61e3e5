// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"encoding/json"
	"fmt"
	"slices"
	"time"

	jsonpatch "gopkg.in/evanphx/json-patch.v4"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// patchClaimStatus writes what change does to the claim's status, unless the
// claim has changed meanwhile. It returns the claim as it is then.
func (c *Controllers) patchClaimStatus(ctx context.Context, claim *corev1.PersistentVolumeClaim,
	change func(*corev1.PersistentVolumeClaimStatus),
) (*corev1.PersistentVolumeClaim, error) {
	next := claim.DeepCopy()
	change(&next.Status)
	patch, err := twoWayPatch(claim, next)
	if err != nil {
		return nil, err
	}
	if patch == nil {
		return claim, nil
	}
	out, err := c.client.Claims(claim.Namespace).Patch(ctx, claim.Name,
		types.MergePatchType, patch, "status")
	if err != nil {
		return nil, fmt.Errorf("patch status of claim %s/%s: %w", claim.Namespace, claim.Name, err)
	}
	return out, nil
}

// twoWayPatch is the difference of two states of a claim, bound to the first;
// nil if there is none.
func twoWayPatch(old, next *corev1.PersistentVolumeClaim) ([]byte, error) {
	a, err := json.Marshal(old)
	if err != nil {
		return nil, err
	}
	b, err := json.Marshal(next)
	if err != nil {
		return nil, err
	}
	patch, err := jsonpatch.CreateMergePatch(a, b)
	if err != nil || string(patch) == "{}" {
		return nil, err
	}
	var fields map[string]any
	if err := json.Unmarshal(patch, &fields); err != nil {
		return nil, err
	}
	fields["metadata"] = map[string]any{"uid": old.UID, "resourceVersion": old.ResourceVersion}
	return json.Marshal(fields)
}

// setCondition adds or replaces a condition; a condition that says the same
// keeps its time.
func setCondition(s *corev1.PersistentVolumeClaimStatus, kind corev1.PersistentVolumeClaimConditionType, text string) {
	for i := range s.Conditions {
		if c := &s.Conditions[i]; c.Type == kind {
			if c.Status != corev1.ConditionTrue || c.Message != text {
				c.Status, c.Message, c.LastTransitionTime = corev1.ConditionTrue, text, metav1.Now()
			}
			return
		}
	}
	s.Conditions = append(s.Conditions, corev1.PersistentVolumeClaimCondition{
		Type: kind, Status: corev1.ConditionTrue, Message: text, LastTransitionTime: metav1.Now(),
	})
}

func dropConditions(s *corev1.PersistentVolumeClaimStatus, kinds ...corev1.PersistentVolumeClaimConditionType) {
	s.Conditions = slices.DeleteFunc(s.Conditions, func(c corev1.PersistentVolumeClaimCondition) bool {
		return slices.Contains(kinds, c.Type)
	})
}

// boundVolume is the claim and its volume, if both exist, belong together and
// are this node's.
func (c *Controllers) boundVolume(key string) (*corev1.PersistentVolumeClaim, *corev1.PersistentVolume, error) {
	claim, ok, err := get[*corev1.PersistentVolumeClaim](c.claims, key)
	if err != nil || !ok || claim.DeletionTimestamp != nil || claim.Status.Phase != corev1.ClaimBound {
		return nil, nil, err
	}
	pv, ok, err := get[*corev1.PersistentVolume](c.volumes, claim.Spec.VolumeName)
	if err != nil || !ok || !c.ownVolume(pv) || pv.Spec.ClaimRef == nil || pv.Spec.ClaimRef.UID != claim.UID {
		return nil, nil, err
	}
	return claim, pv, nil
}

// followBound queues the keys of bound claims whenever they or their volumes
// change.
func (c *Controllers) followBound(r *reconciler) error {
	if err := r.follow(c.claims, func(obj any) bool {
		claim, ok := obj.(*corev1.PersistentVolumeClaim)
		return ok && claim.Status.Phase == corev1.ClaimBound
	}); err != nil {
		return err
	}
	return r.followAs(c.volumes, func(obj any) string {
		pv, ok := obj.(*corev1.PersistentVolume)
		if !ok || !c.ownVolume(pv) || pv.Spec.ClaimRef == nil {
			return ""
		}
		return pv.Spec.ClaimRef.Namespace + "/" + pv.Spec.ClaimRef.Name
	})
}

// quiet reports errors that only mean that the object changed: the change
// has queued it again already.
func quiet(err error) error {
	if apierrors.IsConflict(err) || apierrors.IsNotFound(err) {
		return nil
	}
	return err
}

// refusals remember, per object, a request that cannot succeed, so that it is
// repeated rarely instead of at each change of the object's status.
type refusals struct {
	every time.Duration
	seen  map[types.UID]refusal
}

type refusal struct {
	request string
	until   time.Time
}

// wait is how long request should not be repeated; 0: make it now.
func (r *refusals) wait(uid types.UID, request string) time.Duration {
	s, ok := r.seen[uid]
	if !ok || s.request != request {
		return 0
	}
	return max(0, time.Until(s.until))
}

func (r *refusals) add(uid types.UID, request string) {
	r.seen[uid] = refusal{request: request, until: time.Now().Add(r.every)}
}
