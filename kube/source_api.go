// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"log/slog"
	"sync"
	"sync/atomic"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/tools/cache"

	"github.com/nodeagent/nodeagent/kube/apiclient"
)

// apiSource follows kinds at an API server. An API server that is away, or
// that refuses, changes nothing: the objects stay as they were seen last.
type apiSource struct {
	client  *Client
	log     *slog.Logger
	metrics *metrics

	follows map[kind]*apiFollow
	order   []kind
	wg      sync.WaitGroup
}

// apiFollow is the watch of one kind.
type apiFollow struct {
	informer cache.SharedIndexInformer
	done     <-chan struct{}
	begun    atomic.Bool

	mu    sync.Mutex
	fault error // guarded by mu; nil while the watch is healthy
}

var _ source = (*apiSource)(nil)

// lister asks for the objects of one kind.
type lister struct {
	list  func(context.Context, metav1.ListOptions) (runtime.Object, error)
	watch func(context.Context, metav1.ListOptions) (watch.Interface, error)
	// example is an object of the kind.
	example runtime.Object
	// labels and fields choose the objects.
	labels, fields string
}

// listerOf says how a kind is asked for.
func listerOf(c *Client, k kind) lister {
	switch k {
	case kindNodes:
		return ask(c.Nodes(), &corev1.Node{})
	case kindServices:
		l := ask(c.Services(metav1.NamespaceAll), &corev1.Service{})
		l.labels, l.fields = "!"+LabelServiceProxyName, "spec.clusterIP!="+corev1.ClusterIPNone
		return l
	case kindSlices:
		l := ask(c.EndpointSlices(metav1.NamespaceAll), &discoveryv1.EndpointSlice{})
		l.labels = "!" + LabelServiceProxyName + ",!" + corev1.IsHeadlessService
		return l
	case kindPods:
		return ask(c.Pods(metav1.NamespaceAll), &corev1.Pod{})
	case kindNamespaces:
		return ask(c.Namespaces(), &corev1.Namespace{})
	case kindPolicies:
		return ask(c.NetworkPolicies(metav1.NamespaceAll), &networkingv1.NetworkPolicy{})
	default:
		return lister{}
	}
}

func ask[T, L runtime.Object](r apiclient.Resource[T, L], example T) lister {
	return lister{
		list:  func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) { return r.List(ctx, o) },
		watch: r.Watch, example: example,
	}
}

func newAPISource(client *Client, log *slog.Logger, m *metrics) *apiSource {
	return &apiSource{client: client, log: log, metrics: m, follows: map[kind]*apiFollow{}}
}

func (s *apiSource) follow(k kind, onChange func(obj any)) {
	f := &apiFollow{}
	l := listerOf(s.client, k)
	f.informer = cache.NewSharedIndexInformer(s.listWatch(k, f, l), l.example, 0, indexers(k))
	// None of these calls can fail before the informer runs.
	_ = f.informer.SetTransform(slim)
	_ = f.informer.SetWatchErrorHandlerWithContext(
		func(ctx context.Context, _ *cache.Reflector, err error) {
			s.log.DebugContext(ctx, "watch begins anew", "kind", string(k), "err", err)
		})
	reg, err := f.informer.AddEventHandler(cache.ResourceEventHandlerFuncs{
		AddFunc:    onChange,
		UpdateFunc: func(_, obj any) { onChange(obj) },
		DeleteFunc: func(obj any) {
			if t, ok := obj.(cache.DeletedFinalStateUnknown); ok {
				obj = t.Obj
			}
			onChange(obj)
		},
	})
	if err == nil {
		f.done = reg.HasSyncedChecker().Done()
	}
	s.follows[k], s.order = f, append(s.order, k)
}

// listWatch asks the server for a kind, and notes whether it answered. (The
// informer's error handler would not do: it does not hear of refused
// connections.)
func (s *apiSource) listWatch(k kind, f *apiFollow, l lister) *cache.ListWatch {
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			o.LabelSelector, o.FieldSelector = l.labels, l.fields
			list, err := l.list(ctx, o)
			s.note(ctx, k, f, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.LabelSelector, o.FieldSelector = l.labels, l.fields
			w, err := l.watch(ctx, o)
			s.note(ctx, k, f, err)
			return w, err
		},
	}
}

// note keeps what came of a request; after a fault the informer tries again
// by itself.
func (s *apiSource) note(ctx context.Context, k kind, f *apiFollow, err error) {
	if ctx.Err() != nil {
		return
	}
	f.mu.Lock()
	before := f.fault
	f.fault = err
	f.mu.Unlock()
	server := s.client.Server()
	switch {
	case err == nil && before != nil:
		s.log.InfoContext(ctx, "api server answers again", "kind", string(k), "server", server)
	case err != nil && before == nil:
		s.log.WarnContext(ctx, "api server does not answer, what it told stays in force",
			"kind", string(k), "server", server, "err", err)
	}
	if err != nil {
		s.metrics.watchErrors.WithLabelValues(string(k)).Inc()
	}
}

func (s *apiSource) start(ctx context.Context, kinds ...kind) error {
	for _, k := range kinds {
		if f := s.follows[k]; !f.begun.Swap(true) {
			s.wg.Go(func() { f.informer.RunWithContext(ctx) })
		}
	}
	return nil
}

func (s *apiSource) stop() { s.wg.Wait() }

func (s *apiSource) objects(k kind) cache.Indexer { return s.follows[k].informer.GetIndexer() }

func (s *apiSource) complete(k kind) <-chan struct{} { return s.follows[k].done }

func (s *apiSource) status() SourceStatus {
	out := SourceStatus{From: s.client.Server()}
	for _, k := range s.order {
		f := s.follows[k]
		if !f.begun.Load() {
			continue
		}
		out.Kinds = append(out.Kinds, KindStatus{
			Kind: string(k), Objects: len(f.informer.GetIndexer().ListKeys()), Complete: isClosed(f.done),
		})
		f.mu.Lock()
		if f.fault != nil {
			out.Faults = append(out.Faults, fmt.Sprintf("watch %s: %v", k, f.fault))
		}
		f.mu.Unlock()
	}
	return out
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}
