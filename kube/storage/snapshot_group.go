// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"

	"github.com/container-storage-interface/spec/lib/go/csi"
	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// Names of the group snapshot API, in the places of those in snapshot.go.
const (
	annGroupCreating = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-created"
	annGroupDeleting = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshot-being-deleted"
	finalizerGroup   = "groupsnapshot.storage.kubernetes.io/volumegroupsnapshotcontent-bound-protection"
)

// groupSnapshotter takes and deletes the group snapshots of volumes that are
// all on this node. Their members' own contents are the snapshotter's.
type groupSnapshotter struct {
	*Controllers
	queue    *reconciler
	contents cache.SharedIndexInformer
}

func (c *Controllers) addGroupSnapshotter(ctx context.Context) error {
	// The snapshot-controller names no node for groups: every agent looks at all.
	contents, err := c.client.GroupContents().Informer(metav1.ListOptions{}, dropManagedFields)
	if err != nil {
		return err
	}
	g := &groupSnapshotter{Controllers: c, contents: contents}
	g.queue = newReconciler("group snapshotter", c.cfg.Workers, c.log, g.reconcile)
	if err := g.follow(); err != nil {
		return err
	}
	c.whenServed(ctx, groupv1.SchemeGroupVersion.WithResource("volumegroupsnapshotcontents"), g.queue, g.contents)
	return nil
}

// follow queues contents that are new or that another has changed, as the
// snapshotter's does.
func (g *groupSnapshotter) follow() error {
	add := func(obj any) {
		if content, ok := obj.(*groupv1.VolumeGroupSnapshotContent); ok && content.Spec.Driver == g.cfg.Driver {
			g.queue.queue.Add(content.Name)
		}
	}
	_, err := g.contents.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: add,
		UpdateFunc: func(before, after any) {
			a, _ := before.(*groupv1.VolumeGroupSnapshotContent)
			b, _ := after.(*groupv1.VolumeGroupSnapshotContent)
			if a == nil || b == nil || a.Generation != b.Generation ||
				a.DeletionTimestamp.IsZero() != b.DeletionTimestamp.IsZero() ||
				a.Annotations[annGroupDeleting] != b.Annotations[annGroupDeleting] ||
				!slices.Equal(a.Finalizers, b.Finalizers) {
				add(after)
			}
		},
	})
	return err
}

// reconcile brings one content a step further.
func (g *groupSnapshotter) reconcile(ctx context.Context, name string) error {
	content, ok, err := get[*groupv1.VolumeGroupSnapshotContent](g.contents, name)
	if err != nil || !ok {
		return err
	}
	mine, err := g.mine(ctx, content)
	if err != nil || !mine {
		return quiet(err)
	}
	_, creating := content.Annotations[annGroupCreating]
	done := content.Status != nil && deref(content.Status.ReadyToUse, false)
	switch {
	case groupMayGo(content):
		return quiet(g.remove(ctx, content))
	case done && creating:
		return quiet(g.annotate(ctx, content, false))
	case done || content.DeletionTimestamp != nil && !creating:
		return nil
	case content.Spec.Source.GroupSnapshotHandles != nil:
		return quiet(g.look(ctx, content, content.Spec.Source.GroupSnapshotHandles))
	default:
		return quiet(g.take(ctx, content))
	}
}

// mine reports whether the group is this node's, and marks it so: the node of
// its first volume is the one that answers for it.
func (g *groupSnapshotter) mine(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent) (bool, error) {
	if node, marked := content.Labels[labelSnapshotNode]; marked {
		return node == g.deps.Node, nil
	}
	if handles := content.Spec.Source.GroupSnapshotHandles; handles != nil {
		call, cancel := g.withTimeout(ctx)
		defer cancel()
		if _, err := g.deps.Groups.GetVolumeGroupSnapshot(call, getGroup(handles)); err != nil {
			return false, nil // another node's, then
		}
	} else if volumes := content.Spec.Source.VolumeHandles; len(volumes) > 0 {
		here, known := g.where(volumes[0])
		if !known {
			g.queue.queue.AddAfter(content.Name, g.cfg.CapacityPeriod)
		}
		if !here {
			return false, nil
		}
	}
	patch, err := managedBy(content.UID, g.deps.Node)
	if err != nil {
		return false, err
	}
	return true, g.patch(ctx, content, patch)
}

// groupMayGo reports whether the snapshots behind the object are to be deleted now.
func groupMayGo(content *groupv1.VolumeGroupSnapshotContent) bool {
	if content.DeletionTimestamp == nil {
		return false
	}
	if groupNeverBound(content) {
		return true
	}
	_, creating := content.Annotations[annGroupCreating]
	_, deleting := content.Annotations[annGroupDeleting]
	return deleting && !creating
}

// groupNeverBound reports whether the object is of a group found on the driver that
// nobody claimed.
func groupNeverBound(content *groupv1.VolumeGroupSnapshotContent) bool {
	return content.Spec.Source.GroupSnapshotHandles != nil && content.Spec.VolumeGroupSnapshotRef.UID == ""
}

// take takes the snapshots of all volumes at one moment.
func (g *groupSnapshotter) take(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent) error {
	params, err := g.plan(ctx, content)
	if err != nil {
		return g.failed(ctx, content, "GroupSnapshotCreationFailed", err)
	}
	if err := g.annotate(ctx, content, true); err != nil {
		return err
	}
	call, cancel := g.withTimeout(ctx)
	defer cancel()
	resp, err := g.deps.Groups.CreateVolumeGroupSnapshot(call, &csi.CreateVolumeGroupSnapshotRequest{
		Name:            "groupsnapshot-" + string(content.Spec.VolumeGroupSnapshotRef.UID),
		SourceVolumeIds: content.Spec.Source.VolumeHandles, Parameters: params,
	})
	if err != nil {
		if final(err) {
			if aerr := g.annotate(ctx, content, false); aerr != nil {
				return errors.Join(err, aerr)
			}
		}
		return g.failed(ctx, content, "GroupSnapshotCreationFailed", err)
	}
	if err := g.report(ctx, content, resp.GetGroupSnapshot()); err != nil {
		return err
	}
	g.CapacityChanged()
	g.log.InfoContext(ctx, "group snapshot taken", "content", content.Name, "handle", resp.GetGroupSnapshot().GetGroupSnapshotId())
	// It may have to go again.
	g.queue.queue.AddAfter(content.Name, backoffMin)
	return g.annotate(ctx, content, false)
}

// plan is the parameters of the group's class, when the group can be taken.
func (g *groupSnapshotter) plan(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent) (map[string]string, error) {
	for _, handle := range content.Spec.Source.VolumeHandles {
		if here, known := g.where(handle); known && !here {
			return nil, fmt.Errorf("volume %s is on another node: volumes of several nodes cannot be held at one moment", handle)
		}
	}
	name := deref(content.Spec.VolumeGroupSnapshotClassName, "")
	if name == "" {
		return nil, nil
	}
	class, err := g.client.GroupClasses().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("group snapshot class: %w", err)
	}
	return class.Parameters, plainParameters("group snapshot class "+name, class.Parameters)
}

func getGroup(handles *groupv1.GroupSnapshotHandles) *csi.GetVolumeGroupSnapshotRequest {
	return &csi.GetVolumeGroupSnapshotRequest{GroupSnapshotId: handles.VolumeGroupSnapshotHandle, SnapshotIds: handles.VolumeSnapshotHandles}
}

// look asks the driver about a group that was there before its object.
func (g *groupSnapshotter) look(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent, handles *groupv1.GroupSnapshotHandles) error {
	call, cancel := g.withTimeout(ctx)
	defer cancel()
	resp, err := g.deps.Groups.GetVolumeGroupSnapshot(call, getGroup(handles))
	if err != nil {
		return g.failed(ctx, content, "GroupSnapshotContentCheckandUpdateFailed", err)
	}
	return g.report(ctx, content, resp.GetGroupSnapshot())
}

// remove deletes the group if its object says so, and lets the object go.
func (g *groupSnapshotter) remove(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent) error {
	handle, members := groupHandles(content)
	if content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete && handle != "" {
		call, cancel := g.withTimeout(ctx)
		defer cancel()
		_, err := g.deps.Groups.DeleteVolumeGroupSnapshot(call, &csi.DeleteVolumeGroupSnapshotRequest{GroupSnapshotId: handle, SnapshotIds: members})
		if err != nil {
			return g.failed(ctx, content, "GroupSnapshotDeleteError", err)
		}
		g.CapacityChanged()
		g.log.InfoContext(ctx, "group snapshot deleted", "content", content.Name, "handle", handle)
	}
	return g.letGo(ctx, content)
}

// letGo takes the finalizer off an object whose group is no more.
func (g *groupSnapshotter) letGo(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent) error {
	finalizers := slices.DeleteFunc(slices.Clone(content.Finalizers), func(f string) bool { return f == finalizerGroup })
	if len(finalizers) == len(content.Finalizers) {
		return nil
	}
	return g.patchFields(ctx, content, map[string]any{"metadata": map[string]any{
		"resourceVersion": content.ResourceVersion, "finalizers": finalizers,
	}})
}

// groupHandles are the driver's names of the group and its members, "" before
// they have them.
func groupHandles(content *groupv1.VolumeGroupSnapshotContent) (group string, members []string) {
	if given := content.Spec.Source.GroupSnapshotHandles; given != nil {
		return given.VolumeGroupSnapshotHandle, given.VolumeSnapshotHandles
	}
	if content.Status == nil {
		return "", nil
	}
	for _, m := range content.Status.VolumeSnapshotInfoList {
		members = append(members, m.SnapshotHandle)
	}
	return deref(content.Status.VolumeGroupSnapshotHandle, ""), members
}

// report writes down what the driver says of a group.
func (g *groupSnapshotter) report(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent, snap *csi.VolumeGroupSnapshot) error {
	var members []groupv1.VolumeSnapshotInfo
	for _, m := range snap.GetSnapshots() {
		members = append(members, groupv1.VolumeSnapshotInfo{
			VolumeHandle: m.GetSourceVolumeId(), SnapshotHandle: m.GetSnapshotId(), ReadyToUse: new(m.GetReadyToUse()),
			RestoreSize: new(m.GetSizeBytes()), CreationTime: new(m.GetCreationTime().AsTime().UnixNano()),
		})
	}
	return g.patchFields(ctx, content, map[string]any{"status": map[string]any{
		"volumeGroupSnapshotHandle": snap.GetGroupSnapshotId(), "readyToUse": snap.GetReadyToUse(), "error": nil,
		"creationTime": metav1.NewTime(snap.GetCreationTime().AsTime()), "volumeSnapshotInfoList": members,
	}}, "status")
}

// failed says why a step could not be done, once for each reason, and returns
// the error so that it is tried again.
func (g *groupSnapshotter) failed(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent, reason string, why error) error {
	text := fmt.Sprintf("node %s: %s", g.deps.Node, message(why))
	if content.Status == nil || content.Status.Error == nil || deref(content.Status.Error.Message, "") != text {
		g.events.Event(content, corev1.EventTypeWarning, reason, text)
		g.events.EventOn(content.Spec.VolumeGroupSnapshotRef, corev1.EventTypeWarning, reason, text)
		err := g.patchFields(ctx, content, map[string]any{"status": map[string]any{
			"readyToUse": false, "error": map[string]any{"message": text, "time": metav1.Now()},
		}}, "status")
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("group content %s: %w", content.Name, why)
}

// annotate sets or removes the mark of a group in the making.
func (g *groupSnapshotter) annotate(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent, creating bool) error {
	if _, have := content.Annotations[annGroupCreating]; have && creating {
		return nil
	}
	var value any
	if creating {
		value = "yes"
	}
	return g.patchFields(ctx, content, map[string]any{"metadata": map[string]any{
		"uid": content.UID, "annotations": map[string]any{annGroupCreating: value},
	}})
}

func (g *groupSnapshotter) patchFields(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent, patch map[string]any, sub ...string) error {
	data, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	return g.patch(ctx, content, data, sub...)
}

func (g *groupSnapshotter) patch(ctx context.Context, content *groupv1.VolumeGroupSnapshotContent, patch []byte, sub ...string) error {
	_, err := g.client.GroupContents().Patch(ctx, content.Name, types.MergePatchType, patch, sub...)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("patch VolumeGroupSnapshotContent %s: %w", content.Name, err)
	}
	return nil
}
