// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"errors"
	"fmt"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// snapshotGroup is the API group of VolumeSnapshots.
const snapshotGroup = "snapshot.storage.k8s.io"

// snapshotHandle is the driver's name of a VolumeSnapshot that is ready.
func (p *provisioner) snapshotHandle(ctx context.Context, namespace, name string) (string, error) {
	snap, err := p.client.Snapshots(namespace).Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	if snap.DeletionTimestamp != nil {
		return "", errors.New("is being deleted")
	}
	if snap.Status == nil || !deref(snap.Status.ReadyToUse, false) || snap.Status.BoundVolumeSnapshotContentName == nil {
		return "", errors.New("is not ready to use")
	}
	content, err := p.client.SnapshotContents().Get(ctx, *snap.Status.BoundVolumeSnapshotContentName, metav1.GetOptions{})
	if err != nil {
		return "", err
	}
	ref := content.Spec.VolumeSnapshotRef
	if ref.UID != snap.UID {
		return "", fmt.Errorf("its content %s belongs to another snapshot", content.Name)
	}
	if content.Spec.Driver != p.cfg.Driver {
		return "", fmt.Errorf("its content %s is of driver %s", content.Name, content.Spec.Driver)
	}
	if content.Status == nil || content.Status.SnapshotHandle == nil {
		return "", fmt.Errorf("its content %s has no handle", content.Name)
	}
	return *content.Status.SnapshotHandle, nil
}
