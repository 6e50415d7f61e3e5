// SPDX-License-Identifier: Apache-2.0

package image_test

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"strconv"
	"strings"
	"sync"
	"testing"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// registry serves images over the distribution API and breaks on demand.
type registry struct {
	*httptest.Server
	host string

	mu        sync.Mutex
	blobs     map[digest.Digest][]byte
	types     map[digest.Digest]string
	tags      map[string]digest.Digest // "repo:tag"
	requests  []string                 // "METHOD path authorization"
	authorize func(r *http.Request) (challenge string)
	// breakAfter cuts each body of a blob larger than this, once per count.
	breakAfter int
	breaks     int
	// status answers all requests when it is not 0.
	status int
	// ranges says what becomes of requests for ranges: served by 0, refused by 416, ignored by 200.
	ranges int
	// hold blocks the answers to layers until release.
	hold chan struct{}
}

func newRegistry(t *testing.T) *registry {
	t.Helper()
	r := &registry{blobs: map[digest.Digest][]byte{}, types: map[digest.Digest]string{}, tags: map[string]digest.Digest{}}
	r.Server = httptest.NewServer(http.HandlerFunc(r.serve))
	r.host = strings.TrimPrefix(r.URL, "http://")
	t.Cleanup(func() {
		r.release()
		r.Close()
	})
	return r
}

func (r *registry) serve(w http.ResponseWriter, req *http.Request) {
	r.mu.Lock()
	r.requests = append(r.requests, req.Method+" "+req.URL.Path+" "+req.Header.Get("Authorization"))
	status, authorize, hold, ranges := r.status, r.authorize, r.hold, r.ranges
	r.mu.Unlock()
	if ranges == http.StatusRequestedRangeNotSatisfiable && req.Header.Get("Range") != "" {
		status = ranges
	}
	if ranges == http.StatusOK {
		req.Header.Del("Range")
	}
	if status != 0 {
		w.WriteHeader(status)
		return
	}
	if authorize != nil {
		if challenge := authorize(req); challenge != "" {
			w.Header().Set("WWW-Authenticate", challenge)
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
	}
	path, ok := strings.CutPrefix(req.URL.Path, "/v2/")
	if !ok || path == "" {
		return
	}
	if repo, ref, ok := strings.Cut(path, "/manifests/"); ok {
		r.manifest(w, req, repo, ref)
		return
	}
	if _, d, ok := strings.Cut(path, "/blobs/"); ok {
		if hold != nil && r.isLayer(digest.Digest(d)) {
			<-hold
		}
		r.blob(w, req, digest.Digest(d))
		return
	}
	w.WriteHeader(http.StatusNotFound)
}

func (r *registry) manifest(w http.ResponseWriter, req *http.Request, repo, ref string) {
	r.mu.Lock()
	d, ok := r.tags[repo+":"+ref]
	if !ok {
		d = digest.Digest(ref)
	}
	b, ok := r.blobs[d]
	mt := r.types[d]
	r.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	w.Header().Set("Content-Type", mt)
	w.Header().Set("Docker-Content-Digest", d.String())
	w.Header().Set("Content-Length", strconv.Itoa(len(b)))
	if req.Method != http.MethodHead {
		_, _ = w.Write(b)
	}
}

func (r *registry) blob(w http.ResponseWriter, req *http.Request, d digest.Digest) {
	r.mu.Lock()
	b, ok := r.blobs[d]
	cut := -1
	if ok && r.breaks > 0 && len(b) > r.breakAfter && req.Method == http.MethodGet {
		r.breaks--
		cut = r.breakAfter
	}
	r.mu.Unlock()
	if !ok {
		w.WriteHeader(http.StatusNotFound)
		return
	}
	start, ranged := 0, req.Header.Get("Range") != ""
	if rng, ok := strings.CutPrefix(req.Header.Get("Range"), "bytes="); ok {
		from, _, _ := strings.Cut(rng, "-")
		start, _ = strconv.Atoi(from)
	}
	if start > len(b) {
		w.WriteHeader(http.StatusRequestedRangeNotSatisfiable)
		return
	}
	w.Header().Set("Content-Type", "application/octet-stream")
	w.Header().Set("Content-Length", strconv.Itoa(len(b)-start))
	if ranged {
		w.Header().Set("Content-Range", fmt.Sprintf("bytes %d-%d/%d", start, len(b)-1, len(b)))
		w.WriteHeader(http.StatusPartialContent)
	}
	if req.Method == http.MethodHead {
		return
	}
	if cut >= 0 {
		end := min(start+cut, len(b))
		_, _ = w.Write(b[start:end])
		if f, ok := w.(http.Flusher); ok {
			f.Flush()
		}
		panic(http.ErrAbortHandler)
	}
	_, _ = w.Write(b[start:])
}

func (r *registry) isLayer(d digest.Digest) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.types[d] == ocispec.MediaTypeImageLayerGzip
}

// block holds the answers to layers back.
func (r *registry) block() { r.set(func(r *registry) { r.hold = make(chan struct{}) }) }

// release lets them go.
func (r *registry) release() {
	r.set(func(r *registry) {
		if r.hold != nil {
			close(r.hold)
		}
		r.hold = nil
	})
}

func (r *registry) put(b []byte, mediaType string) ocispec.Descriptor {
	d := digest.FromBytes(b)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.blobs[d], r.types[d] = b, mediaType
	return ocispec.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(b))}
}

// pushed is an image in the registry.
type pushed struct {
	ref      string
	id       string
	manifest digest.Digest
	layers   []digest.Digest
}

// push makes an image of layers with random files of the given sizes.
func (r *registry) push(t *testing.T, name string, seed uint64, user string, sizes ...int) pushed {
	t.Helper()
	config := ocispec.Image{
		Platform: ocispec.Platform{Architecture: "amd64", OS: "linux"},
		Config:   ocispec.ImageConfig{User: user, Cmd: []string{"/bin/true"}},
		RootFS:   ocispec.RootFS{Type: "layers"},
	}
	var layers []ocispec.Descriptor
	out := pushed{ref: r.host + "/" + name}
	for i, size := range sizes {
		plain, packed := layer(t, seed+uint64(i), fmt.Sprintf("file%d", i), size)
		config.RootFS.DiffIDs = append(config.RootFS.DiffIDs, digest.FromBytes(plain))
		desc := r.put(packed, ocispec.MediaTypeImageLayerGzip)
		layers = append(layers, desc)
		out.layers = append(out.layers, desc.Digest)
	}
	cfg := r.put(marshal(t, config), ocispec.MediaTypeImageConfig)
	man := r.put(marshal(t, ocispec.Manifest{
		Versioned: specs.Versioned{SchemaVersion: 2}, MediaType: ocispec.MediaTypeImageManifest,
		Config: cfg, Layers: layers,
	}), ocispec.MediaTypeImageManifest)
	r.mu.Lock()
	r.tags[name] = man.Digest
	r.mu.Unlock()
	out.id, out.manifest = cfg.Digest.String(), man.Digest
	return out
}

// layer makes a tar with one file of incompressible bytes, and its gzip.
func layer(t *testing.T, seed uint64, name string, size int) (plain, packed []byte) {
	t.Helper()
	data := make([]byte, size)
	src := rand.NewChaCha8([32]byte{byte(seed), byte(seed >> 8)})
	_, _ = src.Read(data)
	var buf bytes.Buffer
	tw := tar.NewWriter(&buf)
	if err := tw.WriteHeader(&tar.Header{Name: name, Mode: 0o644, Size: int64(size), Typeflag: tar.TypeReg}); err != nil {
		t.Fatal(err)
	}
	_, _ = tw.Write(data)
	for _, h := range []*tar.Header{
		{Name: "dir", Mode: 0o755, Typeflag: tar.TypeDir},
		{Name: "dir/in", Mode: 0o644, Typeflag: tar.TypeReg},
		{Name: "inside", Linkname: "/dir", Typeflag: tar.TypeSymlink},
		{Name: "outside", Linkname: "../../../../../../../../etc", Typeflag: tar.TypeSymlink},
	} {
		if err := tw.WriteHeader(h); err != nil {
			t.Fatal(err)
		}
	}
	if err := tw.Close(); err != nil {
		t.Fatal(err)
	}
	var gz bytes.Buffer
	zw := gzip.NewWriter(&gz)
	_, _ = zw.Write(buf.Bytes())
	if err := zw.Close(); err != nil {
		t.Fatal(err)
	}
	return buf.Bytes(), gz.Bytes()
}

func marshal(t *testing.T, v any) []byte {
	t.Helper()
	b, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// seen returns the requests that contain a text.
func (r *registry) seen(text string) []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []string
	for _, q := range r.requests {
		if strings.Contains(q, text) {
			out = append(out, q)
		}
	}
	return out
}

// set changes the behaviour under the lock.
func (r *registry) set(fn func(r *registry)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	fn(r)
}

// newServer serves h until the test ends and returns its URL.
func newServer(t *testing.T, h http.Handler) string {
	t.Helper()
	s := httptest.NewServer(h)
	t.Cleanup(s.Close)
	return s.URL
}
