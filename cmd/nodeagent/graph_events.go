// SPDX-License-Identifier: Apache-2.0

package main

import (
	"context"
	"fmt"

	"github.com/nodeagent/nodeagent/kube"
)

// addEvents adds the writer of events about the node, when there is an API
// server to write them to.
func (g *graph) addEvents(context.Context) error {
	if g.kube == nil {
		return nil
	}
	g.events = g.kube.NodeEvents(g.cfg.Node.Name)
	g.add("events", g.events.Start, g.events.Stop)
	return nil
}

// tellGrown says on the Node that a map was made larger.
func (g *graph) tellGrown(name string, from, to uint32) {
	if g.events == nil {
		return
	}
	g.events.Warn(kube.ReasonMapGrown, fmt.Sprintf(
		"the data path's map %s was full with %d entries and has %d now; raise dataplane.maps to have it so from the start", name, from, to))
}
