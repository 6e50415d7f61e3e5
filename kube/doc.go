// SPDX-License-Identifier: Apache-2.0

// Package kube is the only watcher of the API server. It turns the objects
// it sees (the own Node, the other Nodes, Services with their EndpointSlices,
// Pods, Namespaces, NetworkPolicies) into calls on the sinks that it declares,
// and takes the same objects from a directory of manifests, so that all of
// the agent works without an API server.
//
// It promises: the first thing a sink hears that may prune anything is the
// complete state; after it come increments, each key at most once per batch
// and always with its newest state; a batch that a sink refuses is offered
// again until it is taken; a source that disappears changes nothing.
package kube
