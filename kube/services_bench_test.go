// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"
	"runtime"
	"testing"
	"time"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	metav1 "k8s.io/apimachinery/pkg/apis/meta/v1"
	"k8s.io/apimachinery/pkg/types"
	"k8s.io/client-go/tools/cache"

	"github.com/nodeagent/nodeagent/dataplane/service"
)

// nowhere is a sink that does nothing: what is left is this room's own cost.
type nowhere struct{}

func (nowhere) UpdateServices(context.Context, []service.Object) error       { return nil }
func (nowhere) DeleteServices(context.Context, []types.NamespacedName) error { return nil }
func (nowhere) PruneServices(context.Context, []types.NamespacedName) error  { return nil }

// BenchmarkServices measures the complete state and one change with many
// services of ten endpoints, and what a service costs in memory.
func BenchmarkServices(b *testing.B) {
	for _, n := range []int{1, 1000, 10000, 50000} {
		before := heap()
		t := manyServices(b, n)
		perService := (heap() - before) / float64(n)
		b.Run(fmt.Sprintf("replace/%d", n), func(b *testing.B) {
			for b.Loop() {
				if _, _, err := t.replace(b.Context()); err != nil {
					b.Fatal(err)
				}
			}
			b.ReportMetric(perService, "B/service")
		})
		b.Run(fmt.Sprintf("update/%d", n), func(b *testing.B) {
			for b.Loop() {
				if err := t.update(b.Context(), []string{"ns/svc-0"}); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func heap() float64 {
	runtime.GC()
	var m runtime.MemStats
	runtime.ReadMemStats(&m)
	return float64(m.HeapAlloc)
}

func manyServices(b *testing.B, n int) *serviceTopic {
	b.Helper()
	svcs := cache.NewIndexer(cache.MetaNamespaceKeyFunc, indexers(kindServices))
	slices := cache.NewIndexer(cache.MetaNamespaceKeyFunc, indexers(kindSlices))
	put := func(store cache.Indexer, obj any) {
		small, err := slim(obj)
		if err != nil {
			b.Fatal(err)
		}
		if err := store.Add(small); err != nil {
			b.Fatal(err)
		}
	}
	for i := range n {
		name, ip := fmt.Sprintf("svc-%d", i), fmt.Sprintf("10.%d.%d.%d", i>>16&255, i>>8&255, i&255)
		put(svcs, &corev1.Service{
			ObjectMeta: metav1.ObjectMeta{Namespace: "ns", Name: name, UID: types.UID(name)},
			Spec:       corev1.ServiceSpec{ClusterIP: ip, ClusterIPs: []string{ip}, Ports: []corev1.ServicePort{{Port: 80, Protocol: corev1.ProtocolTCP}}},
		})
		s := &discoveryv1.EndpointSlice{
			ObjectMeta: metav1.ObjectMeta{
				Namespace: "ns", Name: name + "-x", Labels: map[string]string{discoveryv1.LabelServiceName: name},
			},
			AddressType: discoveryv1.AddressTypeIPv4, Ports: []discoveryv1.EndpointPort{{Port: new(int32(8080))}},
		}
		for e := range 10 {
			s.Endpoints = append(s.Endpoints, discoveryv1.Endpoint{
				Addresses: []string{fmt.Sprintf("10.%d.%d.%d", 128+e, i>>8&255, i&255)}, NodeName: new(fmt.Sprintf("node-%d", e)),
				Conditions: discoveryv1.EndpointConditions{Ready: new(true), Serving: new(true), Terminating: new(false)},
				TargetRef:  &corev1.ObjectReference{Kind: "Pod", Namespace: "ns", Name: fmt.Sprintf("%s-%d", name, e)},
			})
		}
		put(slices, s)
	}
	return &serviceTopic{
		services: func() cache.Indexer { return svcs }, slices: func() cache.Indexer { return slices },
		sink: nowhere{}, metrics: newMetrics(), began: time.Now(), pending: map[string]*pendingChange{},
	}
}
