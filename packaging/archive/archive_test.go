// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

func someFiles() []File {
	return []File{
		{Path: "/usr/bin/tool", Mode: 0o755, Data: []byte("program")},
		{Path: "/etc/tool/config.yaml", Data: []byte("a: b\n")},
	}
}

func someDeb() Deb {
	return Deb{
		Name: "tool", Version: "1.0+git.1", Architecture: "amd64", Maintainer: "A <a@b.c>", Section: "admin",
		Recommends: "runc", Summary: "a tool", Description: "first\n\nthird", Conffiles: []string{"/etc/tool/config.yaml"},
		Scripts: map[string]string{"postinst": "#!/bin/sh\nexit 0\n"}, Files: someFiles(), Time: time.Unix(1700000000, 0),
	}
}

// dpkg itself says whether it is a package.
func TestDeb(t *testing.T) {
	data, err := someDeb().Write()
	if err != nil {
		t.Fatal(err)
	}
	again, err := someDeb().Write()
	if err != nil || !bytes.Equal(data, again) {
		t.Errorf("the same package twice differs: %v", err)
	}
	path, out := filepath.Join(t.TempDir(), "tool.deb"), t.TempDir()
	if err := os.WriteFile(path, data, 0o644); err != nil {
		t.Fatal(err)
	}
	dpkg := func(args ...string) string {
		t.Helper()
		text, err := exec.CommandContext(t.Context(), "dpkg-deb", args...).CombinedOutput()
		if err != nil {
			t.Fatalf("dpkg-deb %v: %v\n%s", args, err, text)
		}
		return string(text)
	}
	for field, want := range map[string]string{
		"Package": "tool", "Version": "1.0+git.1", "Recommends": "runc", "Installed-Size": "1", "Description": "a tool\n first\n .\n third",
	} {
		if got := strings.TrimSpace(dpkg("-f", path, field)); got != want {
			t.Errorf("%s: %q, want %q", field, got, want)
		}
	}
	dpkg("-x", path, out)
	dpkg("-e", path, filepath.Join(out, "DEBIAN"))
	info, err := os.Stat(filepath.Join(out, "usr/bin/tool"))
	if err != nil || info.Mode().Perm() != 0o755 || info.ModTime().Unix() != 1700000000 {
		t.Errorf("program: %v, %v", info, err)
	}
	for name, want := range map[string]string{
		"etc/tool/config.yaml": "a: b\n", "DEBIAN/conffiles": "/etc/tool/config.yaml\n",
		"DEBIAN/md5sums": "41c9bf165385ea3b3a520d14e5957cfc  etc/tool/config.yaml\n",
	} {
		got, err := os.ReadFile(filepath.Join(out, name))
		if err != nil || !strings.Contains(string(got), want) {
			t.Errorf("%s: %q, %v", name, got, err)
		}
	}
}

func TestDebFaults(t *testing.T) {
	for want, change := range map[string]func(*Deb){
		"package name":       func(d *Deb) { d.Name = "Tool" },
		"package version":    func(d *Deb) { d.Version = "v1" },
		"architecture":       func(d *Deb) { d.Architecture = "" },
		"conffile /etc/none": func(d *Deb) { d.Conffiles = []string{"/etc/none"} },
		"not a clean":        func(d *Deb) { d.Files[0].Path = "/usr/../bin" },
		"it is there twice":  func(d *Deb) { d.Files = append(d.Files, d.Files[0]) },
	} {
		d := someDeb()
		change(&d)
		if _, err := d.Write(); err == nil || !strings.Contains(err.Error(), want) {
			t.Errorf("%s: %v", want, err)
		}
	}
}

func TestImage(t *testing.T) {
	img := Image{
		Ref: "example.com/tool:v1", Architecture: "amd64", Entrypoint: []string{"/usr/bin/tool"},
		Files: someFiles(), Time: time.Unix(1700000000, 0).UTC(),
	}
	data, err := img.Write()
	if err != nil {
		t.Fatal(err)
	}
	if again, err := img.Write(); err != nil || !bytes.Equal(data, again) {
		t.Errorf("the same image twice differs: %v", err)
	}
	files := map[string][]byte{}
	for r := tar.NewReader(bytes.NewReader(data)); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			t.Fatal(err)
		}
		if files[h.Name], err = io.ReadAll(r); err != nil {
			t.Fatal(err)
		}
	}
	blob := func(d ociv1.Descriptor, into any) {
		t.Helper()
		data := files["blobs/sha256/"+d.Digest.Encoded()]
		if digest.FromBytes(data) != d.Digest || int64(len(data)) != d.Size {
			t.Fatalf("blob %s is not what its name says", d.Digest)
		}
		if into != nil {
			if err := json.Unmarshal(data, into); err != nil {
				t.Fatal(err)
			}
		}
	}
	var index ociv1.Index
	if err := json.Unmarshal(files["index.json"], &index); err != nil {
		t.Fatal(err)
	}
	var manifest ociv1.Manifest
	blob(index.Manifests[0], &manifest)
	var config ociv1.Image
	blob(manifest.Config, &config)
	blob(manifest.Layers[0], nil)
	if index.Manifests[0].Annotations["io.containerd.image.name"] != img.Ref || config.Config.Entrypoint[0] != "/usr/bin/tool" {
		t.Errorf("index %+v, config %+v", index, config)
	}
}
