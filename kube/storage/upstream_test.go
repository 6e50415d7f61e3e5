// SPDX-License-Identifier: Apache-2.0

package storage

import (
	groupv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumegroupsnapshot/v1"
	snapshotv1 "github.com/kubernetes-csi/external-snapshotter/client/v8/apis/volumesnapshot/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// request asks for a snapshot of the claim "mine", and for a group snapshot of the
// claims with the namespace's name as label: the upstream snapshot-controller does the
// rest.
func (s *snapshots) request(name string) {
	s.t.Helper()
	ctx := s.t.Context()
	_, err := s.SnapshotV1().VolumeSnapshotClasses().Create(ctx, &snapshotv1.VolumeSnapshotClass{
		ObjectMeta: metav1.ObjectMeta{Name: s.ns}, Driver: s.driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
	}, metav1.CreateOptions{})
	s.must(err)
	_, err = s.GroupsnapshotV1().VolumeGroupSnapshotClasses().Create(ctx, &groupv1.VolumeGroupSnapshotClass{
		ObjectMeta: metav1.ObjectMeta{Name: s.ns}, Driver: s.driver, DeletionPolicy: snapshotv1.VolumeSnapshotContentDelete,
	}, metav1.CreateOptions{})
	s.must(err)
	_, err = s.SnapshotV1().VolumeSnapshots(s.ns).Create(ctx, &snapshotv1.VolumeSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name},
		Spec: snapshotv1.VolumeSnapshotSpec{
			VolumeSnapshotClassName: &s.ns, Source: snapshotv1.VolumeSnapshotSource{PersistentVolumeClaimName: new("mine")},
		},
	}, metav1.CreateOptions{})
	s.must(err)
	_, err = s.GroupsnapshotV1().VolumeGroupSnapshots(s.ns).Create(ctx, &groupv1.VolumeGroupSnapshot{
		ObjectMeta: metav1.ObjectMeta{Name: name + "-group"},
		Spec: groupv1.VolumeGroupSnapshotSpec{
			VolumeGroupSnapshotClassName: &s.ns,
			Source:                       groupv1.VolumeGroupSnapshotSource{Selector: &metav1.LabelSelector{MatchLabels: map[string]string{"app": s.ns}}},
		},
	}, metav1.CreateOptions{})
	s.must(err)
}

// requested says whether there are so many group snapshots, all of them ready, as their
// members and the single ones are.
func (s *snapshots) requested(groups int) bool {
	s.t.Helper()
	singles, err := s.SnapshotV1().VolumeSnapshots(s.ns).List(s.t.Context(), metav1.ListOptions{})
	s.must(err)
	all, err := s.GroupsnapshotV1().VolumeGroupSnapshots(s.ns).List(s.t.Context(), metav1.ListOptions{})
	s.must(err)
	ready := len(all.Items) == groups && len(singles.Items) == 2*groups // with the group's member
	for _, v := range singles.Items {
		ready = ready && v.Status != nil && deref(v.Status.ReadyToUse, false)
	}
	for _, g := range all.Items {
		ready = ready && g.Status != nil && deref(g.Status.ReadyToUse, false)
	}
	return ready
}

// withdraw deletes what request asked for.
func (s *snapshots) withdraw(name string) {
	s.t.Helper()
	s.must(s.SnapshotV1().VolumeSnapshots(s.ns).Delete(s.t.Context(), name, metav1.DeleteOptions{}))
	s.must(s.GroupsnapshotV1().VolumeGroupSnapshots(s.ns).Delete(s.t.Context(), name+"-group", metav1.DeleteOptions{}))
}

// waiting counts the driver's contents of both kinds that are to go and have not gone.
func (s *snapshots) waiting() int {
	s.t.Helper()
	n := 0
	singles, err := s.SnapshotV1().VolumeSnapshotContents().List(s.t.Context(), metav1.ListOptions{})
	s.must(err)
	for _, c := range singles.Items {
		if c.Spec.Driver == s.driver && c.DeletionTimestamp != nil {
			n++
		}
	}
	groups, err := s.GroupsnapshotV1().VolumeGroupSnapshotContents().List(s.t.Context(), metav1.ListOptions{})
	s.must(err)
	for _, c := range groups.Items {
		if c.Spec.Driver == s.driver && c.DeletionTimestamp != nil {
			n++
		}
	}
	return n
}
