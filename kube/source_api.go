// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"log/slog"
	"sync"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	networkingv1 "k8s.io/api/networking/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/runtime"
	"k8s.io/apimachinery/pkg/watch"
	"k8s.io/client-go/rest"
	"k8s.io/client-go/tools/cache"
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
	cancel  context.CancelFunc
}

// apiFollow is the watch of one kind.
type apiFollow struct {
	informer cache.SharedIndexInformer
	done     <-chan struct{}

	mu    sync.Mutex
	fault error // guarded by mu; nil while the watch is healthy
}

var _ source = (*apiSource)(nil)

// apiKind is how a kind is asked for.
type apiKind struct {
	getter  func(*Client) cache.Getter
	example runtime.Object
	labels  string
	fields  string
}

func apiKindOf(k kind) apiKind {
	core := func(c *Client) cache.Getter { return c.CoreV1().RESTClient() }
	switch k {
	case kindNodes:
		return apiKind{getter: core, example: &corev1.Node{}}
	case kindServices:
		return apiKind{
			getter: core, example: &corev1.Service{},
			labels: "!" + LabelServiceProxyName, fields: "spec.clusterIP!=" + corev1.ClusterIPNone,
		}
	case kindSlices:
		return apiKind{
			getter:  func(c *Client) cache.Getter { return c.DiscoveryV1().RESTClient() },
			example: &discoveryv1.EndpointSlice{},
			labels:  "!" + LabelServiceProxyName + ",!" + corev1.IsHeadlessService,
		}
	case kindPods:
		return apiKind{getter: core, example: &corev1.Pod{}}
	case kindNamespaces:
		return apiKind{getter: core, example: &corev1.Namespace{}}
	case kindPolicies:
		return apiKind{
			getter:  func(c *Client) cache.Getter { return c.NetworkingV1().RESTClient() },
			example: &networkingv1.NetworkPolicy{},
		}
	default:
		return apiKind{}
	}
}

func newAPISource(client *Client, log *slog.Logger, m *metrics) *apiSource {
	return &apiSource{client: client, log: log, metrics: m, follows: map[kind]*apiFollow{}}
}

func (s *apiSource) follow(k kind, onChange func(obj any)) {
	f := &apiFollow{}
	f.informer = cache.NewSharedIndexInformer(
		cache.ToListWatcherWithWatchListSemantics(s.listWatch(k, f), s.client.Interface),
		apiKindOf(k).example, 0, indexers(k))
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
func (s *apiSource) listWatch(k kind, f *apiFollow) *cache.ListWatch {
	ak := apiKindOf(k)
	request := func(o *metav1.ListOptions) *rest.Request {
		o.LabelSelector, o.FieldSelector = ak.labels, ak.fields
		return ak.getter(s.client).Get().Resource(string(k)).VersionedParams(o, metav1.ParameterCodec)
	}
	return &cache.ListWatch{
		ListWithContextFunc: func(ctx context.Context, o metav1.ListOptions) (runtime.Object, error) {
			list, err := request(&o).Do(ctx).Get()
			s.note(ctx, k, f, err)
			return list, err
		},
		WatchFuncWithContext: func(ctx context.Context, o metav1.ListOptions) (watch.Interface, error) {
			o.Watch = true
			w, err := request(&o).Watch(ctx)
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

func (s *apiSource) start(ctx context.Context) error {
	ctx, s.cancel = context.WithCancel(ctx)
	for _, f := range s.follows {
		s.wg.Go(func() { f.informer.RunWithContext(ctx) })
	}
	return nil
}

func (s *apiSource) stop() {
	if s.cancel != nil {
		s.cancel()
	}
	s.wg.Wait()
}

func (s *apiSource) objects(k kind) cache.Indexer { return s.follows[k].informer.GetIndexer() }

func (s *apiSource) complete(k kind) <-chan struct{} { return s.follows[k].done }

func (s *apiSource) status() SourceStatus {
	out := SourceStatus{From: s.client.Server()}
	for _, k := range s.order {
		f := s.follows[k]
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
