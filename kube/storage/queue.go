// SPDX-License-Identifier: Apache-2.0

package storage

import (
	"context"
	"log/slog"
	"sync"
	"time"

	"k8s.io/client-go/tools/cache"
	"k8s.io/client-go/util/workqueue"
)

const (
	backoffMin = 250 * time.Millisecond
	backoffMax = 2 * time.Minute
)

// reconciler works on one object at a time per key: whatever happens to the
// object, reconcile is called with its key soon after, and again with growing
// pauses while it fails.
type reconciler struct {
	name      string
	reconcile func(ctx context.Context, key string) error
	workers   int
	log       *slog.Logger
	queue     workqueue.TypedRateLimitingInterface[string]
	wg        sync.WaitGroup
}

func newReconciler(name string, workers int, log *slog.Logger, reconcile func(context.Context, string) error) *reconciler {
	return &reconciler{
		name: name, reconcile: reconcile, workers: workers, log: log.With("controller", name),
		queue: workqueue.NewTypedRateLimitingQueue(
			workqueue.NewTypedItemExponentialFailureRateLimiter[string](backoffMin, backoffMax)),
	}
}

// follow queues every object of an informer that keep wants.
func (r *reconciler) follow(informer cache.SharedIndexInformer, keep func(obj any) bool) error {
	return r.followAs(informer, func(obj any) string {
		if !keep(obj) {
			return ""
		}
		key, err := cache.DeletionHandlingMetaNamespaceKeyFunc(obj)
		if err != nil {
			return ""
		}
		return key
	})
}

// followAs queues, for every object of an informer, the key that it stands
// for; "" stands for none.
func (r *reconciler) followAs(informer cache.SharedIndexInformer, keyOf func(obj any) string) error {
	add := func(obj any) {
		if key := keyOf(obj); key != "" {
			r.queue.Add(key)
		}
	}
	_, err := informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    add,
		UpdateFunc: func(_, obj any) { add(obj) },
		DeleteFunc: add,
	})
	return err
}

// start begins to work.
func (r *reconciler) start(ctx context.Context) {
	for range r.workers {
		r.wg.Go(func() {
			for r.next(ctx) {
			}
		})
	}
}

// stop waits for the work at hand.
func (r *reconciler) stop() {
	r.queue.ShutDown()
	r.wg.Wait()
}

func (r *reconciler) next(ctx context.Context) bool {
	key, end := r.queue.Get()
	if end || ctx.Err() != nil {
		return false
	}
	defer r.queue.Done(key)
	err := r.reconcile(ctx, key)
	if err == nil {
		r.queue.Forget(key)
		return true
	}
	if ctx.Err() == nil {
		r.log.WarnContext(ctx, "try again later", "key", key, "tries", r.queue.NumRequeues(key)+1, "err", err)
	}
	r.queue.AddRateLimited(key)
	return true
}
