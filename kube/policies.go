// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/nodeagent/nodeagent/dataplane/policy"
)

// policyTopic tells the sink what network policy depends on. Its keys are
// "kind:namespace/name", so that one batch is one state of all three kinds.
// Pods and namespaces of the whole cluster are followed only once there is a
// policy: nobody else asks for them, and they are what costs memory.
type policyTopic struct {
	source func() source
	sink   PolicySink
	// follows: pods and namespaces are known.
	follows bool
}

// lateKinds are followed when there is a policy.
func lateKinds() []kind { return []kind{kindNamespaces, kindPods} }

// policyKinds are in the order in which a batch is read.
func policyKinds() []kind { return []kind{kindNamespaces, kindPods, kindPolicies} }

// awaitPeers begins to follow pods and namespaces when there is a policy, and
// returns when all of them are known. It reports whether that has just happened.
func (t *policyTopic) awaitPeers(ctx context.Context) (bool, error) {
	if t.follows || len(t.objects(kindPolicies).ListKeys()) == 0 {
		return false, nil
	}
	if err := t.source().start(ctx, lateKinds()...); err != nil {
		return false, err
	}
	for _, k := range lateKinds() {
		select {
		case <-t.source().complete(k):
		case <-ctx.Done():
			return false, context.Cause(ctx)
		}
	}
	t.follows = true
	return true, nil
}

func (t *policyTopic) objects(k kind) cache.Indexer { return t.source().objects(k) }

func (t *policyTopic) replace(ctx context.Context) ([]string, bool, error) {
	if _, err := t.awaitPeers(ctx); err != nil {
		return nil, false, err
	}
	var all policy.Objects
	var batch []string
	for _, k := range policyKinds() {
		keys := t.objects(k).ListKeys()
		slices.Sort(keys)
		for _, key := range keys {
			batch = append(batch, string(k)+":"+key)
			if err := t.read(k, key, &all, &policy.Names{}); err != nil {
				return batch, false, err
			}
		}
	}
	err := t.sink.ReplacePolicyObjects(ctx, all)
	return batch, err == nil, err
}

func (t *policyTopic) update(ctx context.Context, keys []string) error {
	if began, err := t.awaitPeers(ctx); began || err != nil {
		if err == nil {
			_, _, err = t.replace(ctx)
		}
		return err
	}
	var changed policy.Objects
	var gone policy.Names
	for _, key := range keys {
		k, name, _ := strings.Cut(key, ":")
		if err := t.read(kind(k), name, &changed, &gone); err != nil {
			return err
		}
	}
	return t.sink.UpdatePolicyObjects(ctx, changed, gone)
}

// read adds the newest state of one object to the batch.
func (t *policyTopic) read(k kind, key string, changed *policy.Objects, gone *policy.Names) error {
	obj, ok, err := t.objects(k).GetByKey(key)
	if err != nil {
		return err
	}
	switch k {
	case kindNamespaces:
		if ns, is := obj.(*corev1.Namespace); ok && is {
			changed.Namespaces = append(changed.Namespaces, ns)
		} else {
			gone.Namespaces = append(gone.Namespaces, key)
		}
	case kindPods:
		if p, is := obj.(*corev1.Pod); ok && is && hasAddress(p) {
			changed.Pods = append(changed.Pods, p)
		} else {
			gone.Pods = append(gone.Pods, nameOf(key))
		}
	case kindPolicies:
		if p, is := obj.(*networkingv1.NetworkPolicy); ok && is {
			changed.Policies = append(changed.Policies, p)
		} else {
			gone.Policies = append(gone.Policies, nameOf(key))
		}
	default:
	}
	return nil
}
