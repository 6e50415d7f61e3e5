// SPDX-License-Identifier: Apache-2.0

package main

import (
	"io/fs"
	"os"
	"path/filepath"
	"testing"
)

// TestMakePassable: a new directory and one that was made too tight.
func TestMakePassable(t *testing.T) {
	dir := filepath.Join(t.TempDir(), "a", "b")
	for _, before := range []fs.FileMode{0, 0o700, 0o755} {
		if before != 0 {
			if err := os.Chmod(dir, before); err != nil {
				t.Fatal(err)
			}
		}
		if err := makePassable(dir); err != nil {
			t.Fatal(err)
		}
		st, err := os.Stat(dir)
		if err != nil {
			t.Fatal(err)
		}
		if got, want := st.Mode().Perm(), max(before, 0o700)|0o011; got != want {
			t.Errorf("%o became %o, want %o", before, got, want)
		}
	}
	file := filepath.Join(dir, "file")
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := makePassable(file); err == nil {
		t.Error("a file is no directory")
	}
}
