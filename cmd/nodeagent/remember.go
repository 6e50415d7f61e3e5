// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"

	"go.etcd.io/bbolt"

	"github.com/nodeagent/nodeagent/dataplane"
	"github.com/nodeagent/nodeagent/kube"
)

// nodesBucket of the state file holds what the API server said last of this
// node and the others.
const nodesBucket = "nodes"

// rememberer passes on what is said of nodes, and remembers it: a daemon that
// starts while the API server is away goes on with it, and takes nothing away
// that it would have to bring back. It dies with the boot.
type rememberer struct {
	db    *bbolt.DB
	node  kube.NodeSink
	peers kube.PeerSink
}

var (
	_ kube.NodeSink = (*rememberer)(nil)
	_ kube.PeerSink = (*rememberer)(nil)
)

// SetNode implements kube.NodeSink.
func (r *rememberer) SetNode(ctx context.Context, n dataplane.Node) error {
	return errors.Join(r.node.SetNode(ctx, n), r.put("self", n))
}

// UpdatePeers implements kube.PeerSink.
func (r *rememberer) UpdatePeers(ctx context.Context, peers []dataplane.Peer) error {
	return errors.Join(r.peers.UpdatePeers(ctx, peers), r.put("peers", peers))
}

func (r *rememberer) put(key string, v any) error {
	raw, err := json.Marshal(v)
	if err != nil {
		return fmt.Errorf("remember %s: %w", key, err)
	}
	err = r.db.Update(func(tx *bbolt.Tx) error {
		b, err := tx.CreateBucketIfNotExists([]byte(nodesBucket))
		if err != nil {
			return err
		}
		return b.Put([]byte(key), raw)
	})
	if err != nil {
		return fmt.Errorf("remember %s: %w", key, err)
	}
	return nil
}

// get returns false when nothing is remembered.
func (r *rememberer) get(key string, v any) (bool, error) {
	var raw []byte
	err := r.db.View(func(tx *bbolt.Tx) error {
		if b := tx.Bucket([]byte(nodesBucket)); b != nil {
			raw = append(raw, b.Get([]byte(key))...)
		}
		return nil
	})
	if err != nil || raw == nil {
		return false, err
	}
	if err := json.Unmarshal(raw, v); err != nil {
		return false, fmt.Errorf("remembered %s: %w", key, err)
	}
	return true, nil
}

// recall says what was remembered, under what the configuration says now.
func (r *rememberer) recall(ctx context.Context, base dataplane.Node) error {
	var was dataplane.Node
	known, err := r.get("self", &was)
	if err != nil {
		return err
	}
	if known && was.Name == base.Name {
		base.Zone = was.Zone
		if len(base.Addrs) == 0 {
			base.Addrs = was.Addrs
		}
		if len(base.PodCIDRs) == 0 {
			base.PodCIDRs = was.PodCIDRs
		}
	}
	if err := r.node.SetNode(ctx, base); err != nil {
		return err
	}
	var peers []dataplane.Peer
	known, err = r.get("peers", &peers)
	if err != nil || !known {
		return err
	}
	return r.peers.UpdatePeers(ctx, peers)
}
