// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/cri/image"
)

const unsynced = "nodeagent.dev/unsynced"

// find returns the newest file of a name below containerd's root; those of
// removed snapshots wait there for containerd's collector.
func (n *node) find(t *testing.T, name string) string {
	t.Helper()
	var found string
	var newest time.Time
	err := filepath.WalkDir(filepath.Join(filepath.Dir(n.socket), "root"), func(path string, d fs.DirEntry, err error) error {
		if err != nil || d.Name() != name {
			return nil //nolint:nilerr // the collector removes while we look
		}
		var st unix.Stat_t
		if unix.Stat(path, &st) == nil && (found == "" || time.Unix(st.Ctim.Unix()).After(newest)) {
			found, newest = path, time.Unix(st.Ctim.Unix())
		}
		return nil
	})
	if err != nil || found == "" {
		t.Fatalf("%s: %v", name, err)
	}
	return found
}

// size is that of file0 as a container sees it.
func (n *node) size(t *testing.T, ref string) int64 {
	t.Helper()
	v, err := n.images.MountVolume(t.Context(), image.VolumeRequest{Owner: "pod", Ref: ref})
	if err != nil {
		t.Fatal(err)
	}
	st, err := os.Stat(filepath.Join(v.Path, "file0"))
	if err != nil {
		t.Fatal(err)
	}
	if err := n.images.UnmountVolumes(t.Context(), "pod"); err != nil {
		t.Fatal(err)
	}
	return st.Size()
}

// mark makes an image look as if the machine went down after its pull.
func (n *node) mark(t *testing.T, ref string) {
	t.Helper()
	eventually(t, "the sync", func() bool { return n.label(t, ref) == "" })
	rec, err := n.ctrd.ImageRecord(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	rec.Labels = map[string]string{unsynced: "an-earlier-boot"}
	if err := n.ctrd.PutImageRecord(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
}

func (n *node) label(t *testing.T, ref string) string {
	t.Helper()
	rec, err := n.ctrd.ImageRecord(t.Context(), ref)
	if err != nil {
		t.Fatal(err)
	}
	return rec.Labels[unsynced]
}

// TestRootHealLayers: files that a power loss emptied are whole after the next
// start; images that were on the disk are not touched.
func TestRootHealLayers(t *testing.T) {
	n, r := newNode(t), newRegistry(t)
	img := n.pulled(t, r, "app:1", 1)
	n.mark(t, img.ref)
	file := n.find(t, "file0")
	if err := os.Truncate(file, 0); err != nil {
		t.Fatal(err)
	}
	before := len(r.seen("/"))
	n.start(t)
	if got := n.size(t, img.ref); got != 4096 {
		t.Errorf("%d bytes", got)
	}
	n.expectList(t, img.id)
	eventually(t, "the sync", func() bool { return n.label(t, img.ref) == "" })
	if len(r.seen("/")) != before {
		t.Error("the registry was asked")
	}
	if err := os.Truncate(n.find(t, "file0"), 1); err != nil {
		t.Fatal(err)
	}
	n.start(t)
	if got := n.size(t, img.ref); got != 1 {
		t.Errorf("a synced image was unpacked again: %d bytes", got)
	}
}

// TestRootHealBlobs: an image with a damaged blob is gone until it is pulled
// again; the pull fetches only that blob.
func TestRootHealBlobs(t *testing.T) {
	n, r := newNode(t), newRegistry(t)
	for i, blob := range []func(pushed) digest.Digest{
		func(p pushed) digest.Digest { return p.layers[0] },
		func(p pushed) digest.Digest { return digest.Digest(p.id) },
		func(p pushed) digest.Digest { return p.manifest },
	} {
		img := n.pulled(t, r, "app:1", uint64(i))
		n.mark(t, img.ref)
		if err := os.Truncate(n.find(t, blob(img).Encoded()), 3); err != nil {
			t.Fatal(err)
		}
		n.start(t)
		if n.has(t, img.id) || n.has(t, img.ref) {
			t.Errorf("%d: the damaged image is shown", i)
		}
		if _, err := n.images.PullImage(t.Context(), pullRequest(img.ref, nil)); err != nil {
			t.Errorf("%d: %v", i, err)
			continue
		}
		if got := n.size(t, img.ref); got != 4096 {
			t.Errorf("%d: %d bytes", i, got)
		}
	}
}
