// SPDX-License-Identifier: Apache-2.0

package image

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/nodeagent/nodeagent/csi/backend"
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
