// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"math/rand/v2"
	"slices"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// orphanLookers is how many nodes, on average, look for snapshots in each round: unlike
// volumes, those of other nodes are in no informer and have to be listed.
const orphanLookers = 4

// isTurn draws lots among the nodes that have volumes.
func (o *orphans) isTurn() bool {
	nodes := map[string]bool{}
	for _, obj := range o.volumes.GetStore().List() {
		if pv, ok := obj.(*corev1.PersistentVolume); ok {
			nodes[o.nodeOf(pv)] = true
		}
	}
	return rand.IntN(max(len(nodes), 1)) < orphanLookers
}

// elsewhere selects what is not labelled as this node's.
func (o *orphans) elsewhere() metav1.ListOptions {
	return metav1.ListOptions{LabelSelector: labelSnapshotNode + "!=" + o.deps.Node}
}

// nodeOfSnapshot is the node that an object is labelled with or, without a label,
// that its volume is on; empty when nobody knows.
func (o *orphans) nodeOfSnapshot(labels map[string]string, volume string) string {
	if node := labels[labelSnapshotNode]; node != "" || volume == "" {
		return node
	}
	objs, err := o.volumes.GetIndexer().ByIndex(byHandle, volume)
	if err != nil || len(objs) == 0 {
		return ""
	}
	pv, _ := objs[0].(*corev1.PersistentVolume)
	return o.nodeOf(pv)
}

// leftBy says whether the node of a snapshot to be deleted is gone.
func (o *orphans) leftBy(ctx context.Context, node string) (bool, error) {
	if node == "" || node == o.deps.Node {
		return false, nil
	}
	return o.isGone(ctx, node)
}

func (o *orphans) releaseSnapshots(ctx context.Context) {
	list, err := o.client.SnapshotContents().List(ctx, o.elsewhere())
	if err != nil {
		if quiet(err) != nil { // not found: no snapshot API here
			o.log.WarnContext(ctx, "snapshots of other nodes not listed", "err", err)
		}
		return
	}
	for i := range list.Items {
		if err := quiet(o.releaseSnapshot(ctx, &list.Items[i])); err != nil {
			o.log.WarnContext(ctx, "snapshot of a node that is gone not released", "content", list.Items[i].Name, "err", err)
		}
	}
}

func (o *orphans) releaseSnapshot(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) error {
	if content.Spec.Driver != o.cfg.Driver || !endsUnanswered(content) || !slices.Contains(content.Finalizers, finalizerSnapshot) {
		return nil
	}
	node := o.nodeOfSnapshot(content.Labels, deref(content.Spec.Source.VolumeHandle, ""))
	if left, err := o.leftBy(ctx, node); err != nil || !left {
		return err
	}
	s := &snapshotter{Controllers: o.Controllers}
	if err := s.letGo(ctx, content); err != nil {
		return err
	}
	o.events.Event(content, corev1.EventTypeWarning, reasonNodeGone, farewell(node))
	o.events.EventOn(content.Spec.VolumeSnapshotRef, corev1.EventTypeWarning, reasonNodeGone, farewell(node))
	o.log.InfoContext(ctx, "snapshot released, its node is gone", "content", content.Name, "node", node)
	return nil
}

// endsUnanswered says whether the object is to go, whatever its node had begun.
func endsUnanswered(content *snapshotv1.VolumeSnapshotContent) bool {
	if content.DeletionTimestamp == nil {
		return false
	}
	_, deleting := content.Annotations[annSnapshotDeleting]
	return deleting || neverBound(content)
}

func (o *orphans) releaseGroups(ctx context.Context) {
	list, err := o.client.GroupContents().List(ctx, o.elsewhere())
	if err != nil {
		if quiet(err) != nil {
			o.log.WarnContext(ctx, "group snapshots of other nodes not listed", "err", err)
		}
		return
	}
	for i := range list.Items {
		if err := quiet(o.releaseGroup(ctx, &list.Items[i])); err != nil {
			o.log.WarnContext(ctx, "group snapshot of a node that is gone not released", "content", list.Items[i].Name, "err", err)
		}
	}
}

func (o *orphans) releaseGroup(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent) error {
	if content.Spec.Driver != o.cfg.Driver || !groupEndsUnanswered(content) || !slices.Contains(content.Finalizers, finalizerGroup) {
		return nil
	}
	volume := ""
	if all := content.Spec.Source.VolumeHandles; len(all) > 0 {
		volume = all[0]
	}
	node := o.nodeOfSnapshot(content.Labels, volume)
	if left, err := o.leftBy(ctx, node); err != nil || !left {
		return err
	}
	g := &groupSnapshotter{Controllers: o.Controllers}
	if err := g.letGo(ctx, content); err != nil {
		return err
	}
	o.events.Event(content, corev1.EventTypeWarning, reasonNodeGone, farewell(node))
	o.events.EventOn(content.Spec.VolumeGroupSnapshotRef, corev1.EventTypeWarning, reasonNodeGone, farewell(node))
	o.log.InfoContext(ctx, "group snapshot released, its node is gone", "content", content.Name, "node", node)
	return nil
}

func groupEndsUnanswered(content *groupv1.VolumeGroupSnapshotContent) bool {
	if content.DeletionTimestamp == nil {
		return false
	}
	_, deleting := content.Annotations[annGroupDeleting]
	return deleting || groupNeverBound(content)
}
