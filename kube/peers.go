// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"log/slog"
	"maps"
	"reflect"
	"slices"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/client-go/tools/cache"

	"github.com/nodeagent/nodeagent/dataplane"
)

// peerTopic tells the sink which other nodes there are. Most changes of a
// Node are heartbeats; the sink hears only of those that change a peer.
type peerTopic struct {
	self  string
	nodes func() cache.Indexer
	sink  PeerSink
	log   *slog.Logger

	// sent is what the sink took, nil before; known is the newest right state
	// of each peer. Only the topic's goroutine touches them.
	sent, known map[string]dataplane.Peer
}

func (t *peerTopic) replace(ctx context.Context) ([]string, bool, error) {
	keys := t.nodes().ListKeys()
	err := t.update(ctx, keys)
	return keys, err == nil, err
}

func (t *peerTopic) update(ctx context.Context, keys []string) error {
	for _, name := range keys {
		if p, ok := t.peer(ctx, name); ok {
			t.known[name] = p
		} else {
			delete(t.known, name)
		}
	}
	if t.sent != nil && reflect.DeepEqual(t.sent, t.known) {
		return nil
	}
	all := make([]dataplane.Peer, 0, len(t.known))
	for _, name := range slices.Sorted(maps.Keys(t.known)) {
		all = append(all, t.known[name])
	}
	if err := t.sink.UpdatePeers(ctx, all); err != nil {
		return err
	}
	t.sent = maps.Clone(t.known)
	return nil
}

// peer is the node as a peer. A node without an address cannot be reached
// and is none; one whose object is broken stays what it was.
func (t *peerTopic) peer(ctx context.Context, name string) (dataplane.Peer, bool) {
	obj, ok, err := t.nodes().GetByKey(name)
	if err != nil || !ok || name == t.self {
		return dataplane.Peer{}, false
	}
	n, ok := obj.(*corev1.Node)
	if !ok {
		return dataplane.Peer{}, false
	}
	addrs, cidrs, err := nodeAddresses(n)
	if err != nil {
		t.log.WarnContext(ctx, "node object is broken, its peer stays as it was", "node", name, "err", err)
		old, known := t.known[name]
		return old, known
	}
	mode := n.Annotations[AnnotationPeerMode]
	if !slices.Contains(peerModes(), mode) {
		t.log.WarnContext(ctx, "unknown peer mode in the node's annotation, auto is used", "node", name, "mode", mode)
		mode = ""
	}
	return dataplane.Peer{Name: name, Addrs: addrs, PodCIDRs: cidrs, Mode: mode, DSR: n.Annotations[AnnotationDSR] == "true"}, len(addrs) > 0
}

// peerModes are what AnnotationPeerMode may say; "" stands for auto.
func peerModes() []string { return []string{"", "native", "vxlan", "auto"} }
