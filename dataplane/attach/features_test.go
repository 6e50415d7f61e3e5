// SPDX-License-Identifier: Apache-2.0

package attach

import (
	"errors"
	"testing"
)

// TestRootFeatures: a kernel that loads the programs has what they need.
func TestRootFeatures(t *testing.T) {
	newBPFFS(t)
	seen := map[string]bool{}
	for _, f := range Features() {
		if f.Lack == "" || seen[f.Name] {
			t.Errorf("%s: nobody knows what its lack costs, or it is there twice", f.Name)
		}
		seen[f.Name] = true
		err := f.Probe()
		if err != nil && (f.Needed || !errors.Is(err, ErrLacking)) {
			t.Errorf("%s: %v", f.Name, err)
		}
	}
}
