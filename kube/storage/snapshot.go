// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/container-storage-interface/spec/lib/go/csi"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime/schema"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// Names that the snapshot-controller and its sidecar have agreed on.
const (
	labelSnapshotNode = "snapshot.storage.kubernetes.io/managed-by"
	// annSnapshotCreating is set before the driver is asked and taken off when it
	// has given its last word: until then the object must not go.
	annSnapshotCreating = "snapshot.storage.kubernetes.io/volumesnapshot-being-created"
	annSnapshotDeleting = "snapshot.storage.kubernetes.io/volumesnapshot-being-deleted"
	annSnapshotGroup    = "groupsnapshot.storage.k8s.io/volumeGroupSnapshotHandle"
	snapshotContents    = "volumesnapshotcontents"
	finalizerSnapshot   = "snapshot.storage.kubernetes.io/volumesnapshotcontent-bound-protection"
)

// snapshotter takes and deletes the snapshots that the snapshot-controller
// gave to this node: it is what the csi-snapshotter sidecar is elsewhere.
type snapshotter struct {
	*Controllers
	queue    *reconciler
	contents cache.SharedIndexInformer
}

// addSnapshotter waits for the snapshot API, which is not part of Kubernetes,
// and then begins to work.
func (c *Controllers) addSnapshotter(ctx context.Context) error {
	own := metav1.ListOptions{LabelSelector: labelSnapshotNode + "=" + c.deps.Node}
	contents, err := c.client.SnapshotContents().Informer(own, dropManagedFields)
	if err != nil {
		return err
	}
	s := &snapshotter{Controllers: c, contents: contents}
	s.queue = newReconciler("snapshotter", c.cfg.Workers, c.log, s.reconcile)
	if err := s.follow(); err != nil {
		return err
	}
	c.whenServed(ctx, snapshotv1.SchemeGroupVersion.WithResource(snapshotContents), s.queue, s.contents)
	return nil
}

// whenServed begins to work on a queue when the server knows the resource, the informer
// its objects, and the volumes are known, too.
func (c *Controllers) whenServed(ctx context.Context, resource schema.GroupVersionResource, queue *reconciler, contents cache.SharedIndexInformer) {
	c.wg.Go(func() {
		defer queue.stop()
		if !c.awaitAPI(ctx, resource) {
			return
		}
		var informer sync.WaitGroup
		defer informer.Wait()
		informer.Go(func() { contents.RunWithContext(ctx) })
		if !cache.WaitForCacheSync(ctx.Done(), contents.HasSynced, c.volumes.HasSynced) {
			return
		}
		queue.start(ctx)
		<-ctx.Done()
	})
}

// follow queues contents that are new or that another has changed. What this
// controller writes itself, it has acted upon; to act again at once would make a
// failing step a busy one.
func (s *snapshotter) follow() error {
	add := func(obj any) {
		if content, ok := obj.(*snapshotv1.VolumeSnapshotContent); ok && content.Spec.Driver == s.cfg.Driver {
			s.queue.queue.Add(content.Name)
		}
	}
	_, err := s.contents.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc: add,
		UpdateFunc: func(before, after any) {
			a, _ := before.(*snapshotv1.VolumeSnapshotContent)
			b, _ := after.(*snapshotv1.VolumeSnapshotContent)
			if a == nil || b == nil || a.Generation != b.Generation ||
				a.DeletionTimestamp.IsZero() != b.DeletionTimestamp.IsZero() ||
				a.Annotations[annSnapshotDeleting] != b.Annotations[annSnapshotDeleting] {
				add(after)
			}
		},
	})
	return err
}

// awaitAPI waits until the server knows a resource of the snapshot API.
func (c *Controllers) awaitAPI(ctx context.Context, resource schema.GroupVersionResource) bool {
	for wait := backoffMin; ; wait = min(2*wait, backoffMax) {
		if ok, err := c.client.HasResource(ctx, resource.GroupVersion(), resource.Resource); err == nil && ok {
			return true
		}
		if !pause(ctx, wait) {
			return false
		}
	}
}

// reconcile brings one content a step further.
func (s *snapshotter) reconcile(ctx context.Context, name string) error {
	content, ok, err := get[*snapshotv1.VolumeSnapshotContent](s.contents, name)
	if err != nil || !ok || content.Spec.Driver != s.cfg.Driver {
		return err
	}
	_, creating := content.Annotations[annSnapshotCreating]
	handle := snapshotHandleOf(content)
	switch {
	case s.mayGo(content):
		return quiet(s.remove(ctx, content))
	case handle == "" && toTake(content):
		return quiet(s.take(ctx, content))
	case handle != "" && creating:
		s.queue.queue.AddAfter(name, backoffMin)
		return quiet(s.annotate(ctx, content, false))
	case content.DeletionTimestamp == nil && !ready(content) && handle != "":
		return quiet(s.look(ctx, content, handle))
	default:
		return nil
	}
}

// mayGo reports whether the snapshot behind the object is to be deleted now.
func (s *snapshotter) mayGo(content *snapshotv1.VolumeSnapshotContent) bool {
	if content.DeletionTimestamp == nil {
		return false
	}
	if neverBound(content) {
		return true
	}
	if _, creating := content.Annotations[annSnapshotCreating]; creating && content.Spec.Source.VolumeHandle != nil {
		return false
	}
	_, deleting := content.Annotations[annSnapshotDeleting]
	return deleting
}

// neverBound reports whether the object is of a snapshot found on the driver that
// nobody claimed.
func neverBound(content *snapshotv1.VolumeSnapshotContent) bool {
	return content.Spec.Source.SnapshotHandle != nil && content.Spec.VolumeSnapshotRef.UID == ""
}

// toTake reports whether the driver is to take the snapshot, or to say what
// became of one that it was asked for.
func toTake(content *snapshotv1.VolumeSnapshotContent) bool {
	_, creating := content.Annotations[annSnapshotCreating]
	return content.Spec.Source.VolumeHandle != nil && !inGroup(content) && (content.DeletionTimestamp == nil || creating)
}

// inGroup reports whether the snapshot was taken with others, and goes with them.
func inGroup(content *snapshotv1.VolumeSnapshotContent) bool {
	_, marked := content.Annotations[annSnapshotGroup]
	return marked || content.Status != nil && content.Status.VolumeGroupSnapshotHandle != nil
}

func ready(content *snapshotv1.VolumeSnapshotContent) bool {
	return content.Status != nil && deref(content.Status.ReadyToUse, false)
}

// snapshotHandleOf is the driver's name of the snapshot, "" before it has one.
func snapshotHandleOf(content *snapshotv1.VolumeSnapshotContent) string {
	if content.Status != nil && content.Status.SnapshotHandle != nil {
		return *content.Status.SnapshotHandle
	}
	return deref(content.Spec.Source.SnapshotHandle, "")
}

// take takes the snapshot.
func (s *snapshotter) take(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) error {
	params, err := s.classParameters(ctx, content)
	if err != nil {
		return s.failed(ctx, content, "SnapshotCreationFailed", err)
	}
	if err := s.annotate(ctx, content, true); err != nil {
		return err
	}
	call, cancel := s.withTimeout(ctx)
	defer cancel()
	resp, err := s.deps.Snapshots.CreateSnapshot(call, &csi.CreateSnapshotRequest{
		Name:           "snapshot-" + string(content.Spec.VolumeSnapshotRef.UID),
		SourceVolumeId: *content.Spec.Source.VolumeHandle, Parameters: params,
	})
	if err != nil {
		if final(err) {
			if aerr := s.annotate(ctx, content, false); aerr != nil {
				return errors.Join(err, aerr)
			}
		}
		return s.failed(ctx, content, "SnapshotCreationFailed", err)
	}
	if err := s.report(ctx, content, resp.GetSnapshot()); err != nil {
		return err
	}
	s.CapacityChanged()
	s.log.InfoContext(ctx, "snapshot taken", "content", content.Name, "handle", resp.GetSnapshot().GetSnapshotId())
	// It may have to go again, or not be ready yet.
	s.queue.queue.AddAfter(content.Name, backoffMin)
	return s.annotate(ctx, content, false)
}

// classParameters are the driver's parameters of the content's class.
func (s *snapshotter) classParameters(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) (map[string]string, error) {
	name := deref(content.Spec.VolumeSnapshotClassName, "")
	if name == "" {
		return nil, nil
	}
	class, err := s.client.SnapshotClasses().Get(ctx, name, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("snapshot class: %w", err)
	}
	return class.Parameters, plainParameters("snapshot class "+name, class.Parameters)
}

// plainParameters refuses parameters that would be silently without effect.
func plainParameters(whose string, params map[string]string) error {
	for _, key := range slices.Sorted(maps.Keys(params)) {
		if strings.HasPrefix(key, prefixParameter) {
			return fmt.Errorf("%s: parameter %s: the driver takes no secrets and no such setting", whose, key)
		}
	}
	return nil
}

// look asks the driver about a snapshot that is not ready, or that was there
// before its object.
func (s *snapshotter) look(ctx context.Context, content *snapshotv1.VolumeSnapshotContent, handle string) error {
	call, cancel := s.withTimeout(ctx)
	defer cancel()
	resp, err := s.deps.Snapshots.ListSnapshots(call, &csi.ListSnapshotsRequest{SnapshotId: handle})
	if err == nil && len(resp.GetEntries()) == 0 {
		err = fmt.Errorf("node %s has no snapshot %s", s.deps.Node, handle)
	}
	if err != nil {
		return s.failed(ctx, content, "SnapshotContentCheckandUpdateFailed", err)
	}
	if err := s.report(ctx, content, resp.GetEntries()[0].GetSnapshot()); err != nil {
		return err
	}
	if !resp.GetEntries()[0].GetSnapshot().GetReadyToUse() {
		s.queue.queue.AddAfter(content.Name, s.cfg.CapacityPeriod)
	}
	return nil
}

// remove deletes the snapshot if its object says so, and lets the object go.
func (s *snapshotter) remove(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) error {
	handle := snapshotHandleOf(content)
	if content.Spec.DeletionPolicy == snapshotv1.VolumeSnapshotContentDelete && handle != "" && !inGroup(content) {
		call, cancel := s.withTimeout(ctx)
		defer cancel()
		if _, err := s.deps.Snapshots.DeleteSnapshot(call, &csi.DeleteSnapshotRequest{SnapshotId: handle}); err != nil {
			return s.failed(ctx, content, "SnapshotDeleteError", err)
		}
		s.CapacityChanged()
		s.log.InfoContext(ctx, "snapshot deleted", "content", content.Name, "handle", handle)
	}
	return s.letGo(ctx, content)
}

// letGo takes the finalizer off an object whose snapshot is no more.
func (s *snapshotter) letGo(ctx context.Context, content *snapshotv1.VolumeSnapshotContent) error {
	finalizers := slices.DeleteFunc(slices.Clone(content.Finalizers), func(f string) bool { return f == finalizerSnapshot })
	if len(finalizers) == len(content.Finalizers) {
		return nil
	}
	return s.patch(ctx, content, map[string]any{"metadata": map[string]any{
		"resourceVersion": content.ResourceVersion, "finalizers": finalizers,
	}})
}

// report writes down what the driver says of a snapshot.
func (s *snapshotter) report(ctx context.Context, content *snapshotv1.VolumeSnapshotContent, snap *csi.Snapshot) error {
	status := map[string]any{
		"snapshotHandle": snap.GetSnapshotId(), "readyToUse": snap.GetReadyToUse(), "error": nil,
	}
	if t := snap.GetCreationTime(); t != nil {
		status["creationTime"] = t.AsTime().UnixNano()
	}
	if size := snap.GetSizeBytes(); size > 0 {
		status["restoreSize"] = size
	}
	return s.patch(ctx, content, map[string]any{"status": status}, "status")
}

// failed says why a step could not be done, once for each reason, and returns
// the error so that it is tried again.
func (s *snapshotter) failed(ctx context.Context, content *snapshotv1.VolumeSnapshotContent, reason string, why error) error {
	text := fmt.Sprintf("node %s: %s", s.deps.Node, message(why))
	if content.Status == nil || content.Status.Error == nil || deref(content.Status.Error.Message, "") != text {
		s.events.Event(content, corev1.EventTypeWarning, reason, text)
		s.events.EventOn(content.Spec.VolumeSnapshotRef, corev1.EventTypeWarning, reason, text)
		err := s.patch(ctx, content, map[string]any{"status": map[string]any{
			"readyToUse": false, "error": map[string]any{"message": text, "time": metav1.Now()},
		}}, "status")
		if err != nil {
			return err
		}
	}
	return fmt.Errorf("content %s: %w", content.Name, why)
}

// annotate sets or removes the mark of a snapshot in the making.
func (s *snapshotter) annotate(ctx context.Context, content *snapshotv1.VolumeSnapshotContent, creating bool) error {
	if _, have := content.Annotations[annSnapshotCreating]; have && creating {
		return nil
	}
	var value any
	if creating {
		value = "yes"
	}
	return s.patch(ctx, content, map[string]any{"metadata": map[string]any{
		"uid": content.UID, "annotations": map[string]any{annSnapshotCreating: value},
	}})
}

func (s *snapshotter) patch(ctx context.Context, content *snapshotv1.VolumeSnapshotContent, patch map[string]any, sub ...string) error {
	data, err := json.Marshal(patch)
	if err != nil {
		return err
	}
	_, err = s.client.SnapshotContents().Patch(ctx, content.Name,
		types.MergePatchType, data, sub...)
	if err != nil && !apierrors.IsNotFound(err) {
		return fmt.Errorf("patch VolumeSnapshotContent %s: %w", content.Name, err)
	}
	return nil
}
