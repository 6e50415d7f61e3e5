// SPDX-License-Identifier: Apache-2.0

package directory_test

import (
	"context"
	"errors"
	"testing"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/backend/directory"
)

// A pool without project quota is refused with the reason; one with it, on a
// kernel that has it, can make, limit and remove a directory.
func TestProbeSaysWhy(t *testing.T) {
	ctx := context.Background()
	dir := t.TempDir()
	b := directory.New(dir)
	_, err := b.Probe(ctx)
	if err == nil {
		t.Log("this machine has project quota")
		return
	}
	if !errors.Is(err, backend.ErrNotSupported) {
		t.Errorf("probe: %v", err)
	}
	o := backend.Object{ID: "vol-a", Dir: dir, Bytes: 1 << 20}
	if err := b.Check(ctx, o); !errors.Is(err, backend.ErrMissing) {
		t.Errorf("check of the absent: %v", err)
	}
	if err := b.Destroy(ctx, o); err != nil {
		t.Errorf("destroy of the absent: %v", err)
	}
}
