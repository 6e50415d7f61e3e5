// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"encoding/json"
	"os"
	"path/filepath"
	"syscall"
	"testing"

	"github.com/containerd/errdefs"
)

// kill ends containerd as a crash would; its supervisor starts another.
func (n *node) kill(t *testing.T) {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(filepath.Dir(n.socket), "sup", "containerd.json"))
	if err != nil {
		t.Fatal(err)
	}
	var rec struct{ PID int }
	if err := json.Unmarshal(b, &rec); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Kill(rec.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
}

// TestRootContainerdRestarts: reads go on while containerd is away, and what
// others change afterwards shows again.
func TestRootContainerdRestarts(t *testing.T) {
	n, r := newNode(t), newRegistry(t)
	img := n.pulled(t, r, "app:1", 1)
	n.kill(t)
	n.expectList(t, img.id)
	fresh := r.push(t, "app:2", 2, "", 100)
	eventually(t, "a pull to succeed", func() bool {
		_, err := n.images.PullImage(t.Context(), pullRequest(fresh.ref, nil))
		if err != nil && !errdefs.IsUnavailable(err) {
			t.Logf("meanwhile: %v", err)
		}
		return err == nil
	})
	n.ctr(t, "images", "tag", img.ref, "docker.io/library/alias:1")
	eventually(t, "the tag", func() bool { return n.has(t, "alias:1") })
	n.expectList(t, img.id, fresh.id)
}

// TestRootPullSurvivesContainerd: containerd ends in the middle of a pull, and
// the same call succeeds when it is back.
func TestRootPullSurvivesContainerd(t *testing.T) {
	n, r := newNode(t), newRegistry(t)
	img := r.push(t, "app:1", 1, "", 100<<10)
	r.block()
	done := make(chan error, 1)
	go func() {
		_, err := n.images.PullImage(t.Context(), pullRequest(img.ref, nil))
		done <- err
	}()
	eventually(t, "the layer's request", func() bool { return len(r.seen("/blobs/"+img.layers[0].String())) > 0 })
	n.kill(t)
	r.release()
	if err := <-done; err != nil {
		t.Error(err)
	}
	n.expectList(t, img.id)
}
