// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"net/netip"

	corev1 "k8s.io/api/core/v1"
	networkingv1 "k8s.io/api/networking/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane"
	"github.com/nodeagent/nodeagent/dataplane/service"
)

// A sink is called from one goroutine at a time. After an error the same keys
// are offered again, with whatever their newest state is by then, at growing
// intervals; other keys are not held up. Objects are shared with the watcher's
// cache: read, never write.

// NodeSink is told of the node that the agent runs on.
type NodeSink interface {
	// SetNode is called once the own Node object is known and whenever
	// something in it changes that matters to a data path.
	SetNode(ctx context.Context, n dataplane.Node) error
}

// PodCIDRSink is told of the ranges that the cluster gave this node.
type PodCIDRSink interface {
	// SetPodCIDRs is called with at least one range: a Node without ranges
	// has not been given them yet, and never takes away the ones it had.
	SetPodCIDRs(ctx context.Context, cidrs []netip.Prefix) error
}

// PeerSink is told of the other nodes.
type PeerSink interface {
	// UpdatePeers gives all peers; a peer that is not among them is gone. It is
	// called only once all of them are known.
	UpdatePeers(ctx context.Context, peers []dataplane.Peer) error
}

// ServiceSink is told of Services, each with the EndpointSlices that name it.
// Services that kube-proxy leaves alone (headless ones, and those with the
// service-proxy-name label) are not delivered.
type ServiceSink interface {
	// UpdateServices gives new and changed services, each whole. An error may
	// be about some of them only; the others count as taken.
	UpdateServices(ctx context.Context, objs []service.Object) error
	// DeleteServices names services that are gone, or never were.
	DeleteServices(ctx context.Context, names []types.NamespacedName) error
	// PruneServices names all services there are. It is called when the state
	// is complete for the first time, after UpdateServices.
	PruneServices(ctx context.Context, keep []types.NamespacedName) error
}

// PolicySink is told of everything that network policy depends on.
type PolicySink interface {
	// ReplacePolicyObjects gives all objects; one that is not among them is gone.
	ReplacePolicyObjects(ctx context.Context, all PolicyObjects) error
	// UpdatePolicyObjects gives what changed and the names of what is gone.
	UpdatePolicyObjects(ctx context.Context, changed PolicyObjects, gone PolicyNames) error
}

// PolicyObjects are objects that network policy depends on. Pods on the host
// network and finished pods are not among them: they have no address of
// their own.
type PolicyObjects struct {
	Namespaces []*corev1.Namespace
	Pods       []*corev1.Pod
	Policies   []*networkingv1.NetworkPolicy
}

// PolicyNames are the names of PolicyObjects.
type PolicyNames struct {
	Namespaces []string
	Pods       []types.NamespacedName
	Policies   []types.NamespacedName
}
