// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"strings"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
)

// A volume whose node is gone from the cluster does not keep its object for ever;
// one whose node is only away is left to it.
func TestOrphans(t *testing.T) {
	c := newCluster(t, wait)
	nodes := c.CoreV1().Nodes()
	_, err := nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "doomed"}}, metav1.CreateOptions{})
	c.must(err)
	doomed := c.runOn("doomed", c.config())
	c.claim("mine", "1Gi", "doomed")
	name := c.bound("mine").Name
	c.must(doomed.Stop(context.Background()))
	c.deleteClaim("mine")
	c.await("released", func() bool { return len(c.mine()) == 1 && c.mine()[0].Status.Phase == corev1.VolumeReleased })

	peer := c.run(c.config())
	c.await("the peer at work", func() bool { _, ok, _ := get[*corev1.PersistentVolume](peer.volumes, name); return ok })
	pv := c.mine()[0]
	if !peer.mayBeOrphan(&pv) {
		t.Error("the peer does not look at it")
	}
	c.must((&orphans{peer, map[string]bool{}}).releaseVolume(t.Context(), &pv))
	if len(c.mine()) != 1 {
		t.Fatal("the volume of a node that is there was let go")
	}
	c.must(peer.Stop(context.Background()))

	c.must(nodes.Delete(t.Context(), "doomed", metav1.DeleteOptions{}))
	c.run(c.config())
	c.await("object gone", func() bool {
		_, err := c.CoreV1().PersistentVolumes().Get(t.Context(), name, metav1.GetOptions{})
		return apierrors.IsNotFound(err)
	})
	if len(c.fake.ids()) != 1 {
		t.Error("another node's data was deleted")
	}
	c.eventIn(metav1.NamespaceDefault, name, reasonNodeGone)
}

// The upstream snapshot-controller waits for a node's word before snapshots and groups
// of it may go: a node that is gone does not keep them for ever.
func TestOrphanSnapshots(t *testing.T) {
	c := newCluster(t, wait)
	s := newSnapshots(c)
	stop, err := c.server.StartSnapshotController()
	c.must(err)
	defer func() { c.must(stop()) }()
	nodes := c.CoreV1().Nodes()
	_, err = nodes.Create(t.Context(), &corev1.Node{ObjectMeta: metav1.ObjectMeta{Name: "lost"}}, metav1.CreateOptions{})
	c.must(err)
	lost := c.runOn("lost", c.config())
	c.claim("mine", "1Gi", "lost", func(p *corev1.PersistentVolumeClaim) { p.Labels = map[string]string{"app": c.ns} })
	c.bound("mine")
	s.request("one")
	c.await("snapshots ready", func() bool { return s.requested(1) })
	c.must(lost.Stop(context.Background()))
	s.withdraw("one")
	c.await("contents wait", func() bool { return s.waiting() == 2 }) // the group's member comes after the group

	peer := c.run(c.config())
	c.await("the peer at work", func() bool { return peer.volumes.HasSynced() })
	o := &orphans{peer, map[string]bool{}}
	o.releaseSnapshots(t.Context())
	o.releaseGroups(t.Context())
	if s.waiting() != 2 {
		t.Fatal("a snapshot of a node that is there was let go")
	}
	c.must(peer.Stop(context.Background()))

	c.must(nodes.Delete(t.Context(), "lost", metav1.DeleteOptions{}))
	cfg := c.config()
	cfg.CapacityPeriod = time.Second
	c.run(cfg)
	c.await("snapshots and contents gone", func() bool { return s.waiting() == 0 && s.requested(0) })
	if n := c.fake.count("delete-snapshot") + c.fake.count("delete-group"); n != 0 {
		t.Errorf("another node's snapshots were deleted, %d", n)
	}
	for _, name := range []string{"one", "one-group"} {
		if text := c.event(name, reasonNodeGone); !strings.Contains(text, "node lost is gone") {
			t.Errorf("event %q", text)
		}
	}
}
