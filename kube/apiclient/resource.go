// SPDX-License-Identifier: Apache-2.0

package apiclient

import (
	"context"
	"fmt"
	"reflect"
	"time"

	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
)

// Resource is the objects T of one kind, with its lists L, in one namespace if
// the kind has namespaces. Errors are those of
// k8s.io/apimachinery/pkg/api/errors.
type Resource[T, L runtime.Object] struct {
	rest      rest.Interface
	name      string // in the URL
	namespace string
}

// Get reads one object.
func (r Resource[T, L]) Get(ctx context.Context, name string, o metav1.GetOptions) (T, error) {
	return into[T](ctx, r.on(r.rest.Get()).Name(name).VersionedParams(&o, metav1.ParameterCodec))
}

// List reads all objects that o selects.
func (r Resource[T, L]) List(ctx context.Context, o metav1.ListOptions) (L, error) {
	return into[L](ctx, r.list(&o))
}

// Watch follows the objects that o selects.
func (r Resource[T, L]) Watch(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
	o.Watch = true
	return r.list(&o).Watch(ctx)
}

// Create makes an object.
func (r Resource[T, L]) Create(ctx context.Context, obj T, o metav1.CreateOptions) (T, error) {
	return into[T](ctx, r.on(r.rest.Post()).VersionedParams(&o, metav1.ParameterCodec).Body(obj))
}

// Update replaces an object.
func (r Resource[T, L]) Update(ctx context.Context, obj T, o metav1.UpdateOptions) (T, error) {
	name := ""
	if m, ok := any(obj).(metav1.Object); ok {
		name = m.GetName()
	}
	return into[T](ctx, r.on(r.rest.Put()).Name(name).VersionedParams(&o, metav1.ParameterCodec).Body(obj))
}

// Patch changes an object, or one of its subresources.
func (r Resource[T, L]) Patch(ctx context.Context, name string, kind types.PatchType, patch []byte, sub ...string) (T, error) {
	return into[T](ctx, r.on(r.rest.Patch(kind)).Name(name).SubResource(sub...).Body(patch))
}

// Delete removes an object.
func (r Resource[T, L]) Delete(ctx context.Context, name string, o metav1.DeleteOptions) error {
	return r.on(r.rest.Delete()).Name(name).Body(&o).Do(ctx).Error()
}

// Informer keeps the objects that select matches; transform may be nil. The
// informer does nothing until it is run.
func (r Resource[T, L]) Informer(selects metav1.ListOptions, transform cache.TransformFunc) (cache.SharedIndexInformer, error) {
	choose := func(o *metav1.ListOptions) {
		o.LabelSelector, o.FieldSelector = selects.LabelSelector, selects.FieldSelector
	}
	informer := cache.NewSharedIndexInformer(cache.ToListWatcherWithWatchListSemantics(&cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			choose(&o)
			return r.List(ctx, o)
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			choose(&o)
			return r.Watch(ctx, o)
		},
	}, r.rest), zero[T](), 0, cache.Indexers{})
	if err := informer.SetTransform(transform); err != nil {
		return nil, fmt.Errorf("make informer for %s: %w", r.name, err)
	}
	return informer, nil
}

func (r Resource[T, L]) on(q *rest.Request) *rest.Request {
	return q.NamespaceIfScoped(r.namespace, r.namespace != "").Resource(r.name)
}

// list asks with the caller's time limit at the server, too.
func (r Resource[T, L]) list(o *metav1.ListOptions) *rest.Request {
	q := r.on(r.rest.Get()).VersionedParams(o, metav1.ParameterCodec)
	if o.TimeoutSeconds != nil {
		q = q.Timeout(time.Duration(*o.TimeoutSeconds) * time.Second)
	}
	return q
}

// into sends a request and reads its answer; zero T with an error.
func into[T runtime.Object](ctx context.Context, q *rest.Request) (T, error) {
	obj := zero[T]()
	if err := q.Do(ctx).Into(obj); err != nil {
		var none T
		return none, err
	}
	return obj, nil
}

// zero is a new, empty object of a pointer type.
func zero[T runtime.Object]() T {
	var none T
	obj, _ := reflect.TypeAssert[T](reflect.New(reflect.TypeOf(none).Elem()))
	return obj
}
