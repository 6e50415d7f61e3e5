// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"fmt"

	corev1 "k8s.io/api/core/v1"
	discoveryv1 "k8s.io/api/discovery/v1"
	"k8s.io/client-go/tools/cache"
)

// kind is a kind of objects, by its resource name.
type kind string

const (
	kindNodes      kind = "nodes"
	kindServices   kind = "services"
	kindSlices     kind = "endpointslices"
	kindPods       kind = "pods"
	kindNamespaces kind = "namespaces"
	kindPolicies   kind = "networkpolicies"
)

// source is where objects come from: an API server or a directory.
type source interface {
	// follow asks for a kind. onChange is called, not concurrently for one
	// kind, with each object that was added, changed (with its new state) or
	// deleted (with its last state), after objects(k) shows the change.
	follow(k kind, onChange func(obj any))
	// start begins to deliver these kinds until ctx ends; it does not wait for
	// the first object. It may be called again for kinds that are needed later.
	start(ctx context.Context, kinds ...kind) error
	// stop waits, after that, until no onChange is running and none will run again.
	stop()
	// objects is the newest state of a followed kind.
	objects(k kind) cache.Indexer
	// complete is closed as soon as objects(k) has been complete once and
	// onChange has been called for all of it.
	complete(k kind) <-chan struct{}
	// status says how the source is, for people.
	status() SourceStatus
}

// SourceStatus says how the source of objects is.
type SourceStatus struct {
	// From is the API server's URL or the directory.
	From string `json:"from"`
	// Kinds are the followed kinds.
	Kinds []KindStatus `json:"kinds"`
	// Faults are what keeps the source from being right and complete now:
	// the last error of each watch, or unreadable manifests.
	Faults []string `json:"faults,omitempty"`
}

// KindStatus is how the watch of one kind is.
type KindStatus struct {
	Kind     string `json:"kind"`
	Objects  int    `json:"objects"`
	Complete bool   `json:"complete"`
}

const indexByService = "service"

// indexers are what topics need to find objects by.
func indexers(k kind) cache.Indexers {
	if k != kindSlices {
		return cache.Indexers{}
	}
	return cache.Indexers{indexByService: func(obj any) ([]string, error) {
		s, ok := obj.(*discoveryv1.EndpointSlice)
		if !ok {
			return nil, fmt.Errorf("index %T by service", obj)
		}
		if key := serviceOf(s); key != "" {
			return []string{key}, nil
		}
		return nil, nil
	}}
}

// serviceOf is the key of the service that a slice belongs to, "" if none.
func serviceOf(s *discoveryv1.EndpointSlice) string {
	name := s.Labels[discoveryv1.LabelServiceName]
	if name == "" {
		return ""
	}
	return s.Namespace + "/" + name
}

func hasAddress(p *corev1.Pod) bool {
	done := p.Status.Phase == corev1.PodSucceeded || p.Status.Phase == corev1.PodFailed
	return !p.Spec.HostNetwork && !done
}
