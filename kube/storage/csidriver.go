// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// driverPeriod is how often the CSIDriver object is looked at: a person may
// delete it, and without it the kubelet waits for an attachment forever.
const driverPeriod = 5 * time.Minute

// DriverObject is the CSIDriver object that the driver needs. Attaching is
// nothing on a local volume; pod information is how inline volumes are told
// from others. seLinuxMount: each volume is a file system of its own, so the
// kubelet may mount it with an SELinux context.
func DriverObject(name string, seLinuxMount bool) *storagev1.CSIDriver {
	return &storagev1.CSIDriver{
		ObjectMeta: metav1.ObjectMeta{
			Name:   name,
			Labels: map[string]string{"app.kubernetes.io/name": "nodeagent"},
		},
		Spec: storagev1.CSIDriverSpec{
			AttachRequired:    new(false),
			PodInfoOnMount:    new(true),
			StorageCapacity:   new(true),
			RequiresRepublish: new(false),
			SELinuxMount:      new(seLinuxMount),
			FSGroupPolicy:     new(storagev1.FileFSGroupPolicy),
			VolumeLifecycleModes: []storagev1.VolumeLifecycleMode{
				storagev1.VolumeLifecyclePersistent, storagev1.VolumeLifecycleEphemeral,
			},
		},
	}
}

// keepDriverObject makes the object right, now and from time to time.
func (c *Controllers) keepDriverObject(ctx context.Context) {
	for wait := backoffMin; ; {
		next := driverPeriod
		if err := c.ensureDriverObject(ctx); err != nil && ctx.Err() == nil {
			c.log.WarnContext(ctx, "CSIDriver object is not right", "driver", c.cfg.Driver, "err", err)
			next = wait
			wait = min(2*wait, backoffMax)
		} else {
			wait = backoffMin
		}
		if !pause(ctx, next) {
			return
		}
	}
}

func (c *Controllers) ensureDriverObject(ctx context.Context) error {
	want := DriverObject(c.cfg.Driver, c.deps.SELinuxMount)
	api := c.client.CSIDrivers()
	have, err := api.Get(ctx, want.Name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		_, err = api.Create(ctx, want, metav1.CreateOptions{})
		if apierrors.IsAlreadyExists(err) { // another node's agent was faster
			return nil
		}
		return err
	}
	if err != nil {
		return fmt.Errorf("get CSIDriver %s: %w", want.Name, err)
	}
	if !deref(have.Spec.AttachRequired, true) && sameModes(have.Spec.VolumeLifecycleModes, want.Spec.VolumeLifecycleModes) {
		return c.updateDriverObject(ctx, have, want)
	}
	// These two cannot be changed; volumes in use do not depend on the object.
	if err := api.Delete(ctx, have.Name, metav1.DeleteOptions{
		Preconditions: &metav1.Preconditions{UID: &have.UID},
	}); err != nil && !apierrors.IsNotFound(err) && !apierrors.IsConflict(err) {
		return fmt.Errorf("replace CSIDriver %s: %w", want.Name, err)
	}
	c.log.InfoContext(ctx, "CSIDriver object with other lifecycle or attachment is replaced", "driver", want.Name)
	_, err = api.Create(ctx, want, metav1.CreateOptions{})
	if apierrors.IsAlreadyExists(err) {
		return nil
	}
	return err
}

// updateDriverObject changes what can be changed, and leaves alone what a
// person may want otherwise: storageCapacity, and the fields not set here.
func (c *Controllers) updateDriverObject(ctx context.Context, have, want *storagev1.CSIDriver) error {
	spec := have.Spec.DeepCopy()
	spec.PodInfoOnMount = want.Spec.PodInfoOnMount
	spec.SELinuxMount = want.Spec.SELinuxMount
	spec.RequiresRepublish = want.Spec.RequiresRepublish
	if deref(have.Spec.PodInfoOnMount, false) == deref(spec.PodInfoOnMount, false) &&
		deref(have.Spec.SELinuxMount, false) == deref(spec.SELinuxMount, false) &&
		deref(have.Spec.RequiresRepublish, false) == deref(spec.RequiresRepublish, false) {
		return nil
	}
	next := have.DeepCopy()
	next.Spec = *spec
	_, err := c.client.CSIDrivers().Update(ctx, next, metav1.UpdateOptions{})
	if apierrors.IsConflict(err) {
		return errors.Join(errors.New("changed by another"), err)
	}
	return err
}

func sameModes(a, b []storagev1.VolumeLifecycleMode) bool {
	a, b = slices.Clone(a), slices.Clone(b)
	slices.Sort(a)
	slices.Sort(b)
	return slices.Equal(a, b)
}

func deref[T any](p *T, otherwise T) T {
	if p == nil {
		return otherwise
	}
	return *p
}
