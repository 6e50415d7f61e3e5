// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/nodeagent/nodeagent/kube/apiclient"
)

// Deps are what the controllers work with.
type Deps struct {
	Log *slog.Logger
	// Node is this node's name.
	Node string
	// Namespace holds this node's CSIStorageCapacity objects; empty: kube-system.
	Namespace string
	// Client speaks with the API server.
	Client *apiclient.Client
	// SELinuxMount says that every volume is a file system of its own.
	SELinuxMount bool
	// Volumes, Snapshots and Groups are the driver; without Groups no group
	// snapshots are taken.
	Volumes   Volumes
	Snapshots Snapshots
	Groups    Groups
}

// Controllers are the storage controllers of one node.
type Controllers struct {
	cfg    Config
	deps   Deps
	log    *slog.Logger
	client *apiclient.Client
	events *apiclient.Recorder

	claims  cache.SharedIndexInformer
	volumes cache.SharedIndexInformer
	classes cache.SharedIndexInformer

	provisioner *provisioner
	capacity    *capacity
	running     []*reconciler

	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// New makes the controllers; they do nothing until Start.
func New(cfg Config, deps Deps) (*Controllers, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Client == nil || deps.Volumes == nil || deps.Node == "" {
		return nil, errors.New("kube/storage: Client, Volumes and Node are needed")
	}
	if cfg.Snapshotter && deps.Snapshots == nil {
		return nil, errors.New("kube/storage: the snapshotter needs Snapshots")
	}
	if deps.Namespace == "" {
		deps.Namespace = metav1.NamespaceSystem
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	c := &Controllers{
		cfg: cfg, deps: deps, log: deps.Log.With("room", "kube/storage"), client: deps.Client,
		events: deps.Client.NewRecorder(corev1.EventSource{Component: cfg.Driver, Host: deps.Node}),
	}
	for _, i := range []struct {
		informer *cache.SharedIndexInformer
		make     func(metav1.ListOptions, cache.TransformFunc) (cache.SharedIndexInformer, error)
	}{
		{&c.claims, c.client.Claims(metav1.NamespaceAll).Informer},
		{&c.volumes, c.client.Volumes().Informer},
		{&c.classes, c.client.StorageClasses().Informer},
	} {
		var err error
		if *i.informer, err = i.make(metav1.ListOptions{}, dropManagedFields); err != nil {
			return nil, err
		}
	}
	if err := c.volumes.AddIndexers(cache.Indexers{byHandle: c.handleOf}); err != nil {
		return nil, fmt.Errorf("index volumes: %w", err)
	}
	return c, nil
}

// Start begins to work. It does not wait for the API server.
func (c *Controllers) Start(ctx context.Context) error {
	ctx, c.cancel = context.WithCancel(ctx)
	for _, part := range []struct {
		on    bool
		start func(context.Context) error
	}{
		{c.cfg.Provisioner, c.addProvisioner},
		{c.cfg.Capacity, c.addCapacity},
		{c.cfg.Resizer, c.addResizer},
		{c.cfg.Modifier, c.addModifier},
		{c.cfg.Snapshotter, c.addSnapshotter},
		{c.cfg.Snapshotter, c.addAdopter},
		{c.cfg.Snapshotter && c.deps.Groups != nil, c.addGroupSnapshotter},
	} {
		if !part.on {
			continue
		}
		if err := part.start(ctx); err != nil {
			c.cancel()
			return err
		}
	}
	c.wg.Go(func() { c.events.Run(ctx) })
	for _, i := range c.informers() {
		c.wg.Go(func() { i.RunWithContext(ctx) })
	}
	c.wg.Go(func() { c.work(ctx) })
	return nil
}

// work begins when everything is known: nothing is decided on half a list.
func (c *Controllers) work(ctx context.Context) {
	if c.cfg.CSIDriver {
		c.wg.Go(func() { c.keepDriverObject(ctx) })
	}
	for _, i := range c.informers() {
		if !cache.WaitForCacheSync(ctx.Done(), i.HasSynced) {
			return
		}
	}
	for _, r := range c.running {
		r.start(ctx)
	}
	if c.capacity != nil {
		c.wg.Go(func() { c.capacity.run(ctx) })
	}
	c.wg.Go(func() { c.releaseOrphans(ctx) })
}

// Stop waits until no controller is at work.
func (c *Controllers) Stop(context.Context) error {
	if c.cancel == nil {
		return nil
	}
	c.cancel()
	for _, r := range c.running {
		r.queue.ShutDown()
	}
	c.wg.Wait()
	for _, r := range c.running {
		r.stop()
	}
	return nil
}

// CapacityChanged says that there is more or less space than was published.
// It does not block.
func (c *Controllers) CapacityChanged() {
	if c.capacity != nil {
		c.capacity.changed()
	}
}

func (c *Controllers) informers() []cache.SharedIndexInformer {
	return []cache.SharedIndexInformer{c.claims, c.volumes, c.classes}
}

// add makes a reconciler of this room.
func (c *Controllers) add(name string, reconcile func(context.Context, string) error) *reconciler {
	r := newReconciler(name, c.cfg.Workers, c.log, reconcile)
	c.running = append(c.running, r)
	return r
}

// withTimeout bounds one call of the driver.
func (c *Controllers) withTimeout(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(ctx, c.cfg.Timeout)
}

// get is an object of an informer's store; false if there is none.
func get[T any](informer cache.SharedIndexInformer, key string) (T, bool, error) {
	var none T
	obj, ok, err := informer.GetStore().GetByKey(key)
	if err != nil || !ok {
		return none, false, err
	}
	t, ok := obj.(T)
	if !ok {
		return none, false, fmt.Errorf("%s: the store holds a %T", key, obj)
	}
	return t, true, nil
}

// dropManagedFields leaves out what is large and nobody reads. The objects
// are written back only as patches, so nothing else may be left out.
func dropManagedFields(obj any) (any, error) {
	if m, ok := obj.(metav1.Object); ok {
		m.SetManagedFields(nil)
	}
	return obj, nil
}

// pause waits for d and reports whether ctx is still good.
func pause(ctx context.Context, d time.Duration) bool {
	t := time.NewTimer(d)
	defer t.Stop()
	select {
	case <-ctx.Done():
		return false
	case <-t.C:
		return true
	}
}
