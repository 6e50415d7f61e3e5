// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"

	"github.com/nodeagent/nodeagent/cri/image"
)

func TestRootPullAndRead(t *testing.T) {
	n, r := newNode(t), newRegistry(t)
	img := r.push(t, "lib/app:v1", 1, "1000:2000", 4096, 100)
	resp, err := n.images.PullImage(t.Context(), pullRequest(img.ref, nil))
	if err != nil {
		t.Fatal(err)
	}
	if resp.ImageRef != img.id {
		t.Fatalf("image_ref %s, want the id %s", resp.ImageRef, img.id)
	}
	byDigest := r.host + "/lib/app@" + img.manifest.String()
	for _, ref := range []string{
		img.ref, img.id, img.id[7:], img.id[7:20], byDigest, img.ref + "@" + img.manifest.String(), img.manifest.String(),
	} {
		got, err := n.images.Resolve(t.Context(), ref)
		if err != nil || got.ID != img.id {
			t.Errorf("Resolve(%q) = %v, %v", ref, got, err)
		}
	}
	n.expectStatus(t, img, byDigest)
	n.expectList(t, img.id)
	p := n.images.Pulls()
	if len(p) != 1 || p[0].Stage != image.StageDone || p[0].Percent != 100 || p[0].Attempts != 1 {
		t.Errorf("progress %+v", p)
	}
}

// expectStatus checks what ImageStatus says of the image of TestRootPullAndRead.
func (n *node) expectStatus(t *testing.T, img pushed, byDigest string) {
	t.Helper()
	status, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: img.ref}, Verbose: true})
	if err != nil {
		t.Fatal(err)
	}
	got := status.Image
	if got.Id != img.id || got.GetUid().GetValue() != 1000 || got.Username != "" || got.Size == 0 || got.Pinned ||
		strings.Join(got.RepoTags, ",") != img.ref || strings.Join(got.RepoDigests, ",") != byDigest {
		t.Errorf("status %+v", got)
	}
	if !strings.Contains(status.Info["info"], `"chainID":"sha256:`) {
		t.Errorf("verbose info %v", status.Info)
	}
}

// expectList checks the ids that ListImages shows.
func (n *node) expectList(t *testing.T, ids ...string) {
	t.Helper()
	list, err := n.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{})
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	for _, i := range list.Images {
		got = append(got, i.Id)
	}
	if len(got) != len(ids) {
		t.Fatalf("list %v, want %v", got, ids)
	}
	for _, id := range ids {
		if !strings.Contains(strings.Join(got, " "), id) {
			t.Errorf("list %v lacks %s", got, id)
		}
	}
}

func TestRootAbsentImage(t *testing.T) {
	n := newNode(t)
	for _, ref := range []string{"nowhere.example/none:1", "sha256:" + strings.Repeat("a", 64), "abc"} {
		status, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{Image: &runtimeapi.ImageSpec{Image: ref}})
		if err != nil || status.Image != nil {
			t.Errorf("ImageStatus(%q) = %v, %v; want an empty response", ref, status, err)
		}
		if _, err := n.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
			t.Errorf("RemoveImage(%q): %v", ref, err)
		}
	}
	list, err := n.images.ListImages(t.Context(), &runtimeapi.ListImagesRequest{Filter: &runtimeapi.ImageFilter{Image: &runtimeapi.ImageSpec{Image: "none"}}})
	if err != nil || len(list.Images) != 0 {
		t.Errorf("filtered list %v, %v", list, err)
	}
	if _, err := n.images.ImageStatus(t.Context(), &runtimeapi.ImageStatusRequest{}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("empty reference: %v", err)
	}
}

func TestRootRemoveAllNames(t *testing.T) {
	n, r := newNode(t), newRegistry(t)
	a := r.push(t, "lib/app:v1", 1, "", 4096)
	b := r.push(t, "lib/app:v2", 1, "", 4096) // the same content
	c := r.push(t, "other/app:v1", 1, "", 4096)
	d := r.push(t, "keep:v1", 9, "", 4096)
	for _, img := range []pushed{a, b, c, d} {
		if _, err := n.images.PullImage(t.Context(), pullRequest(img.ref, nil)); err != nil {
			t.Fatal(err)
		}
	}
	n.expectList(t, a.id, d.id)
	var wg sync.WaitGroup
	for _, ref := range []string{a.ref, b.ref, a.id} {
		wg.Go(func() {
			if _, err := n.images.RemoveImage(t.Context(), &runtimeapi.RemoveImageRequest{Image: &runtimeapi.ImageSpec{Image: ref}}); err != nil {
				t.Error(err)
			}
		})
	}
	wg.Wait()
	n.expectList(t, d.id)
	recs, err := n.ctrd.ImageRecords(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, rec := range recs {
		if !strings.Contains(rec.Name, "keep") && rec.Name != d.id {
			t.Errorf("record %s is left", rec.Name)
		}
	}
}

func TestRootPullErrors(t *testing.T) {
	n, r := newNode(t), newRegistry(t)
	r.push(t, "app:v1", 1, "", 100)
	l, err := (&net.ListenConfig{}).Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	down := l.Addr().String()
	_ = l.Close()
	bad := r.push(t, "bad:v1", 3, "", 5000)
	r.set(func(r *registry) { r.blobs[bad.layers[0]][100] ^= 1 })
	teapot := newRegistry(t)
	teapot.status = http.StatusServiceUnavailable
	for _, c := range []struct {
		name, ref, prefix string
		is                func(error) bool
	}{
		{"down", down + "/app:v1", "RegistryUnavailable: ", nil},
		{"503", teapot.host + "/app:v1", "RegistryUnavailable: ", nil},
		{"no tag", r.host + "/app:v9", "pull image ", errdefs.IsNotFound},
		{"wrong digest", bad.ref, "pull image ", nil},
		{"bad reference", "UPPER/Case", "image.image: ", errdefs.IsInvalidArgument},
		{"empty reference", "", "image.image: ", errdefs.IsInvalidArgument},
	} {
		t.Run(c.name, func(t *testing.T) {
			_, err := n.images.PullImage(t.Context(), pullRequest(c.ref, nil))
			if err == nil {
				t.Fatal("no error")
			}
			t.Log(err)
			if !strings.HasPrefix(err.Error(), c.prefix) {
				t.Errorf("%q does not begin with %q", err, c.prefix)
			}
			if c.is != nil && !c.is(err) {
				t.Errorf("%v is of another kind", err)
			}
		})
	}
	n.expectList(t)
	_, err = n.images.PullImage(t.Context(), &runtimeapi.PullImageRequest{Image: &runtimeapi.ImageSpec{Image: r.host + "/app:v1", RuntimeHandler: "nope"}})
	if !errdefs.IsInvalidArgument(err) {
		t.Errorf("unknown handler: %v", err)
	}
}

func basic(user, pass string) func(*http.Request) string {
	return func(r *http.Request) string {
		if u, p, ok := r.BasicAuth(); ok && u == user && p == pass {
			return ""
		}
		return `Basic realm="test"`
	}
}

func TestRootPullCredentials(t *testing.T) {
	n, r := newNode(t), newRegistry(t)
	img := r.push(t, "app:v1", 1, "", 100)
	enc := base64.StdEncoding.EncodeToString([]byte("me:secret"))
	ok := []*runtimeapi.AuthConfig{
		{Username: "me", Password: "secret"},
		{Auth: enc},
		{Auth: enc, ServerAddress: r.host},
		{Auth: enc, ServerAddress: "http://" + r.host + "/v2/"},
	}
	r.set(func(r *registry) { r.authorize = basic("me", "secret") })
	for i, auth := range ok {
		if _, err := n.images.PullImage(t.Context(), pullRequest(img.ref, auth)); err != nil {
			t.Errorf("%d: %v", i, err)
		}
	}
	for i, auth := range []*runtimeapi.AuthConfig{
		nil,
		{Username: "me", Password: "wrong"},
		{Username: "me", Password: "secret", ServerAddress: "other.example"},
	} {
		if _, err := n.images.PullImage(t.Context(), pullRequest(img.ref, auth)); err == nil {
			t.Errorf("%d: pulled", i)
		} else {
			t.Log(err)
		}
	}
	for i, auth := range []*runtimeapi.AuthConfig{{Auth: "%%"}, {Auth: "bm9jb2xvbg=="}, {RegistryToken: "a\"b"}} {
		if _, err := n.images.PullImage(t.Context(), pullRequest(img.ref, auth)); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%d: %v", i, err)
		}
	}
}

// TestRootPullTokens: an identity token is exchanged at the token server, a
// registry token goes to the registry as it is, and never to a mirror.
func TestRootPullTokens(t *testing.T) {
	n, r, mirror := newNode(t), newRegistry(t), newRegistry(t)
	img := r.push(t, "app:v1", 1, "", 100)
	tokens := http.NewServeMux()
	tokens.HandleFunc("/token", func(w http.ResponseWriter, req *http.Request) {
		if req.FormValue("refresh_token") != "identity" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_, _ = w.Write([]byte(`{"access_token":"exchanged","expires_in":300}`))
	})
	srv := newServer(t, tokens)
	bearer := func(want string) func(*http.Request) string {
		return func(req *http.Request) string {
			if req.Header.Get("Authorization") == "Bearer "+want {
				return ""
			}
			return `Bearer realm="` + srv + `/token",service="test"`
		}
	}
	r.set(func(r *registry) { r.authorize = bearer("exchanged") })
	if _, err := n.images.PullImage(t.Context(), pullRequest(img.ref, &runtimeapi.AuthConfig{IdentityToken: "identity"})); err != nil {
		t.Errorf("identity token: %v", err)
	}
	r.set(func(r *registry) { r.authorize = bearer("registry") })
	token := &runtimeapi.AuthConfig{RegistryToken: "registry"}
	if _, err := n.images.PullImage(t.Context(), pullRequest(img.ref, token)); err != nil {
		t.Errorf("registry token: %v", err)
	}
	n.hosts(t, r.host, fmt.Sprintf("server = %q\n[host.%q]\ncapabilities=[\"pull\",\"resolve\"]\n", r.URL, mirror.URL))
	if _, err := n.images.PullImage(t.Context(), pullRequest(img.ref, token)); err != nil {
		t.Errorf("registry token with a mirror: %v", err)
	}
	if len(mirror.seen("/v2/")) == 0 {
		t.Error("the mirror was not asked")
	}
	if seen := mirror.seen("Bearer"); len(seen) > 0 {
		t.Errorf("the mirror got the token: %v", seen)
	}
	if left, _ := os.ReadDir(n.cfg.StateDir); len(left) > 0 {
		t.Errorf("left in the state directory: %v", left)
	}
}

// hosts writes a hosts.toml.
func (n *node) hosts(t *testing.T, host, text string) {
	t.Helper()
	dir := filepath.Join(n.hostsDir, strings.Replace(host, ":", "_", 1)+"_")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func TestRootPullFromMirror(t *testing.T) {
	n, mirror := newNode(t), newRegistry(t)
	img := mirror.push(t, "lib/app:v1", 1, "", 5000)
	if err := os.Mkdir(filepath.Join(n.hostsDir, "_default"), 0o755); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("[host.%q]\n", mirror.URL)
	if err := os.WriteFile(filepath.Join(n.hostsDir, "_default", "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	resp, err := n.images.PullImage(t.Context(), pullRequest("registry.example/lib/app:v1", nil))
	if err != nil {
		t.Fatal(err)
	}
	got, err := n.images.Resolve(t.Context(), resp.ImageRef)
	if err != nil || got.ID != img.id || got.RepoTags[0] != "registry.example/lib/app:v1" {
		t.Errorf("%+v, %v", got, err)
	}
}

// silent is an address at which no connection is taken: its queue is full.
func silent(t *testing.T) string {
	t.Helper()
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Close(fd) })
	if err := errors.Join(unix.Bind(fd, &unix.SockaddrInet4{Addr: [4]byte{127, 0, 0, 1}}), unix.Listen(fd, 0)); err != nil {
		t.Fatal(err)
	}
	sa, err := unix.Getsockname(fd)
	if err != nil {
		t.Fatal(err)
	}
	addr := fmt.Sprintf("127.0.0.1:%d", sa.(*unix.SockaddrInet4).Port) //nolint:errcheck,forcetypeassert // as bound
	for {
		conn, err := net.DialTimeout("tcp4", addr, 200*time.Millisecond)
		if err != nil {
			return addr
		}
		t.Cleanup(func() { _ = conn.Close() })
	}
}

// TestRootPullPastSilentMirror: a mirror that does not answer costs the time that is
// written for it, and the next one is asked.
func TestRootPullPastSilentMirror(t *testing.T) {
	n, mirror := newNode(t), newRegistry(t)
	img := mirror.push(t, "lib/app:v1", 1, "", 5000)
	text := fmt.Sprintf("[host.\"http://%s\"]\n  dial_timeout = \"100ms\"\n[host.%q]\n", silent(t), mirror.URL)
	if err := os.MkdirAll(filepath.Join(n.hostsDir, "registry.invalid"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(n.hostsDir, "registry.invalid", "hosts.toml"), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 15*time.Second) // less than the 30 s of one dial without it
	defer cancel()
	resp, err := n.images.PullImage(ctx, pullRequest("registry.invalid/lib/app:v1", nil))
	if err != nil || resp.GetImageRef() != img.id {
		t.Errorf("%v, %v", resp, err)
	}
}

// TestRootPullNamespaceMirror: only the pods of a namespace are served by its mirror,
// which knows them by a header.
func TestRootPullNamespaceMirror(t *testing.T) {
	dir := t.TempDir()
	n, mirror := newNode(t, func(c *image.Config) { c.NamespaceHostsDir = dir }), newRegistry(t)
	mirror.push(t, "lib/app:v1", 1, "", 5000)
	mirror.set(func(r *registry) { r.authorize = basic("team", "secret") })
	hosts := filepath.Join(dir, "team-a", "registry.invalid")
	if err := os.MkdirAll(hosts, 0o700); err != nil {
		t.Fatal(err)
	}
	text := fmt.Sprintf("[host.%q]\n  capabilities = [\"pull\", \"resolve\"]\n  [host.%q.header]\n    Authorization = %q\n",
		mirror.URL, mirror.URL, "Basic "+base64.StdEncoding.EncodeToString([]byte("team:secret")))
	if err := os.WriteFile(filepath.Join(hosts, "hosts.toml"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	pull := func(namespace string) error {
		req := pullRequest("registry.invalid/lib/app:v1", nil)
		req.SandboxConfig = &runtimeapi.PodSandboxConfig{Metadata: &runtimeapi.PodSandboxMetadata{Namespace: namespace}}
		_, err := n.images.PullImage(t.Context(), req)
		return err
	}
	if err := pull("team-b"); err == nil || len(mirror.seen("/v2/")) > 0 {
		t.Errorf("another namespace: %v, the mirror was asked %v", err, mirror.seen("/v2/"))
	}
	if err := pull("team-a"); err != nil {
		t.Error(err)
	}
	if err := pull("../team-a"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("escaping: %v", err)
	}
}

// TestRootPullContinues: a registry that cuts its bodies again and again is
// asked for the rest, never for the same bytes.
func TestRootPullContinues(t *testing.T) {
	n, r := newNode(t), newRegistry(t)
	img := r.push(t, "app:v1", 1, "", 2<<20)
	r.set(func(r *registry) { r.breakAfter, r.breaks = 300<<10, 6 })
	if _, err := n.images.PullImage(t.Context(), pullRequest(img.ref, nil)); err != nil {
		t.Fatal(err)
	}
	t.Logf("%d blob requests, progress %+v", len(r.seen("/blobs/")), n.images.Pulls())
	n.expectList(t, img.id)
	leases, err := n.ctrd.PullLeases(t.Context())
	if err != nil || len(leases) != 0 {
		t.Errorf("leases left: %v, %v", leases, err)
	}
}

func TestRootPullCoalesced(t *testing.T) {
	n, r := newNode(t), newRegistry(t)
	img := r.push(t, "app:v1", 1, "", 100<<10)
	r.block()
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			if _, err := n.images.PullImage(t.Context(), pullRequest(img.ref, nil)); err != nil {
				t.Error(err)
			}
		})
	}
	short, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := n.images.PullImage(short, pullRequest(img.ref, nil)); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("impatient caller: %v", err)
	}
	eventually(t, "the layer's request", func() bool { return len(r.seen("/blobs/"+img.layers[0].String())) > 0 })
	if p := n.images.Pulls(); len(p) != 1 || !p[0].Ended.IsZero() {
		t.Errorf("pulls in flight: %+v", p)
	}
	r.release()
	wg.Wait()
	if got := r.seen("GET /v2/app/blobs/" + img.layers[0].String()); len(got) != 1 {
		t.Errorf("layer fetched %d times", len(got))
	}
}

func TestRootPullProgressTimeout(t *testing.T) {
	n := newNode(t, func(c *image.Config) { c.PullProgressTimeout, c.PullRetries = 500*time.Millisecond, 0 })
	r := newRegistry(t)
	img := r.push(t, "app:v1", 1, "", 100<<10)
	r.block()
	_, err := n.images.PullImage(t.Context(), pullRequest(img.ref, nil))
	if err == nil || !strings.HasPrefix(err.Error(), "RegistryUnavailable: ") || !strings.Contains(err.Error(), "no progress for") {
		t.Fatalf("%v", err)
	}
}
