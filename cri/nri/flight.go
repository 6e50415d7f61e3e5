// SPDX-License-Identifier: Apache-2.0

package nri

import (
	"maps"

	"github.com/containerd/nri/pkg/adaptation"
)

// flight is what plugins have been told of and the records do not show yet. A
// plugin that is synchronized meanwhile gets it as part of the state.
type flight struct {
	// pods and containers are being made.
	pods       map[string]*adaptation.PodSandbox
	containers map[string]*adaptation.Container
	// starting are containers whose start has been told.
	starting map[string]bool
}

func newFlight() flight {
	return flight{
		pods: map[string]*adaptation.PodSandbox{}, containers: map[string]*adaptation.Container{}, starting: map[string]bool{},
	}
}

// change edits the flight.
func (a *Adapter) change(fn func(f *flight)) {
	a.mu.Lock()
	defer a.mu.Unlock()
	fn(&a.flight)
}

// inFlight copies the flight.
func (a *Adapter) inFlight() flight {
	a.mu.Lock()
	defer a.mu.Unlock()
	return flight{
		pods: maps.Clone(a.flight.pods), containers: maps.Clone(a.flight.containers), starting: maps.Clone(a.flight.starting),
	}
}

// landed forgets a container that is being made; false when it was not.
func (a *Adapter) landed(id string) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	_, ok := a.flight.containers[id]
	delete(a.flight.containers, id)
	return ok
}
