// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"

	"github.com/container-storage-interface/spec/lib/go/csi"
	storagev1 "k8s.io/api/storage/v1"
	apierrors "k8s.io/apimachinery/pkg/api/errors"
	"k8s.io/apimachinery/pkg/api/resource"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"
)

// capacity publishes how much room there is, one CSIStorageCapacity object
// per storage class of the driver. It publishes at once after each change that
// it hears of, and from time to time for those that it does not.
type capacity struct {
	*Controllers
	wake chan struct{} // capacity 1
}

func (c *Controllers) addCapacity(context.Context) error {
	c.capacity = &capacity{Controllers: c, wake: make(chan struct{}, 1)}
	_, err := c.classes.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    func(any) { c.capacity.changed() },
		UpdateFunc: func(any, any) { c.capacity.changed() },
		DeleteFunc: func(any) { c.capacity.changed() },
	})
	return err
}

func (c *capacity) changed() {
	select {
	case c.wake <- struct{}{}:
	default:
	}
}

func (c *capacity) run(ctx context.Context) {
	for {
		if err := c.publish(ctx); err != nil && ctx.Err() == nil {
			c.log.WarnContext(ctx, "capacity is not published", "err", err)
		}
		wait, cancel := context.WithTimeout(ctx, c.cfg.CapacityPeriod)
		select {
		case <-wait.Done():
		case <-c.wake:
		}
		cancel()
		if ctx.Err() != nil {
			return
		}
	}
}

// publish makes this node's objects right: one per class, none besides.
func (c *capacity) publish(ctx context.Context) error {
	owner, err := c.owner(ctx)
	if err != nil {
		return err
	}
	api := c.client.Capacities(c.deps.Namespace)
	list, err := api.List(ctx, metav1.ListOptions{
		LabelSelector: labelDriver + "=" + c.cfg.Driver + "," + labelManagedBy + "=" + c.managedBy(),
	})
	if err != nil {
		return fmt.Errorf("list capacities: %w", err)
	}
	have := map[string]*storagev1.CSIStorageCapacity{}
	for i := range list.Items {
		have[list.Items[i].Name] = &list.Items[i]
	}
	var errs []error
	for _, obj := range c.classes.GetStore().List() {
		class, ok := obj.(*storagev1.StorageClass)
		if !ok || class.Provisioner != c.cfg.Driver {
			continue
		}
		want, err := c.object(ctx, class)
		if err != nil {
			errs = append(errs, err)
			delete(have, c.name(class.Name)) // the last known one stays
			continue
		}
		want.Namespace, want.OwnerReferences = c.deps.Namespace, owner
		errs = append(errs, c.put(ctx, have[want.Name], want))
		delete(have, want.Name)
	}
	for name := range have {
		if err := api.Delete(ctx, name, metav1.DeleteOptions{}); err != nil && !apierrors.IsNotFound(err) {
			errs = append(errs, fmt.Errorf("delete capacity %s: %w", name, err))
		}
	}
	return errors.Join(errs...)
}

// owner is the Node object: when it goes, so does what it could hold. A
// namespaced object may belong to one of the cluster.
func (c *capacity) owner(ctx context.Context) ([]metav1.OwnerReference, error) {
	n, err := c.client.Nodes().Get(ctx, c.deps.Node, metav1.GetOptions{})
	if err != nil {
		return nil, fmt.Errorf("get node %s: %w", c.deps.Node, err)
	}
	return []metav1.OwnerReference{{APIVersion: "v1", Kind: "Node", Name: n.Name, UID: n.UID}}, nil
}

// object is what the driver says of a class now.
func (c *capacity) object(ctx context.Context, class *storagev1.StorageClass) (*storagev1.CSIStorageCapacity, error) {
	call, cancel := c.withTimeout(ctx)
	defer cancel()
	resp, err := c.deps.Volumes.GetCapacity(call, &csi.GetCapacityRequest{
		Parameters: driverParameters(class.Parameters), AccessibleTopology: c.topology(),
	})
	if err != nil {
		return nil, fmt.Errorf("get capacity for class %s: %w", class.Name, err)
	}
	obj := &storagev1.CSIStorageCapacity{
		ObjectMeta: metav1.ObjectMeta{
			Name:   c.name(class.Name),
			Labels: map[string]string{labelDriver: c.cfg.Driver, labelManagedBy: c.managedBy()},
		},
		StorageClassName: class.Name,
		NodeTopology:     &metav1.LabelSelector{MatchLabels: c.topology().GetSegments()},
		Capacity:         resource.NewQuantity(max(0, resp.GetAvailableCapacity()), resource.BinarySI),
	}
	if most := resp.GetMaximumVolumeSize(); most != nil {
		obj.MaximumVolumeSize = resource.NewQuantity(max(0, most.GetValue()), resource.BinarySI)
	}
	return obj, nil
}

// put writes want where it differs from have.
func (c *capacity) put(ctx context.Context, have, want *storagev1.CSIStorageCapacity) error {
	api := c.client.Capacities(want.Namespace)
	if have == nil {
		if _, err := api.Create(ctx, want, metav1.CreateOptions{}); err != nil {
			return fmt.Errorf("create capacity of class %s: %w", want.StorageClassName, err)
		}
		return nil
	}
	if sameQuantity(have.Capacity, want.Capacity) && sameQuantity(have.MaximumVolumeSize, want.MaximumVolumeSize) {
		return nil
	}
	next := have.DeepCopy()
	next.Capacity, next.MaximumVolumeSize, next.OwnerReferences = want.Capacity, want.MaximumVolumeSize, want.OwnerReferences
	if _, err := api.Update(ctx, next, metav1.UpdateOptions{}); err != nil {
		return fmt.Errorf("update capacity of class %s: %w", want.StorageClassName, err)
	}
	return nil
}

func sameQuantity(a, b *resource.Quantity) bool {
	if a == nil || b == nil {
		return a == b
	}
	return a.Cmp(*b) == 0
}

// name of the object of a class on this node: classes and nodes may have
// names that are too long together.
func (c *capacity) name(class string) string {
	sum := sha256.Sum256([]byte(c.cfg.Driver + "\x00" + c.deps.Node + "\x00" + class))
	return "nodeagent-" + hex.EncodeToString(sum[:10])
}

// managedBy is a label's value: at most 63 characters.
func (c *capacity) managedBy() string {
	name := "nodeagent-" + c.deps.Node
	if len(name) <= 63 {
		return name
	}
	sum := sha256.Sum256([]byte(name))
	return "nodeagent-" + hex.EncodeToString(sum[:20])
}
