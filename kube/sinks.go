// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"net/netip"

	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/dataplane"
	"github.com/nodeagent/nodeagent/dataplane/policy"
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
	ReplacePolicyObjects(ctx context.Context, all policy.Objects) error
	// UpdatePolicyObjects gives what changed and the names of what is gone.
	UpdatePolicyObjects(ctx context.Context, changed policy.Objects, gone policy.Names) error
}
