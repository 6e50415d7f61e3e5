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
// a released volume of another node is looked at again.
const orphanPause = 5

// releaseOrphans lets PersistentVolumes go whose node will never delete them: their
// claim is gone, they are to be deleted, and there is no Node object any more. All
// nodes look, each in its own time; who comes second finds nothing. A Node that is
// there, ready or not, keeps its volumes: it may come back with them.
func (p *provisioner) releaseOrphans(ctx context.Context) {
	utilwait.JitterUntilWithContext(ctx, func(ctx context.Context) {
		gone := map[string]bool{}
		for _, obj := range p.volumes.GetStore().List() {
			pv, ok := obj.(*corev1.PersistentVolume)
			if !ok || !p.mayBeOrphan(pv) {
				continue
			}
			if err := p.releaseOrphan(ctx, pv, gone); err != nil {
				p.log.WarnContext(ctx, "volume of a node that is gone not released", "volume", pv.Name, "err", err)
			}
		}
	}, orphanPause*p.cfg.CapacityPeriod, 1, true)
}

func (p *provisioner) mayBeOrphan(pv *corev1.PersistentVolume) bool {
	node := p.nodeOf(pv)
	return node != "" && node != p.deps.Node && slices.Contains(pv.Finalizers, finalizerVolume) &&
		pv.Spec.PersistentVolumeReclaimPolicy == corev1.PersistentVolumeReclaimDelete && pv.Status.Phase == corev1.VolumeReleased
}

// releaseOrphan asks for each node once; gone remembers the answers.
func (p *provisioner) releaseOrphan(ctx context.Context, pv *corev1.PersistentVolume, gone map[string]bool) error {
	node := p.nodeOf(pv)
	if _, known := gone[node]; !known {
		_, err := p.client.Nodes().Get(ctx, node, metav1.GetOptions{})
		if err != nil && !apierrors.IsNotFound(err) {
			return fmt.Errorf("get node %s: %w", node, err)
		}
		gone[node] = err != nil
	}
	if !gone[node] {
		return nil
	}
	// Kubernetes takes its own finalizer at the same time.
	err := retry.RetryOnConflict(retry.DefaultBackoff, func() error { return p.removeObject(ctx, pv) })
	if err != nil {
		return err
	}
	p.log.InfoContext(ctx, "volume released, its node is gone", "volume", pv.Name, "node", node)
	return nil
}
