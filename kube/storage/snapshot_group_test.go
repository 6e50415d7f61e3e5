// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"strings"
	"testing"

	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
)

// group makes the object that the snapshot-controller makes for a group.
func (s *snapshots) group(name string, source groupv1.VolumeGroupSnapshotContentSource) {
	s.t.Helper()
	_, err := s.GroupsnapshotV1().VolumeGroupSnapshotContents().Create(s.t.Context(), &groupv1.VolumeGroupSnapshotContent{
		ObjectMeta: metav1.ObjectMeta{Name: s.ns + "-" + name, Finalizers: []string{finalizerGroup}},
		Spec: groupv1.VolumeGroupSnapshotContentSpec{
			Driver: s.driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete, Source: source,
			VolumeGroupSnapshotRef: corev1.ObjectReference{Kind: "VolumeGroupSnapshot", Namespace: s.ns, Name: name, UID: types.UID(s.ns + name)},
		},
	}, metav1.CreateOptions{})
	s.must(err)
}

func (s *snapshots) getGroup(name string) *groupv1.VolumeGroupSnapshotContent {
	s.t.Helper()
	content, err := s.GroupsnapshotV1().VolumeGroupSnapshotContents().Get(s.t.Context(), s.ns+"-"+name, metav1.GetOptions{})
	if apierrors.IsNotFound(err) {
		return nil
	}
	s.must(err)
	return content
}

func groupReady(content *groupv1.VolumeGroupSnapshotContent) bool {
	_, creating := content.Annotations[annGroupCreating]
	return content.Status != nil && deref(content.Status.ReadyToUse, false) && !creating
}

// dropGroup deletes a group as the snapshot-controller does.
func (s *snapshots) dropGroup(name string) {
	s.t.Helper()
	api, ctx := s.GroupsnapshotV1().VolumeGroupSnapshotContents(), s.t.Context()
	_, err := api.Patch(ctx, s.ns+"-"+name, types.MergePatchType,
		[]byte(`{"metadata":{"annotations":{"`+annGroupDeleting+`":"yes"}}}`), metav1.PatchOptions{})
	s.must(err)
	s.must(api.Delete(ctx, s.ns+"-"+name, metav1.DeleteOptions{}))
}

// A group is taken by the node of its volumes though nobody named it; its members'
// contents become this node's, and go without the driver being asked for each.
func TestGroupSnapshotTakenAndDeleted(t *testing.T) {
	c := newCluster(t, wait)
	s := newSnapshots(c)
	c.fake.FailNext("group", status.Error(codes.Aborted, "busy"))
	c.fake.FailNext("delete-group", status.Error(codes.FailedPrecondition, "in use"))
	c.run(c.config())
	c.claim("mine", "1Gi", "me")
	c.claim("yours", "1Gi", "me")
	volumes := []string{c.bound("mine").Spec.CSI.VolumeHandle, c.bound("yours").Spec.CSI.VolumeHandle}
	s.group("both", groupv1.VolumeGroupSnapshotContentSource{VolumeHandles: volumes})
	c.await("group ready", func() bool { return groupReady(s.getGroup("both")) })
	got := s.getGroup("both")
	if got.Labels[labelSnapshotNode] != "me" || len(got.Status.VolumeSnapshotInfoList) != 2 ||
		got.Status.VolumeSnapshotInfoList[1].SnapshotHandle != "member-"+volumes[1] || got.Status.Error != nil {
		t.Errorf("group %+v", got)
	}

	// What the snapshot-controller makes of it, without a label.
	handle := *got.Status.VolumeGroupSnapshotHandle
	s.content("member", "", snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &volumes[0]}, annSnapshotGroup+"="+handle)
	c.await("adopted", func() bool { return s.get("member").Labels[labelSnapshotNode] == "me" })
	s.dropGroup("both")
	s.drop("member")
	c.await("gone", func() bool { return s.getGroup("both") == nil && s.get("member") == nil })
	if n := c.fake.count("delete-snapshot"); n != 0 || len(c.fake.snapshots) != 0 || c.fake.count("snapshot") != 0 {
		t.Errorf("%d members deleted one by one, left %v", n, c.fake.snapshots)
	}
}

// A content that names no node is taken by the node of its volume, and by no other:
// the snapshot-controller need not know of nodes.
func TestSnapshotAdopted(t *testing.T) {
	c := newCluster(t, wait)
	s := newSnapshots(c)
	c.run(c.config())
	c.claim("mine", "1Gi", "me")
	handle := c.bound("mine").Spec.CSI.VolumeHandle
	elsewhere := c.foreignVolume("elsewhere")
	s.content("foreign", "", snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &elsewhere})
	s.content("plain", "", snapshotv1.VolumeSnapshotContentSource{VolumeHandle: &handle})
	c.await("ready", func() bool { return ready(s.get("plain")) })
	found := *s.get("plain").Status.SnapshotHandle
	s.content("found", "", snapshotv1.VolumeSnapshotContentSource{SnapshotHandle: &found})
	c.await("found", func() bool { return ready(s.get("found")) })
	if l := s.get("foreign").Labels; l[labelSnapshotNode] != "" {
		t.Errorf("the content of another node's volume was taken: %v", l)
	}

	s.group("mixed", groupv1.VolumeGroupSnapshotContentSource{VolumeHandles: []string{handle, elsewhere}})
	c.await("refused", func() bool {
		g := s.getGroup("mixed")
		return g.Status != nil && g.Status.Error != nil && strings.Contains(*g.Status.Error.Message, "is on another node")
	})
	if text := c.event("mixed", "GroupSnapshotCreationFailed"); !strings.Contains(text, elsewhere) {
		t.Errorf("event %q", text)
	}
	s.dropGroup("mixed")
	c.await("gone", func() bool { return s.getGroup("mixed") == nil })
	if c.fake.count("group") != 0 {
		t.Error("the driver was asked for a group of two nodes")
	}
}

// foreignVolume makes the object of a volume on another node.
func (c *cluster) foreignVolume(handle string) string {
	c.t.Helper()
	pv := c.bound("mine").DeepCopy()
	pv.ObjectMeta = metav1.ObjectMeta{Name: c.ns + "-" + handle}
	pv.Spec.ClaimRef, pv.Spec.CSI.VolumeHandle = nil, handle
	pv.Spec.NodeAffinity.Required.NodeSelectorTerms[0].MatchExpressions[0].Values = []string{"another-node"}
	_, err := c.CoreV1().PersistentVolumes().Create(c.t.Context(), pv, metav1.CreateOptions{})
	c.must(err)
	return handle
}
