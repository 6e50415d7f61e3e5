// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"fmt"
	"slices"

	corev1 "k8s.io/api/core/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	utilwait "k8s.io/apimachinery/pkg/util/wait"
	"k8s.io/client-go/util/retry"
)

// orphanPause is how many capacity periods pass, and up to twice as many, before
// what is left of other nodes is looked at again.
const orphanPause = 5

// reasonNodeGone is of the event that says why an object went without its data.
const reasonNodeGone = "NodeGone"

// orphans lets objects go whose node will never do it: they are to be deleted, and
// there is no Node object any more. All nodes look, each in its own time; who comes
// second finds nothing. A Node that is there, ready or not, keeps its volumes and
// snapshots: it may come back with them.
type orphans struct {
	*Controllers
	// gone remembers the answers of one round, so that each node is asked for once.
	gone map[string]bool
}

func (c *Controllers) releaseOrphans(ctx context.Context) {
	utilwait.JitterUntilWithContext(ctx, func(ctx context.Context) {
		o := &orphans{c, map[string]bool{}}
		if c.provisioner != nil {
			o.releaseVolumes(ctx)
		}
		if c.cfg.Snapshotter && o.isTurn() {
			o.releaseSnapshots(ctx)
			o.releaseGroups(ctx)
		}
	}, orphanPause*c.cfg.CapacityPeriod, 1, true)
}

// isGone says whether there is no Node of that name.
func (o *orphans) isGone(ctx context.Context, node string) (bool, error) {
	if _, known := o.gone[node]; !known {
		_, err := o.client.Nodes().Get(ctx, node, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return false, fmt.Errorf("get node %s: %w", node, err)
		}
		o.gone[node] = err != nil
	}
	return o.gone[node], nil
}

// farewell is the text of the event.
func farewell(node string) string {
	return fmt.Sprintf("node %s is gone from the cluster, and the data with it: only this object is let go", node)
}

func (o *orphans) releaseVolumes(ctx context.Context) {
	for _, obj := range o.volumes.GetStore().List() {
		pv, ok := obj.(*corev1.PersistentVolume)
		if !ok || !o.mayBeOrphan(pv) {
			continue
		}
		if err := o.releaseVolume(ctx, pv); err != nil {
			o.log.WarnContext(ctx, "volume of a node that is gone not released", "volume", pv.Name, "err", err)
		}
	}
}

func (c *Controllers) mayBeOrphan(pv *corev1.PersistentVolume) bool {
	node := c.nodeOf(pv)
	return node != "" && node != c.deps.Node && slices.Contains(pv.Finalizers, finalizerVolume) &&
		pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete && pv.Status.Phase == corev1.VolumeReleased
}

func (o *orphans) releaseVolume(ctx context.Context, pv *corev1.PersistentVolume) error {
	node := o.nodeOf(pv)
	if gone, err := o.isGone(ctx, node); err != nil || !gone {
		return err
	}
	// Kubernetes takes its own finalizer at the same time.
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error { return o.provisioner.removeObject(ctx, pv) })
	if err != nil {
		return err
	}
	o.events.Event(pv, corev1.EventTypeWarning, reasonNodeGone, farewell(node))
	o.log.InfoContext(ctx, "volume released, its node is gone", "volume", pv.Name, "node", node)
	return nil
}
