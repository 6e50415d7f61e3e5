// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/nodeagent/nodeagent/dataplane"
)

const (
	topicPeers    = "peers"
	topicPolicies = "policies"
)

// Deps are what the watcher works with. A nil sink is not told anything, and
// what only it would have needed is not watched.
type Deps struct {
	Log *slog.Logger
	// Metrics may be nil.
	Metrics prometheus.Registerer
	// Client is the connection to the API server; needed unless
	// Config.Manifests names a directory.
	Client *Client

	// BaseNode is what configuration says of this node; what it leaves empty
	// of addresses and ranges comes from the Node object.
	BaseNode dataplane.Node
	// DSR is what the own Node says of direct return, for the others: the
	// watcher sees to it where there is an API server.
	DSR      bool
	Node     NodeSink
	PodCIDRs PodCIDRSink
	Peers    PeerSink
	Services ServiceSink
	Policies PolicySink
}

// Watcher watches one source and tells the sinks.
type Watcher struct {
	cfg     Config
	deps    Deps
	log     *slog.Logger
	metrics *metrics
	source  source // nil without a configured source
	topics  []*topic
	// onChange are, by kind, the topics that a change matters to.
	onChange map[kind][]func(obj any)
	kinds    []kind

	cancel context.CancelFunc
	wg     sync.WaitGroup
}

// New makes a watcher; it does nothing until Start.
func New(cfg Config, deps Deps) (*Watcher, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	if deps.Log == nil {
		deps.Log = slog.New(slog.DiscardHandler)
	}
	w := &Watcher{
		cfg: cfg, deps: deps, log: deps.Log.With("room", "kube"), metrics: newMetrics(),
		onChange: map[kind][]func(any){},
	}
	switch {
	case cfg.Manifests != "":
		w.source = newDirSource(cfg.Manifests, w.log, w.metrics)
	case cfg.HasAPIServer() && deps.Client == nil:
		return nil, errors.New("kube: an API server is configured but there is no client")
	case cfg.HasAPIServer():
		w.source = newAPISource(deps.Client, w.log, w.metrics)
	default:
		return w, nil
	}
	w.nodeTopic()
	w.peerTopic()
	w.serviceTopic()
	w.policyTopic()
	return w, w.metrics.register(deps.Metrics)
}

// Start begins to watch and to tell. It does not wait for the source: see
// Synced.
func (w *Watcher) Start(ctx context.Context) error {
	if w.source == nil {
		return nil
	}
	for _, k := range w.kinds {
		tell := w.onChange[k]
		w.source.follow(k, func(obj any) {
			for _, f := range tell {
				f(obj)
			}
		})
	}
	ctx, w.cancel = context.WithCancel(ctx)
	begin := slices.DeleteFunc(slices.Clone(w.kinds), func(k kind) bool { return slices.Contains(lateKinds(), k) })
	if err := w.source.start(ctx, begin...); err != nil {
		w.cancel()
		return err
	}
	for _, t := range w.topics {
		// A directory may be incomplete for as long as a human needs, so what is
		// right in it counts at once; but peers, and what isolates pods, can be told only as a set.
		t.early = w.cfg.Manifests != "" && t.name != topicPeers && t.name != topicPolicies
		complete := make(chan struct{})
		w.wg.Go(func() { w.awaitComplete(ctx, t.needs, complete) })
		w.wg.Go(func() { t.run(ctx, complete) })
	}
	return nil
}

// awaitComplete closes complete when the source has all of kinds; never, if
// ctx ends first.
func (w *Watcher) awaitComplete(ctx context.Context, kinds []kind, complete chan<- struct{}) {
	for _, k := range kinds {
		select {
		case <-w.source.complete(k):
		case <-ctx.Done():
			return
		}
	}
	close(complete)
}

// Stop ends the watch. What the sinks were told stays.
func (w *Watcher) Stop(context.Context) error {
	if w.cancel == nil {
		return nil
	}
	w.cancel()
	w.source.stop()
	w.wg.Wait()
	return nil
}

// Synced waits until every sink has taken the complete state once.
func (w *Watcher) Synced(ctx context.Context) error {
	for _, t := range w.topics {
		select {
		case <-t.ready:
		case <-ctx.Done():
			return fmt.Errorf("wait for complete state of %s: %w", t.name, context.Cause(ctx))
		}
	}
	return nil
}

// Status is how the source is and how far the sinks agree with it.
type Status struct {
	Source SourceStatus `json:"source"`
	Sinks  []SinkStatus `json:"sinks"`
}

// Status says how it goes, for people.
func (w *Watcher) Status() Status {
	if w.source == nil {
		return Status{Source: SourceStatus{From: "none"}}
	}
	s := Status{Source: w.source.status()}
	for _, t := range w.topics {
		s.Sinks = append(s.Sinks, t.status())
	}
	return s
}

// addTopic lets a topic hear of kinds; key says under which key an object
// concerns it, "" if it does not.
func (w *Watcher) addTopic(t *topic, key func(k kind, obj any) string, kinds ...kind) {
	for _, k := range kinds {
		if !slices.Contains(w.kinds, k) {
			w.kinds = append(w.kinds, k)
		}
		w.onChange[k] = append(w.onChange[k], func(obj any) {
			if key := key(k, obj); key != "" {
				t.mark(key)
			}
		})
	}
	t.needs = kinds
	w.topics = append(w.topics, t)
}

func (w *Watcher) objects(k kind) func() cache.Indexer {
	return func() cache.Indexer { return w.source.objects(k) }
}

func (w *Watcher) nodeTopic() {
	if w.deps.Node == nil && w.deps.PodCIDRs == nil {
		return
	}
	nt := &nodeTopic{
		name: w.cfg.NodeName, base: w.deps.BaseNode, nodes: w.objects(kindNodes),
		node: w.deps.Node, cidrs: w.deps.PodCIDRs, dsr: w.deps.DSR,
	}
	if c := w.deps.Client; c != nil {
		nt.patch = func(ctx context.Context, patch []byte) error {
			_, err := c.Nodes().Patch(ctx, w.cfg.NodeName, types.MergePatchType, patch)
			return err
		}
	}
	t := newTopic("node", w.cfg, w.log, w.metrics)
	t.replace, t.update = nt.replace, nt.update
	w.addTopic(t, func(_ kind, obj any) string {
		if objectKey(obj) == w.cfg.NodeName {
			return w.cfg.NodeName
		}
		return ""
	}, kindNodes)
}

func (w *Watcher) peerTopic() {
	if w.deps.Peers == nil {
		return
	}
	pt := &peerTopic{
		self: w.cfg.NodeName, nodes: w.objects(kindNodes), sink: w.deps.Peers, log: w.log,
		known: map[string]dataplane.Peer{},
	}
	t := newTopic(topicPeers, w.cfg, w.log, w.metrics)
	t.replace, t.update = pt.replace, pt.update
	w.addTopic(t, func(_ kind, obj any) string { return objectKey(obj) }, kindNodes)
}

func (w *Watcher) serviceTopic() {
	if w.deps.Services == nil {
		return
	}
	st := &serviceTopic{
		services: w.objects(kindServices), slices: w.objects(kindSlices), sink: w.deps.Services,
		metrics: w.metrics, began: time.Now(), pending: map[string]*pendingChange{},
	}
	t := newTopic("services", w.cfg, w.log, w.metrics)
	t.replace, t.update = st.replace, st.update
	w.addTopic(t, func(_ kind, obj any) string {
		s, ok := obj.(*discoveryv1.EndpointSlice)
		if !ok {
			st.note(obj)
			return objectKey(obj)
		}
		key := serviceOf(s)
		if key != "" {
			st.note(obj)
		}
		w.learnServers(s)
		return key
	}, kindServices, kindSlices)
}

func (w *Watcher) policyTopic() {
	if w.deps.Policies == nil {
		return
	}
	pt := &policyTopic{source: func() source { return w.source }, sink: w.deps.Policies}
	t := newTopic(topicPolicies, w.cfg, w.log, w.metrics)
	t.replace, t.update = pt.replace, pt.update
	w.addTopic(t, func(k kind, obj any) string { return string(k) + ":" + objectKey(obj) }, policyKinds()...)
	t.needs = []kind{kindPolicies} // the topic itself waits for the others
}

// learnServers keeps the connection's addresses in step with the endpoints
// of the API server itself.
func (w *Watcher) learnServers(s *discoveryv1.EndpointSlice) {
	if w.deps.Client == nil || s.Namespace != corev1.NamespaceDefault ||
		s.Labels[discoveryv1.LabelServiceName] != "kubernetes" {
		return
	}
	w.deps.Client.dial.learn(sliceAddresses(s, "https"))
}

// objectKey is "namespace/name", or "name" for what has no namespace.
func objectKey(obj any) string {
	key, err := cache.MetaNamespaceKeyFunc(obj)
	if err != nil {
		return ""
	}
	return key
}
