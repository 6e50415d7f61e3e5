// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"encoding/json"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// adopter labels contents that name no node with this node, when their volume or
// snapshot is here; then the snapshotter sees them. The snapshot-controller
// leaves the label out for the members of a group, and for everything when it
// runs without --enable-distributed-snapshotting.
type adopter struct {
	*Controllers
	queue    *reconciler
	contents cache.SharedIndexInformer
}

func (c *Controllers) addAdopter(ctx context.Context) error {
	unnamed := metav1.ListOptions{LabelSelector: "!" + labelSnapshotNode}
	contents, err := c.client.SnapshotContents().Informer(unnamed, dropManagedFields)
	if err != nil {
		return err
	}
	a := &adopter{Controllers: c, contents: contents}
	a.queue = newReconciler("adopter", c.cfg.Workers, c.log, a.reconcile)
	err = a.queue.follow(a.contents, func(obj any) bool {
		content, ok := obj.(*snapshotv1.VolumeSnapshotContent)
		return ok && content.Spec.Driver == c.cfg.Driver
	})
	if err != nil {
		return err
	}
	c.whenServed(ctx, snapshotv1.SchemeGroupVersion.WithResource(snapshotContents), a.queue, a.contents)
	return nil
}

func (a *adopter) reconcile(ctx context.Context, name string) error {
	content, ok, err := get[*snapshotv1.VolumeSnapshotContent](a.contents, name)
	if err != nil || !ok {
		return err
	}
	here, err := a.isHere(ctx, name, content)
	if err != nil || !here {
		return err
	}
	patch, err := managedBy(content.UID, a.deps.Node)
	if err != nil {
		return err
	}
	_, err = a.client.SnapshotContents().Patch(ctx, name, types.MergePatchType, patch)
	if err := quiet(err); err != nil {
		return fmt.Errorf("adopt content %s: %w", name, err)
	}
	return nil
}

// isHere asks the volume's object, and where there is none the driver.
func (a *adopter) isHere(ctx context.Context, name string, content *snapshotv1.VolumeSnapshotContent) (bool, error) {
	if volume := content.Spec.Source.VolumeHandle; volume != nil {
		if here, known := a.where(*volume); known {
			return here, nil
		}
	}
	handle := snapshotHandleOf(content)
	if handle == "" {
		// The volume's object may still be on its way to this node.
		a.queue.queue.AddAfter(name, a.cfg.CapacityPeriod)
		return false, nil
	}
	call, cancel := a.withTimeout(ctx)
	defer cancel()
	resp, err := a.deps.Snapshots.ListSnapshots(call, &csi.ListSnapshotsRequest{SnapshotId: handle})
	return len(resp.GetEntries()) > 0, err
}

// managedBy is the patch that gives a content to a node.
func managedBy(uid types.UID, node string) ([]byte, error) {
	return json.Marshal(map[string]any{"metadata": map[string]any{
		"uid": uid, "labels": map[string]any{labelSnapshotNode: node},
	}})
}
