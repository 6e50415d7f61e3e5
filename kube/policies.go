// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"slices"
	"strings"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/client-go/tools/cache"
)

// policyTopic tells the sink what network policy depends on. Its keys are
// "kind:namespace/name", so that one batch is one state of all three kinds.
type policyTopic struct {
	objects func(kind) cache.Indexer
	sink    PolicySink
}

// policyKinds are in the order in which a batch is read.
func policyKinds() []kind { return []kind{kindNamespaces, kindPods, kindPolicies} }

func (t *policyTopic) replace(ctx context.Context) ([]string, bool, error) {
	var all PolicyObjects
	var batch []string
	for _, k := range policyKinds() {
		keys := t.objects(k).ListKeys()
		slices.Sort(keys)
		for _, key := range keys {
			batch = append(batch, string(k)+":"+key)
			if err := t.read(k, key, &all, &PolicyNames{}); err != nil {
				return batch, false, err
			}
		}
	}
	err := t.sink.ReplacePolicyObjects(ctx, all)
	return batch, err == nil, err
}

func (t *policyTopic) update(ctx context.Context, keys []string) error {
	var changed PolicyObjects
	var gone PolicyNames
	for _, key := range keys {
		k, name, _ := strings.Cut(key, ":")
		if err := t.read(kind(k), name, &changed, &gone); err != nil {
			return err
		}
	}
	return t.sink.UpdatePolicyObjects(ctx, changed, gone)
}

// read adds the newest state of one object to the batch.
func (t *policyTopic) read(k kind, key string, changed *PolicyObjects, gone *PolicyNames) error {
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
