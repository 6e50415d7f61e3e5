// SPDX-License-Identifier: Apache-2.0

// Package service compiles Kubernetes Services and their EndpointSlices to the
// frontends and backends of the data path. It is pure: objects in, entries out,
// and knows neither the kernel nor the clock. The choice of backends follows
// CategorizeEndpoints of k8s.io/kubernetes/pkg/proxy.
package service

import (
	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/apimachinery/pkg/types"
)

// Object is one Service with everything that decides where its traffic goes.
// It is read only: callers may pass objects of a shared cache.
type Object struct {
	Service *corev1.Service
	// Slices are all EndpointSlices whose kubernetes.io/service-name is this
	// service, of both address families, in any order.
	Slices []*discoveryv1.EndpointSlice
}

// Name of the service.
func (o Object) Name() types.NamespacedName {
	return types.NamespacedName{Namespace: o.Service.Namespace, Name: o.Service.Name}
}
