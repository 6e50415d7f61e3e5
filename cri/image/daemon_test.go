// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
)

// configured starts a managed containerd that imports further configuration of the
// administrator's own, as one has who verifies or encrypts images, and the service on it.
func configured(t *testing.T, extra string) *node {
	t.Helper()
	path := filepath.Join(t.TempDir(), "extra.toml")
	if err := os.WriteFile(path, []byte("version = 4\n"+extra), 0o600); err != nil {
		t.Fatal(err)
	}
	return nodeOn(t, startContainerd(t, func(c *containerd.Config) { c.Imports = []string{path} }))
}

func script(t *testing.T, dir, name, text string) string {
	t.Helper()
	path := filepath.Join(dir, name)
	if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil { //nolint:gosec // a program
		t.Fatal(err)
	}
	return path
}

// TestRootVerifier: what an image verifier plugin refuses is not pulled, and
// the kubelet is told in its own words.
func TestRootVerifier(t *testing.T) {
	bin := t.TempDir()
	script(t, bin, "policy", `case "$*" in *refused*) echo "not signed by us"; exit 1;; esac`+"\n")
	n := configured(t, fmt.Sprintf("[plugins.\"io.containerd.image-verifier.v1.bindir\"]\n  bin_dir = %q\n", bin))
	r := newRegistry(t)
	good, bad := r.push(t, "good:1", 1, "", 100), r.push(t, "refused:1", 2, "", 100)
	if _, err := n.images.PullImage(t.Context(), pullRequest(good.ref, nil)); err != nil {
		t.Error(err)
	}
	_, err := n.images.PullImage(t.Context(), pullRequest(bad.ref, nil))
	if err == nil || !strings.HasPrefix(err.Error(), "SignatureValidationFailed: ") || !strings.Contains(err.Error(), "not signed by us") {
		t.Errorf("%v", err)
	}
	n.expectList(t, good.id)
	if len(r.seen("/blobs/"+bad.layers[0].String())) > 0 {
		t.Error("layers of the refused image were fetched")
	}
}

// TestRootEncrypted: encrypted layers go through the stream processor that
// containerd is configured with; imgcrypt's is there by default and only needs
// its program, whose place this one takes. Its cipher is eight bytes in front.
func TestRootEncrypted(t *testing.T) {
	const encrypted = ocispec.MediaTypeImageLayerGzip + "+encrypted"
	decoder := script(t, t.TempDir(), "decoder", "exec tail -c +9\n")
	n := configured(t, fmt.Sprintf(`[stream_processors."io.containerd.ocicrypt.decoder.v1.tar.gzip"]
  accepts = [%q]
  returns = %q
  path = %q
`, encrypted, ocispec.MediaTypeImageLayerGzip, decoder))
	r := newRegistry(t)
	plain, packed := layer(t, 1, "file0", 4096)
	secret := r.put(append([]byte("8 bytes!"), packed...), encrypted)
	config := r.put(marshal(t, ocispec.Image{
		Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"},
		RootFS:   ocispec.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(plain)}},
	}), ocispec.MediaTypeImageConfig)
	man := ocispec.Manifest{MediaType: ocispec.MediaTypeImageManifest, Config: config, Layers: []ocispec.Descriptor{secret}}
	man.SchemaVersion = 2
	desc := r.put(marshal(t, man), ocispec.MediaTypeImageManifest)
	r.set(func(r *registry) { r.tags["secret:1"] = desc.Digest })
	ref := r.host + "/secret:1"
	if _, err := n.images.PullImage(t.Context(), pullRequest(ref, nil)); err != nil {
		t.Fatal(err)
	}
	if got := n.size(t, ref); got != 4096 {
		t.Errorf("%d bytes", got)
	}
}
