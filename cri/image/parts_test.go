// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"net/http"
	"testing"

	"github.com/nodeagent/nodeagent/cri/containerd"
)

// TestRootPullInParts: a large layer is fetched in pieces side by side, also from a
// registry that cuts its answers.
func TestRootPullInParts(t *testing.T) {
	n, r := nodeOn(t, startContainerd(t, func(c *containerd.Config) { c.LayerFetchBuffer = 256 << 10 })), newRegistry(t)
	img := r.push(t, "app:v1", 1, "", 2<<20)
	r.set(func(r *registry) { r.breakAfter, r.breaks = 100<<10, 3 })
	if _, err := n.images.PullImage(t.Context(), pullRequest(img.ref, nil)); err != nil {
		t.Fatal(err)
	}
	if got := len(r.seen("/blobs/")); got < 8 {
		t.Errorf("%d requests for blobs", got)
	}
	n.expectList(t, img.id)
}

// TestRootPullWithoutRanges: a registry that refuses ranges, or ignores them, is asked
// for the whole, also when it cuts that.
func TestRootPullWithoutRanges(t *testing.T) {
	cfg := startContainerd(t, func(c *containerd.Config) { c.LayerFetchBuffer = 256 << 10 })
	for _, ranges := range []int{http.StatusRequestedRangeNotSatisfiable, http.StatusOK} {
		n, r := nodeOn(t, cfg), newRegistry(t)
		img := r.push(t, "app:v1", uint64(ranges), "", 1<<20, 5000) //nolint:gosec // a status
		r.set(func(r *registry) { r.ranges, r.breakAfter, r.breaks = ranges, 300<<10, 1 })
		resp, err := n.images.PullImage(t.Context(), pullRequest(img.ref, nil))
		if err != nil || resp.GetImageRef() != img.id {
			t.Errorf("ranges are answered by %d: %v, %v", ranges, resp, err)
		}
	}
}

// TestRootPullMetrics: a pull that runs shows how far it is, and one that has ended does not.
func TestRootPullMetrics(t *testing.T) {
	n, r := newNode(t), newRegistry(t)
	img := r.push(t, "app:v1", 1, "", 100<<10)
	r.block()
	done := make(chan error, 1)
	go func() {
		_, err := n.images.PullImage(t.Context(), pullRequest(img.ref, nil))
		done <- err
	}()
	size := func() float64 {
		families, err := n.metrics.Gather()
		if err != nil {
			t.Fatal(err)
		}
		for _, f := range families {
			if f.GetName() != "nodeagent_image_pull_size_bytes" {
				continue
			}
			for _, m := range f.GetMetric() {
				if m.GetLabel()[0].GetValue() == img.ref {
					return m.GetGauge().GetValue()
				}
			}
		}
		return 0
	}
	eventually(t, "the size of the pull", func() bool { return size() >= 100<<10 })
	r.release()
	if err := <-done; err != nil {
		t.Fatal(err)
	}
	if size() != 0 {
		t.Error("the ended pull is still shown")
	}
}
