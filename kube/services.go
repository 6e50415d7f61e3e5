// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// serviceTopic tells the sink which services there are. A service and its
// slices are one key: the sink gets them together, and so can write them in
// one piece.
type serviceTopic struct {
	services func() cache.Indexer
	slices   func() cache.Indexer
	sink     ServiceSink
	metrics  *metrics
	// began is when the agent did: older triggers tell of a past in which it
	// was not there, and are not its latency.
	began time.Time

	mu sync.Mutex
	// pending are, per service, the changes that are not programmed yet;
	// guarded by mu.
	pending map[string]*pendingChange
}

// pendingChange is what is known of changes on their way to the sink.
type pendingChange struct {
	services, endpoints int
	// triggers are when pods or the Service changed, by slice.
	triggers map[string]time.Time
}

// note counts a change, and remembers when its cause happened.
func (t *serviceTopic) note(obj any) {
	t.mu.Lock()
	defer t.mu.Unlock()
	switch o := obj.(type) {
	case *corev1.Service:
		t.pendingOf(o.Namespace+"/"+o.Name).services++
		t.metrics.serviceChanges.Inc()
		t.metrics.servicesPending.Inc()
	case *discoveryv1.EndpointSlice:
		p := t.pendingOf(serviceOf(o))
		p.endpoints++
		t.metrics.endpointChanges.Inc()
		t.metrics.endpointsPending.Inc()
		at, err := time.Parse(time.RFC3339Nano, o.Annotations[corev1.EndpointsLastChangeTriggerTime])
		if err != nil || at.Before(t.began) {
			break
		}
		if first, ok := p.triggers[o.Name]; !ok || at.Before(first) {
			p.triggers[o.Name] = at
		}
	}
	t.metrics.lastQueued.SetToCurrentTime()
}

func (t *serviceTopic) pendingOf(key string) *pendingChange {
	p := t.pending[key]
	if p == nil {
		p = &pendingChange{triggers: map[string]time.Time{}}
		t.pending[key] = p
	}
	return p
}

func (t *serviceTopic) takePending() map[string]*pendingChange {
	t.mu.Lock()
	defer t.mu.Unlock()
	p := t.pending
	t.pending = map[string]*pendingChange{}
	return p
}

// settle gives account of changes that the sink took, or keeps them.
func (t *serviceTopic) settle(pending map[string]*pendingChange, start time.Time, err error) {
	if err != nil {
		t.mu.Lock()
		defer t.mu.Unlock()
		for key, p := range pending {
			now := t.pendingOf(key)
			now.services, now.endpoints = now.services+p.services, now.endpoints+p.endpoints
			maps.Copy(now.triggers, p.triggers) // the older ones
		}
		return
	}
	end := time.Now()
	t.metrics.syncDuration.Observe(end.Sub(start).Seconds())
	t.metrics.lastSync.SetToCurrentTime()
	for _, p := range pending {
		t.metrics.servicesPending.Sub(float64(p.services))
		t.metrics.endpointsPending.Sub(float64(p.endpoints))
		for _, at := range p.triggers {
			t.metrics.programming.Observe(end.Sub(at).Seconds())
		}
	}
}

func (t *serviceTopic) replace(ctx context.Context) ([]string, bool, error) {
	keys := t.services().ListKeys()
	slices.Sort(keys)
	b := t.collect(keys)
	err := t.tell(ctx, b)
	// What could not be read or programmed is kept too: pruning takes only what
	// is not there any more.
	keep := b.unread
	for _, o := range b.changed {
		keep = append(keep, o.Name())
	}
	perr := t.sink.PruneServices(ctx, keep)
	return keys, perr == nil, errors.Join(err, perr)
}

func (t *serviceTopic) update(ctx context.Context, keys []string) error {
	return t.tell(ctx, t.collect(keys))
}

// serviceBatch is the newest state of some keys.
type serviceBatch struct {
	pending      map[string]*pendingChange
	changed      []service.Object
	gone, unread []types.NamespacedName
	errs         []error
}

func (t *serviceTopic) collect(keys []string) serviceBatch {
	b := serviceBatch{pending: t.takePending(), changed: make([]service.Object, 0, len(keys))}
	for _, key := range keys {
		o, ok, err := t.read(key)
		switch {
		case err != nil:
			b.errs, b.unread = append(b.errs, err), append(b.unread, nameOf(key))
		case ok:
			b.changed = append(b.changed, o)
		default:
			b.gone = append(b.gone, nameOf(key))
		}
	}
	return b
}

// tell hands a batch over and gives account of it.
func (t *serviceTopic) tell(ctx context.Context, b serviceBatch) error {
	start, errs := time.Now(), b.errs
	// What goes comes first: its addresses and ports may be another's now.
	if len(b.gone) > 0 {
		errs = append(errs, t.sink.DeleteServices(ctx, b.gone))
	}
	if len(b.changed) > 0 {
		errs = append(errs, t.sink.UpdateServices(ctx, b.changed))
	}
	err := errors.Join(errs...)
	t.settle(b.pending, start, err)
	return err
}

// read is the newest state of a service and its slices; false if there is no
// such service for this agent.
func (t *serviceTopic) read(key string) (service.Object, bool, error) {
	obj, ok, err := t.services().GetByKey(key)
	if err != nil || !ok {
		return service.Object{}, false, err
	}
	svc, ok := obj.(*corev1.Service)
	if !ok {
		return service.Object{}, false, fmt.Errorf("service %s: the store holds a %T", key, obj)
	}
	if !served(svc) {
		return service.Object{}, false, nil
	}
	objs, err := t.slices().ByIndex(indexByService, key)
	if err != nil {
		return service.Object{}, false, fmt.Errorf("slices of service %s: %w", key, err)
	}
	out := service.Object{Service: svc, Slices: make([]*discoveryv1.EndpointSlice, 0, len(objs))}
	for _, obj := range objs {
		if s, ok := obj.(*discoveryv1.EndpointSlice); ok {
			out.Slices = append(out.Slices, s)
		}
	}
	slices.SortFunc(out.Slices, func(a, b *discoveryv1.EndpointSlice) int { return cmp.Compare(a.Name, b.Name) })
	return out, true, nil
}

// served reports whether a proxy has anything to do with the service: those
// that are headless, or only a name, or another's, it has not.
func served(s *corev1.Service) bool {
	_, another := s.Labels[LabelServiceProxyName]
	return !another && s.Spec.Type != corev1.ServiceTypeExternalName &&
		s.Spec.ClusterIP != "" && s.Spec.ClusterIP != corev1.ClusterIPNone
}

func nameOf(key string) types.NamespacedName {
	ns, name, _ := strings.Cut(key, "/")
	return types.NamespacedName{Namespace: ns, Name: name}
}
