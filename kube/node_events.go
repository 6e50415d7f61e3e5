// SPDX-License-Identifier: Apache-2.0

package kube

import (
	"context"
	"sync"

	corev1 "k8s.io/api/core/v1"
	"k8s.io/apimachinery/pkg/types"

	"github.com/nodeagent/nodeagent/kube/apiclient"
)

// ReasonMapGrown is the reason of the event that says that a map of the data
// path was made larger.
const ReasonMapGrown = "DataPathMapGrown"

// NodeEvents writes events about the node that the agent runs on.
type NodeEvents struct {
	recorder *apiclient.Recorder
	node     corev1.ObjectReference
	cancel   context.CancelFunc
	wg       sync.WaitGroup
}

// NodeEvents makes a writer of events about a node; it writes between Start and Stop.
// The Node is named as the kubelet does it, by its name in place of the UID:
// kubectl describe finds both, and the object need not be known yet.
func (c *Client) NodeEvents(node string) *NodeEvents {
	return &NodeEvents{
		recorder: c.NewRecorder(corev1.EventSource{Component: "nodeagent", Host: node}),
		node:     corev1.ObjectReference{APIVersion: "v1", Kind: "Node", Name: node, UID: types.UID(node)},
	}
}

// Start lets events be written.
func (e *NodeEvents) Start(ctx context.Context) error {
	run, cancel := context.WithCancel(context.WithoutCancel(ctx))
	e.cancel = cancel
	e.wg.Go(func() { e.recorder.Run(run) })
	return nil
}

// Stop ends that; what was not written yet is lost.
func (e *NodeEvents) Stop(context.Context) error {
	if e.cancel != nil {
		e.cancel()
	}
	e.wg.Wait()
	return nil
}

// Warn notes that somebody should look; it never waits.
func (e *NodeEvents) Warn(reason, text string) {
	e.recorder.EventOn(e.node, corev1.EventTypeWarning, reason, text)
}
