// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
	"github.com/nodeagent/nodeagent/csi/mount/mounttest"
)

// An image that this kernel cannot mount is refused with the reason, when a volume is made of it.
func TestKernelWithoutSquashfs(t *testing.T) {
	root := t.TempDir()
	if err := os.Mkdir(filepath.Join(root, Directory), 0o700); err != nil {
		t.Fatal(err)
	}
	img := append([]byte("hsqs"), make([]byte, 8192)...)
	if err := os.WriteFile(filepath.Join(root, Directory, "a"), img, 0o600); err != nil {
		t.Fatal(err)
	}
	obj := backend.Object{ID: "vol-1", Options: map[string]string{OptionImage: "a"}}
	b := New(root)
	if err := b.Create(t.Context(), obj, nil); err != nil {
		t.Fatal(err)
	}
	b.missing = map[string]error{squashfs: errors.New("no such device")}
	err := b.Create(t.Context(), obj, nil)
	if !errors.Is(err, backend.ErrNotSupported) || !strings.Contains(err.Error(), "no such device") {
		t.Errorf("error: %v", err)
	}
}

// Where the kernel mounts erofs from devices only, as before 6.12, it gets one, which goes
// with the mount.
func TestRootErofsThroughDevice(t *testing.T) {
	mounttest.Root(t)
	root, at := t.TempDir(), t.TempDir()
	b := New(root)
	if _, err := b.Probe(t.Context()); err != nil {
		t.Fatal(err)
	}
	if left, err := os.ReadDir(root); err != nil || len(left) != 1 {
		t.Errorf("the probe left %v, %v", left, err)
	}
	makeErofs(t, filepath.Join(root, Directory, "a"), "data set")
	b.wantsDevice = true
	obj := backend.Object{ID: "vol-1", Options: map[string]string{OptionImage: "a"}}
	att, err := b.Attach(t.Context(), obj, backend.AttachOptions{Transient: true})
	if err != nil {
		t.Fatal(err)
	}
	if att.Kind != backend.Device || att.FSType != erofs {
		t.Errorf("attached as %+v", att)
	}
	err = mount.Mount(mount.FS{Type: att.FSType, Source: att.Path, Options: att.Options}, at)
	att.Release()
	if err != nil {
		t.Fatal(err)
	}
	if text, err := os.ReadFile(filepath.Join(at, "x")); err != nil || string(text) != "data set" {
		t.Errorf("the volume holds %q, %v", text, err)
	}
	attached := func() int {
		all, err := b.Attached(t.Context(), obj)
		if err != nil {
			t.Fatal(err)
		}
		return len(all)
	}
	if attached() != 1 {
		t.Error("its device is not found")
	}
	if err := mount.Unmount(at); err != nil {
		t.Fatal(err)
	}
	if attached() != 0 {
		t.Error("its device is left")
	}
}

// makeErofs makes an image with the file x.
func makeErofs(t *testing.T, img, text string) {
	t.Helper()
	tree := t.TempDir()
	if err := os.WriteFile(filepath.Join(tree, "x"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if out, err := exec.CommandContext(t.Context(), "mkfs.erofs", "--quiet", img, tree).CombinedOutput(); err != nil {
		t.Fatalf("mkfs.erofs: %v %s", err, out)
	}
}
