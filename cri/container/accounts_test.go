// SPDX-License-Identifier: Apache-2.0

package container

import (
	"errors"
	"fmt"
	"io/fs"
	"strings"
	"testing"
	"testing/fstest"
	"time"

	"github.com/containerd/containerd/v2/core/mount"
)

// countedRoot counts how often an image is looked into.
type countedRoot struct {
	fstest.MapFS
	looks int
}

func (r *countedRoot) Lstat(name string) (fs.FileInfo, error) {
	r.looks++
	return r.MapFS.Lstat(name)
}

func TestRememberedRoot(t *testing.T) {
	image := func() *countedRoot {
		return &countedRoot{MapFS: fstest.MapFS{
			"etc":        {Mode: fs.ModeDir | 0o755},
			"etc/passwd": {Data: []byte("../usr/passwd"), Mode: fs.ModeSymlink | 0o777},
			"usr/passwd": {Data: []byte("root:x:0:0:"), Mode: 0o644},
			"etc/large":  {Data: []byte(strings.Repeat("x", maxFileKnown+1)), Mode: 0o644},
		}}
	}
	var files accountFiles
	first := image()
	for name, want := range map[string]struct {
		text string
		err  error
		once bool
	}{
		"etc/passwd": {text: "root:x:0:0:", once: true},
		"etc/group":  {err: fs.ErrNotExist, once: true},
		"etc/large":  {text: strings.Repeat("x", maxFileKnown+1)},
	} {
		looks := 0
		for i := range 3 {
			got, err := fs.ReadFile(rememberedRoot{files: &files, image: "sha256:a", root: first}, name)
			if string(got) != want.text || !errors.Is(err, want.err) {
				t.Errorf("%s, time %d: %q, %v", name, i, got, err)
			}
			if i == 0 {
				looks = first.looks
			}
		}
		if again := first.looks != looks; again == want.once {
			t.Errorf("%s: the image was looked into again: %v", name, again)
		}
	}
	// What a checkpoint has changed is neither taken from memory nor remembered.
	other := image()
	other.MapFS["usr/passwd"] = &fstest.MapFile{Data: []byte("other"), Mode: 0o644}
	if got, err := fs.ReadFile(rememberedRoot{files: &files, root: other}, "etc/passwd"); string(got) != "other" || err != nil {
		t.Errorf("without a name: %q, %v", got, err)
	}
	for i := range 3 * maxImagesKnown {
		if _, err := fs.ReadFile(rememberedRoot{files: &files, image: fmt.Sprint(i), root: other}, "etc/passwd"); err != nil {
			t.Fatal(err)
		}
	}
	if n := len(files.known); n > maxImagesKnown {
		t.Errorf("%d images are remembered", n)
	}
}

func TestMountsKnown(t *testing.T) {
	var k mountsKnown
	k.put("a", []mount.Mount{{Type: "overlay"}})
	if m, ok := k.get("a"); !ok || len(m) != 1 {
		t.Errorf("got %v, %v", m, ok)
	}
	old := k.known["a"]
	old.until = time.Now().Add(-time.Nanosecond)
	k.known["old"] = old
	k.drop("a")
	for _, id := range []string{"a", "old", "other"} {
		if m, ok := k.get(id); ok {
			t.Errorf("%s: got %v", id, m)
		}
	}
}
