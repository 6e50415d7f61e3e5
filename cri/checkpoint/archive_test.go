// SPDX-License-Identifier: Apache-2.0

package checkpoint

import (
	"archive/tar"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

func write(t *testing.T, dir, name, text string) {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestArchive(t *testing.T) {
	dir, out := t.TempDir(), t.TempDir()
	write(t, dir, Config, `{"id":"abc","name":"c","rootfsImageName":"busybox:1"}`)
	write(t, dir, Images+"/core-1.img", "core")
	write(t, dir, RootFSDiff, "diff")
	write(t, dir, Log, "line")
	location := filepath.Join(out, "c.tar")
	if err := Write(t.Context(), location, dir); err != nil {
		t.Fatal(err)
	}
	if err := Write(t.Context(), location, dir); !errdefs.IsAlreadyExists(err) {
		t.Errorf("written over: %v", err)
	}
	for _, from := range []string{location, dir} {
		c, err := ReadConfig(from)
		if err != nil || c.ID != "abc" || c.RootfsImageName != "busybox:1" {
			t.Errorf("%s: %v, %v", from, c, err)
		}
	}
	back := t.TempDir()
	if err := Unpack(t.Context(), location, back); err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]string{Images + "/core-1.img": "core", RootFSDiff: "diff"} {
		if b, err := os.ReadFile(filepath.Join(back, name)); err != nil || string(b) != want {
			t.Errorf("%s: %q, %v", name, b, err)
		}
	}
	if _, err := os.Stat(filepath.Join(back, Log)); err == nil {
		t.Error("the log is not needed for a restore")
	}
}

// TestStrangers unpacks what somebody else made.
func TestStrangers(t *testing.T) {
	location := filepath.Join(t.TempDir(), "evil.tar")
	f, err := os.Create(location)
	if err != nil {
		t.Fatal(err)
	}
	w := tar.NewWriter(f)
	for _, h := range []tar.Header{
		{Name: "../escape", Typeflag: tar.TypeReg},
		{Name: "/abs", Typeflag: tar.TypeReg},
		{Name: "checkpoint/../../escape", Typeflag: tar.TypeReg},
		{Name: "checkpoint/deep/x", Typeflag: tar.TypeReg},
		{Name: "checkpoint/link", Typeflag: tar.TypeSymlink, Linkname: "/etc/passwd"},
		{Name: "other", Typeflag: tar.TypeReg},
		{Name: "checkpoint/a.img", Typeflag: tar.TypeReg},
	} {
		if err := w.WriteHeader(&h); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.Close(); err != nil {
		t.Fatal(err)
	}
	if err := f.Close(); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := Unpack(t.Context(), location, filepath.Clean(dir)); err != nil {
		t.Fatal(err)
	}
	var got []string
	err = filepath.WalkDir(dir, func(p string, e os.DirEntry, err error) error {
		if !e.IsDir() {
			got = append(got, strings.TrimPrefix(p, dir+"/"))
		}
		return err
	})
	if err != nil || strings.Join(got, " ") != "checkpoint/a.img" {
		t.Errorf("got %v, %v", got, err)
	}
	if _, err := ReadConfig(location); !errdefs.IsInvalidArgument(err) {
		t.Errorf("got %v", err)
	}
	if _, err := ReadConfig(location + ".absent"); !errdefs.IsNotFound(err) {
		t.Errorf("got %v", err)
	}
}
