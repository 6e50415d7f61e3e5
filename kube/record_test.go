// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane"
	"github.com/nodeagent/nodeagent/dataplane/policy"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// record is every sink at once. It keeps the state that a data path would
// have, and each call as one line.
type record struct {
	mu       sync.Mutex
	calls    []string
	changed  chan struct{}
	fail     map[string]error // by verb, for the next call
	node     dataplane.Node
	cidrs    []netip.Prefix
	peers    []dataplane.Peer
	services map[types.NamespacedName]service.Object
	policies map[string]bool
}

func newRecord(leftover ...string) *record {
	r := &record{
		changed: make(chan struct{}, 1), fail: map[string]error{},
		services: map[types.NamespacedName]service.Object{}, policies: map[string]bool{},
	}
	for _, l := range leftover { // what an earlier daemon left in the maps
		r.services[nameOf(l)] = service.Object{}
	}
	return r
}

func (r *record) failNext(verb string, err error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.fail[verb] = err
}

func (r *record) call(verb string, do func(), args ...string) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.calls = append(r.calls, strings.TrimSpace(verb+" "+strings.Join(args, " ")))
	if err := r.fail[verb]; err != nil {
		delete(r.fail, verb)
		return err
	}
	do()
	select {
	case r.changed <- struct{}{}:
	default:
	}
	return nil
}

func (r *record) SetNode(_ context.Context, n dataplane.Node) error {
	return r.call("node", func() { r.node = n }, n.Name)
}

func (r *record) SetPodCIDRs(_ context.Context, c []netip.Prefix) error {
	return r.call("cidrs", func() { r.cidrs = c }, fmt.Sprint(c))
}

func (r *record) UpdatePeers(_ context.Context, peers []dataplane.Peer) error {
	var names []string
	for _, p := range peers {
		names = append(names, p.Name)
	}
	return r.call("peers", func() { r.peers = peers }, names...)
}

func (r *record) UpdateServices(_ context.Context, objs []service.Object) error {
	var names []string
	for _, o := range objs {
		names = append(names, o.Name().String())
	}
	return r.call("update", func() {
		for _, o := range objs {
			r.services[o.Name()] = o
		}
	}, names...)
}

func (r *record) DeleteServices(_ context.Context, names []types.NamespacedName) error {
	return r.call("delete", func() {
		for _, n := range names {
			delete(r.services, n)
		}
	}, join(names)...)
}

func (r *record) PruneServices(_ context.Context, keep []types.NamespacedName) error {
	return r.call("prune", func() {
		for n := range r.services {
			if !slices.Contains(keep, n) {
				delete(r.services, n)
			}
		}
	}, join(keep)...)
}

func (r *record) ReplacePolicyObjects(_ context.Context, all policy.Objects) error {
	return r.call("replace-policies", func() {
		clear(r.policies)
		r.add(all)
	})
}

func (r *record) UpdatePolicyObjects(_ context.Context, changed policy.Objects, gone policy.Names) error {
	return r.call("update-policies", func() {
		r.add(changed)
		for _, n := range gone.Namespaces {
			delete(r.policies, "namespace "+n)
		}
		for _, n := range gone.Pods {
			delete(r.policies, "pod "+n.String())
		}
		for _, n := range gone.Policies {
			delete(r.policies, "policy "+n.String())
		}
	})
}

func (r *record) add(o policy.Objects) {
	for _, n := range o.Namespaces {
		r.policies["namespace "+n.Name] = true
	}
	for _, p := range o.Pods {
		r.policies["pod "+p.Namespace+"/"+p.Name] = true
	}
	for _, p := range o.Policies {
		r.policies["policy "+p.Namespace+"/"+p.Name] = true
	}
}

func join(names []types.NamespacedName) []string {
	var out []string
	for _, n := range names {
		out = append(out, n.String())
	}
	return out
}

// await waits until ok holds of the record.
func (r *record) await(t *testing.T, what string, ok func(*record) bool) {
	t.Helper()
	deadline := time.After(30 * time.Second)
	for {
		r.mu.Lock()
		done := ok(r)
		calls := slices.Clone(r.calls)
		r.mu.Unlock()
		if done {
			return
		}
		select {
		case <-r.changed:
		case <-deadline:
			t.Fatalf("%s: never came; calls:\n%s", what, strings.Join(calls, "\n"))
		}
	}
}

// serviceNames are the names of the services that the record has now.
func (r *record) serviceNames() string {
	var names []string
	for n := range r.services {
		names = append(names, n.String())
	}
	slices.Sort(names)
	return strings.Join(names, " ")
}

func (r *record) deps(t *testing.T) Deps {
	t.Helper()
	return Deps{
		Log:  slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug})),
		Node: r, PodCIDRs: r, Peers: r, Services: r, Policies: r,
	}
}

// startWatcher runs a watcher until the test ends.
func startWatcher(t *testing.T, cfg Config, deps Deps) *Watcher {
	t.Helper()
	w, err := New(cfg, deps)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Start(t.Context()); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := w.Stop(context.Background()); err != nil {
			t.Error(err)
		}
	})
	return w
}
