// SPDX-License-Identifier: Apache-2.0

package image

import (
	"bytes"
	"strings"
	"testing"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/containerd"
)

func filled() *index {
	x := newIndex()
	for _, name := range []string{"docker.io/library/a:1", "sha256:" + strings.Repeat("a", 64), "weird name", ""} {
		x.put(containerd.ImageRecord{Name: name, Target: ocispec.Descriptor{Digest: digest.FromString(name)}},
			&containerd.ImageInfo{ConfigDigest: digest.FromString("config" + name), Config: ocispec.Image{Config: ocispec.ImageConfig{User: name}}})
	}
	return x
}

// FuzzLookup: no reference of a client or name of another tool upsets the index.
func FuzzLookup(f *testing.F) {
	for _, s := range []string{"a:1", "a", "sha256:", "sha256:aa", "", "a@sha256:" + strings.Repeat("0", 64), "\x00", "A", ":", "@"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, ref string) {
		x := filled()
		if img, err := x.lookup(ref); (img == nil) == (err == nil) {
			t.Errorf("%q: %v, %v", ref, img, err)
		}
		x.put(containerd.ImageRecord{Name: ref, Target: ocispec.Descriptor{Digest: digest.FromString("x")}},
			&containerd.ImageInfo{ConfigDigest: digest.FromString("y"), Config: ocispec.Image{Config: ocispec.ImageConfig{User: ref}}})
		if got, err := x.lookup(digest.FromString("y").String()); err != nil || got.CRI().Id != got.ID {
			t.Errorf("%q: %v", ref, err)
		}
		x.drop(ref)
		if _, err := x.lookup(digest.FromString("y").String()); err == nil {
			t.Errorf("%q stayed", ref)
		}
	})
}

// FuzzAuth: credentials of any content neither panic nor leave their host, and
// a bearer token cannot break out of its line in hosts.toml.
func FuzzAuth(f *testing.F) {
	f.Add("user", "pass", "dTpw", "https://h/v2", "token", []byte("[header]\n"))
	f.Add("", "", "%", "h", "a\"b", []byte("server = \"x\"\n[host.\"y\"]\n"))
	f.Fuzz(func(t *testing.T, user, pass, auth, server, token string, text []byte) {
		c, err := parseAuth(&runtimeapi.AuthConfig{Username: user, Password: pass, Auth: auth, ServerAddress: server, RegistryToken: token})
		if err != nil {
			return
		}
		if u, s, _ := c.forHost("elsewhere.example"); c.server != "" && c.server != "elsewhere.example" && u+s != "" {
			t.Errorf("%q, %q sent elsewhere", u, s)
		}
		if c.bearer == "" {
			return
		}
		with := withToken(text, c.bearer)
		if n := bytes.Count(with, []byte("Authorization = [\"Bearer "+c.bearer+"\"]\n")); n < 1 {
			t.Errorf("token in %q: %d times", with, n)
		}
	})
}
