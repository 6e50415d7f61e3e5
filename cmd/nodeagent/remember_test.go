// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"net/netip"
	"reflect"
	"testing"

	"github.com/nodeagent/nodeagent/dataplane"
)

// heard keeps what it was told last.
type heard struct {
	node  dataplane.Node
	peers []dataplane.Peer
}

func (h *heard) SetNode(_ context.Context, n dataplane.Node) error {
	h.node = n
	return nil
}

func (h *heard) UpdatePeers(_ context.Context, p []dataplane.Peer) error {
	h.peers = p
	return nil
}

// TestRestartWithoutAPIServer: what the API server said last is there again,
// and configuration comes before it.
func TestRestartWithoutAPIServer(t *testing.T) {
	db, err := openState(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	defer db.Close() //nolint:errcheck // the test is over
	base := dataplane.Node{Name: "a", Masquerade: true}
	sink := &heard{}
	r := &rememberer{db: db, node: sink, peers: sink}
	if err := r.recall(t.Context(), base); err != nil || !reflect.DeepEqual(sink.node, base) || sink.peers != nil {
		t.Fatalf("first start: %+v, %v, %v", sink.node, sink.peers, err)
	}
	node := base
	node.Zone, node.Addrs = "z", []netip.Addr{netip.MustParseAddr("192.0.2.1")}
	node.PodCIDRs = []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}
	peers := []dataplane.Peer{{Name: "b", Addrs: node.Addrs, PodCIDRs: node.PodCIDRs}}
	if err := r.SetNode(t.Context(), node); err != nil {
		t.Fatal(err)
	}
	if err := r.UpdatePeers(t.Context(), peers); err != nil {
		t.Fatal(err)
	}
	again := &heard{}
	r = &rememberer{db: db, node: again, peers: again}
	if err := r.recall(t.Context(), base); err != nil || !reflect.DeepEqual(again.node, node) || !reflect.DeepEqual(again.peers, peers) {
		t.Errorf("restart: %+v, %+v, %v", again.node, again.peers, err)
	}
	base.Addrs = []netip.Addr{netip.MustParseAddr("192.0.2.9")}
	base.Masquerade = false
	node.Addrs, node.Masquerade = base.Addrs, false
	if err := r.recall(t.Context(), base); err != nil || !reflect.DeepEqual(again.node, node) {
		t.Errorf("restart with another configuration: %+v, %v", again.node, err)
	}
	base.Name = "renamed"
	if err := r.recall(t.Context(), base); err != nil || !reflect.DeepEqual(again.node, base) {
		t.Errorf("another node: %+v, %v", again.node, err)
	}
}
