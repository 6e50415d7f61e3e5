// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"fmt"
	"math/rand/v2"
	"slices"
	"sync"
	"time"

	"github.com/container-storage-interface/spec/lib/go/csi"
	"google.golang.org/grpc/codes"
	"google.golang.org/grpc/status"
	corev1 "k8s.io/api/core/v1"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"
)

// provisioner makes volumes for claims that were given to this node, and
// deletes those that are released.
type provisioner struct {
	*Controllers
	queue *reconciler

	mu sync.Mutex
	// begun are claims whose volume may exist without a PersistentVolume;
	// guarded by mu. Should the claim vanish, its volume is asked for once more,
	// so that it can be deleted.
	begun map[string]begunVolume
	// claimAt is when this node may claim an Immediate volume; guarded by mu.
	claimAt map[types.UID]time.Time
}

// begunVolume is what a volume was begun with.
type begunVolume struct {
	claim *corev1.PersistentVolumeClaim
	class *storagev1.StorageClass
}

func (c *Controllers) addProvisioner(context.Context) error {
	p := &provisioner{Controllers: c, begun: map[string]begunVolume{}, claimAt: map[types.UID]time.Time{}}
	c.provisioner = p
	p.queue = c.add("provisioner", p.reconcileClaim)
	if err := p.queue.follow(c.claims, p.concerns); err != nil {
		return err
	}
	// A class may come after its claims.
	_, err := c.classes.AddEventHandler(cache.ResourceEventHandlerFuncs{AddFunc: func(any) {
		for _, obj := range c.claims.GetStore().List() {
			if key, err := cache.MetaNamespaceKeyFunc(obj); err == nil && p.concerns(obj) {
				p.queue.queue.Add(key)
			}
		}
	}})
	if err != nil {
		return err
	}
	return c.add("deleter", p.reconcileVolume).follow(c.volumes, c.ownVolume)
}

// concerns reports whether the claim asks this driver for a volume that is
// not there yet.
func (p *provisioner) concerns(obj any) bool {
	claim, ok := obj.(*corev1.PersistentVolumeClaim)
	if !ok {
		return true // a tombstone
	}
	node := claim.Annotations[annSelectedNode]
	return claim.Spec.VolumeName == "" && p.asked(claim) && (node == "" || node == p.deps.Node) || p.hasBegun(claim)
}

// asked reports whether Kubernetes has asked this driver to provision.
func (p *provisioner) asked(claim *corev1.PersistentVolumeClaim) bool {
	name, ok := claim.Annotations[annProvisioner]
	if !ok {
		name = claim.Annotations[annBetaProvisioner]
	}
	return name == p.cfg.Driver
}

// reconcileClaim brings one claim a step further.
func (p *provisioner) reconcileClaim(ctx context.Context, key string) error {
	claim, ok, err := get[*corev1.PersistentVolumeClaim](p.claims, key)
	if err != nil {
		return err
	}
	if b, lost := p.lost(key, claim); lost {
		// Kubernetes then releases and deletes it like any other.
		return p.provision(ctx, key, b.claim, b.class)
	}
	if !ok || claim.DeletionTimestamp != nil || claim.Spec.VolumeName != "" || !p.asked(claim) {
		return nil
	}
	class, ok, err := get[*storagev1.StorageClass](p.classes, className(claim))
	if err != nil {
		return err
	}
	if !ok || class.Provisioner != p.cfg.Driver {
		return nil // the class is not there yet: its claims are looked at again with it
	}
	switch claim.Annotations[annSelectedNode] {
	case p.deps.Node:
		return p.provision(ctx, key, claim, class)
	case "":
		if deref(class.VolumeBindingMode, storagev1.VolumeBindingImmediate) == storagev1.VolumeBindingImmediate {
			return p.claimImmediate(ctx, key, claim, class)
		}
	}
	return nil
}

// lost is what was begun for a claim that is gone, or replaced by another of
// the same name.
func (p *provisioner) lost(key string, now *corev1.PersistentVolumeClaim) (begunVolume, bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	b, ok := p.begun[key]
	return b, ok && (now == nil || now.UID != b.claim.UID || now.DeletionTimestamp != nil)
}

func (p *provisioner) hasBegun(claim *corev1.PersistentVolumeClaim) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	_, ok := p.begun[claim.Namespace+"/"+claim.Name]
	return ok
}

// begin notes that a volume may exist.
func (p *provisioner) begin(key string, b begunVolume) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.begun[key] = b
}

// end notes that the volume has its object, or does not exist.
func (p *provisioner) end(key string) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(p.begun, key)
}

// provision makes the volume of a claim and its PersistentVolume.
func (p *provisioner) provision(ctx context.Context, key string, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	name := volumeName(claim)
	if _, exists, err := get[*corev1.PersistentVolume](p.volumes, name); err != nil || exists {
		p.end(key)
		return err
	}
	req, err := p.createRequest(ctx, claim, class)
	if err != nil {
		p.events.Event(claim, corev1.EventTypeWarning, "ProvisioningFailed", err.Error())
		return err
	}
	p.events.Eventf(claim, corev1.EventTypeNormal, "Provisioning",
		"node %s is making volume %s of %s", p.deps.Node, name, sizeOf(req.CapacityRange.RequiredBytes))
	p.begin(key, begunVolume{claim, class})
	call, cancel := p.withTimeout(ctx)
	defer cancel()
	resp, err := p.deps.Volumes.CreateVolume(call, req)
	if err != nil {
		return p.failed(ctx, key, claim, err)
	}
	pv := p.persistentVolume(ctx, claim, class, req, resp.GetVolume())
	_, err = p.client.Volumes().Create(ctx, pv, metav1.CreateOptions{})
	if err != nil && !apierrors.IsAlreadyExists(err) {
		p.events.Event(claim, corev1.EventTypeWarning, "ProvisioningFailed",
			fmt.Sprintf("volume %s exists, saving its PersistentVolume: %v", name, err))
		return fmt.Errorf("create PersistentVolume %s: %w", name, err)
	}
	p.end(key)
	p.events.Eventf(claim, corev1.EventTypeNormal, "ProvisioningSucceeded", "volume %s is on node %s", name, p.deps.Node)
	p.log.InfoContext(ctx, "volume provisioned", "claim", key, "volume", name, "handle", pv.Spec.CSI.VolumeHandle)
	p.CapacityChanged()
	return nil
}

// failed says what becomes of a claim whose volume could not be made.
func (p *provisioner) failed(ctx context.Context, key string, claim *corev1.PersistentVolumeClaim, err error) error {
	p.events.Event(claim, corev1.EventTypeWarning, "ProvisioningFailed", fmt.Sprintf("node %s: %s", p.deps.Node, message(err)))
	full := status.Code(err) == codes.ResourceExhausted
	if final(err) || full {
		p.end(key)
	}
	if full {
		// The scheduler, or for an Immediate volume another node, has to choose
		// again, by capacity that is true now.
		p.CapacityChanged()
		return p.giveBack(ctx, claim, err)
	}
	return fmt.Errorf("create volume for claim %s: %w", key, err)
}

// giveBack takes the node's name off the claim.
func (p *provisioner) giveBack(ctx context.Context, claim *corev1.PersistentVolumeClaim, why error) error {
	err := p.annotate(ctx, claim, nil)
	switch {
	case apierrors.IsNotFound(err):
		return nil
	case err != nil:
		return fmt.Errorf("give claim %s/%s back after %q: %w", claim.Namespace, claim.Name, message(why), err)
	}
	p.mu.Lock()
	// Others first; this node tries an Immediate volume again later.
	p.claimAt[claim.UID] = time.Now().Add(p.cfg.CapacityPeriod)
	p.mu.Unlock()
	p.log.InfoContext(ctx, "claim given back to the scheduler", "claim", claim.Namespace+"/"+claim.Name, "why", message(why))
	return nil
}

// annotate writes the selected node of a claim, nil for none, unless the claim
// has changed meanwhile.
func (p *provisioner) annotate(ctx context.Context, claim *corev1.PersistentVolumeClaim, node *string) error {
	value := "null"
	if node != nil {
		value = fmt.Sprintf("%q", *node)
	}
	patch := fmt.Sprintf(`{"metadata":{"uid":%q,"resourceVersion":%q,"annotations":{%q:%s}}}`,
		claim.UID, claim.ResourceVersion, annSelectedNode, value)
	_, err := p.client.Claims(claim.Namespace).Patch(ctx, claim.Name,
		types.MergePatchType, []byte(patch))
	return err
}

// claimImmediate makes this node the one that provisions a claim that no pod
// waits for. All nodes with enough room try, each after a pause of its own; the
// first to write its name wins.
func (p *provisioner) claimImmediate(ctx context.Context, key string, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) error {
	p.mu.Lock()
	at, ok := p.claimAt[claim.UID]
	if !ok {
		at = time.Now()
		if p.cfg.ImmediateDelay > 0 {
			at = at.Add(rand.N(p.cfg.ImmediateDelay)) //nolint:gosec // spreads load, keeps no secret
		}
		p.claimAt[claim.UID] = at
	}
	p.mu.Unlock()
	if wait := time.Until(at); wait > 0 {
		p.queue.queue.AddAfter(key, wait)
		return nil
	}
	if !p.allowed(class) {
		return nil
	}
	fits, err := p.fits(ctx, claim, class)
	if err != nil || !fits {
		p.queue.queue.AddAfter(key, p.cfg.CapacityPeriod)
		return err
	}
	node := p.deps.Node
	if err := p.annotate(ctx, claim, &node); err != nil && !apierrors.IsConflict(err) && !apierrors.IsNotFound(err) {
		return fmt.Errorf("take claim %s: %w", key, err)
	}
	p.mu.Lock()
	delete(p.claimAt, claim.UID)
	p.mu.Unlock()
	return nil
}

// fits reports whether this node has room for the claim now.
func (p *provisioner) fits(ctx context.Context, claim *corev1.PersistentVolumeClaim, class *storagev1.StorageClass) (bool, error) {
	call, cancel := p.withTimeout(ctx)
	defer cancel()
	req := &csi.GetCapacityRequest{Parameters: driverParameters(class.Parameters), AccessibleTopology: p.topology()}
	resp, err := p.deps.Volumes.GetCapacity(call, req)
	if err != nil {
		return false, fmt.Errorf("get capacity for class %s: %w", class.Name, err)
	}
	size := claim.Spec.Resources.Requests[corev1.ResourceStorage]
	free := resp.GetAvailableCapacity()
	if most := resp.GetMaximumVolumeSize(); most != nil {
		free = min(free, most.GetValue())
	}
	return size.Value() <= free, nil
}

// topology is this node's segment.
func (c *Controllers) topology() *csi.Topology {
	return &csi.Topology{Segments: map[string]string{c.cfg.TopologyKey: c.deps.Node}}
}

// allowed reports whether the class wants volumes on this node.
func (c *Controllers) allowed(class *storagev1.StorageClass) bool {
	if len(class.AllowedTopologies) == 0 {
		return true
	}
	for _, term := range class.AllowedTopologies {
		matches := true
		for _, e := range term.MatchLabelExpressions {
			if e.Key != c.cfg.TopologyKey {
				continue // other keys are the scheduler's to judge
			}
			matches = slices.Contains(e.Values, c.deps.Node)
		}
		if matches {
			return true
		}
	}
	return false
}
