// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"testing"

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
	if !peer.provisioner.mayBeOrphan(&pv) {
		t.Error("the peer does not look at it")
	}
	c.must(peer.provisioner.releaseOrphan(t.Context(), &pv, map[string]bool{}))
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
}
