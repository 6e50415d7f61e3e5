// SPDX-License-Identifier: Apache-2.0

package cri

import (
	"log/slog"
	"testing"
)

// TestUserNamespacesReported: a handler has the feature when the OCI runtime and
// the machine have it.
func TestUserNamespacesReported(t *testing.T) {
	h := newHandlers(Default(), slog.New(slog.DiscardHandler))
	for name, k := range h.now.Load().known {
		k.Spec.UserNamespaces, k.Spec.IDMapMounts = true, true
		h.now.Load().known[name] = k
	}
	for _, machine := range []bool{true, false} {
		for _, r := range h.cri(machine) {
			if r.GetFeatures().GetUserNamespaces() != machine {
				t.Errorf("machine %t, handler %q: %v", machine, r.GetName(), r.GetFeatures())
			}
		}
	}
}
