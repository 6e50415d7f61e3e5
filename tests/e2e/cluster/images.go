// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"errors"
	"fmt"
	"io"
	"log"
	"net/http"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"time"

	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Images that every cluster's registry serves. A registry's host does not matter:
// the nodes ask the cluster's registry for every host.
const (
	WebImage     = "registry.local/web:1"
	BusyboxImage = "registry.local/busybox:1"
	// ForeignCSIImage is another vendor's storage driver (cmd/foreigncsi).
	ForeignCSIImage = "registry.local/foreigncsi:1"
	AgnhostImage    = "registry.k8s.io/e2e-test-images/agnhost:2.66.1"
)

// image says what is in an image: files of the machine, links, and how it starts.
type image struct {
	refs       []string
	files      map[string]string // path in the image to file on the machine
	links      map[string]string // path in the image to target
	texts      map[string]string // path in the image to content
	setuid     []string          // paths in the image
	entrypoint []string
	cmd        []string
	user       string
}

func (c *Cluster) images(ctx context.Context) ([]image, error) {
	applets, err := busyboxApplets()
	if err != nil {
		return nil, err
	}
	box := image{
		refs:  []string{BusyboxImage, "docker.io/library/busybox:latest", "registry.k8s.io/e2e-test-images/busybox:1.37.0-1"},
		files: map[string]string{"bin/busybox": busyboxPath}, links: applets, texts: accounts, cmd: []string{"sh"},
	}
	out := []image{
		{refs: []string{WebImage}, files: map[string]string{"web": filepath.Join(c.Bin, "web")}, texts: accounts, entrypoint: []string{"/web"}, user: "1000:1000"},
		box,
		{refs: []string{dnsImage}, files: map[string]string{"coredns": c.tool("coredns")}, texts: accounts, entrypoint: []string{"/coredns"}},
		{
			refs:  []string{AgnhostImage},
			files: map[string]string{"bin/busybox": busyboxPath, "agnhost": c.tool("agnhost")}, links: applets, texts: accounts,
			entrypoint: []string{"/agnhost"}, cmd: []string{"pause"},
		},
	}
	if c.alone { // what CRI sockets are asked about
		out = append(out, c.oddImages(applets)...)
	}
	if driver := filepath.Join(c.Bin, "foreigncsi"); fileExists(driver) {
		out = append(out, image{refs: []string{ForeignCSIImage}, files: map[string]string{"foreigncsi": driver}, entrypoint: []string{"/foreigncsi"}})
	}
	if c.Runtime != RuntimeNodeagent {
		out = append(out, image{refs: []string{PauseImage}, files: map[string]string{"pause": c.tool("pause")}, entrypoint: []string{"/pause"}, user: "65535:65535"})
	}
	if c.Conformance {
		more, err := c.conformanceImages(ctx, applets)
		if err != nil {
			return nil, err
		}
		out = append(out, more...)
	}
	return out, nil
}

// oddImages are for what an image can say: several names, users by number and by name, a program that becomes root.
func (c *Cluster) oddImages(applets map[string]string) []image {
	box := func(im image) image {
		im.links, im.cmd = applets, []string{"sh"}
		im.files = map[string]string{"bin/busybox": busyboxPath}
		if im.texts == nil {
			im.texts = accounts
		}
		return im
	}
	setuid := box(image{refs: []string{"registry.local/setuid:1"}, setuid: []string{"bin/become"}})
	setuid.files = map[string]string{"bin/busybox": busyboxPath, "bin/become": "/bin/bash-static"}
	return []image{
		box(image{refs: []string{"registry.local/tags:1", "registry.local/tags:2", "registry.local/tags:3"}, texts: map[string]string{"etc/what": "tags"}}),
		box(image{refs: []string{"registry.local/different:1"}, texts: map[string]string{"etc/what": "1"}}),
		box(image{refs: []string{"registry.local/different:2"}, texts: map[string]string{"etc/what": "2"}}),
		box(image{refs: []string{"registry.local/user:uid"}, user: "1002"}),
		box(image{refs: []string{"registry.local/user:uid-group"}, user: "1003:group"}),
		box(image{refs: []string{"registry.local/user:name"}, user: "www-data"}),
		box(image{refs: []string{"registry.local/user:name-group"}, user: "www-data:100"}),
		setuid,
	}
}

func fileExists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}

const busyboxPath = "/bin/busybox"

var accounts = map[string]string{
	"etc/passwd": "root:x:0:0:root:/root:/bin/sh\nweb:x:1000:1000:web:/tmp:/bin/sh\nnobody:x:65534:65534:nobody:/:/bin/false\n",
	"etc/group":  "root:x:0:\nweb:x:1000:\nnogroup:x:65534:\n",
}

func busyboxApplets() (map[string]string, error) {
	out, err := exec.Command(busyboxPath, "--list").Output() //nolint:noctx // ends at once
	if err != nil {
		return nil, fmt.Errorf("list busybox's applets (is busybox-static installed?): %w", err)
	}
	links := map[string]string{}
	for a := range strings.FieldsSeq(string(out)) {
		if a != "busybox" {
			links["bin/"+a] = "busybox"
		}
	}
	return links, nil
}

// layer packs the image's files, parents first, with a fixed time so that equal
// content has an equal digest.
func (im *image) layer() ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	dirs := map[string]int64{"tmp": 0o1777, "root": 0o700}
	paths := []string{}
	for _, m := range []map[string]string{im.files, im.links, im.texts} {
		for p := range m {
			paths = append(paths, p)
			for d := path.Dir(p); d != "."; d = path.Dir(d) {
				dirs[d] = 0o755
			}
		}
	}
	all := slices.Clone(paths)
	for d := range dirs {
		all = append(all, d)
	}
	slices.Sort(all)
	for _, p := range all {
		if err := im.entry(w, p, dirs[p]); err != nil {
			return nil, fmt.Errorf("pack %s: %w", p, err)
		}
	}
	return buf.Bytes(), w.Close()
}

func (im *image) entry(w *tar.Writer, p string, dirMode int64) error {
	h := &tar.Header{Name: p, ModTime: time.Unix(0, 0), Mode: 0o755}
	var data []byte
	var err error
	switch {
	case dirMode != 0:
		h.Typeflag, h.Mode, h.Name = tar.TypeDir, dirMode, p+"/"
	case im.links[p] != "":
		h.Typeflag, h.Linkname = tar.TypeSymlink, im.links[p]
	case im.texts[p] != "":
		h.Typeflag, h.Mode, data = tar.TypeReg, 0o644, []byte(im.texts[p])
	default:
		h.Typeflag = tar.TypeReg
		if data, err = os.ReadFile(im.files[p]); err != nil {
			return err
		}
	}
	if slices.Contains(im.setuid, p) {
		h.Mode |= 0o4000
	}
	h.Size = int64(len(data))
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err = w.Write(data)
	return err
}

func (im *image) build() (v1.Image, error) {
	data, err := im.layer()
	if err != nil {
		return nil, err
	}
	layer, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		tarball.WithCompressionLevel(gzip.NoCompression)) // it never leaves the machine
	if err != nil {
		return nil, err
	}
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		Architecture: runtime.GOARCH, OS: "linux", RootFS: v1.RootFS{Type: "layers"},
		Config: v1.Config{
			Entrypoint: im.entrypoint, Cmd: im.cmd, User: im.user,
			Env: []string{"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"},
		},
	})
	if err != nil {
		return nil, err
	}
	return mutate.AppendLayers(img, layer)
}

// startRegistry serves the images on the switch's address from this process.
func (c *Cluster) startRegistry(ctx context.Context) error {
	blobs := filepath.Join(c.dir, "registry")
	if err := os.MkdirAll(blobs, 0o700); err != nil {
		return err
	}
	l, err := c.Control.Listen(ctx, fmt.Sprintf("%s:%d", controlIP4, registryPort))
	if err != nil {
		return err
	}
	handler := registry.New(registry.WithBlobHandler(registry.NewDiskBlobHandler(blobs)), registry.Logger(log.New(io.Discard, "", 0)))
	c.registry = &http.Server{Handler: openRanges(handler), ReadHeaderTimeout: time.Minute}
	served := make(chan error, 1)
	go func() { served <- c.registry.Serve(l) }()
	c.onDown(func(context.Context) error {
		err := c.registry.Close()
		if e := <-served; !errors.Is(e, http.ErrServerClosed) {
			err = errors.Join(err, e)
		}
		return err
	})
	images, err := c.images(ctx)
	if err != nil {
		return err
	}
	for _, im := range images {
		img, err := im.build()
		if err == nil {
			err = c.push(ctx, img, im.refs...)
		}
		if err != nil {
			return fmt.Errorf("image %s: %w", im.refs[0], err)
		}
	}
	return nil
}

// push puts an image under all of its names, the host cut off, as the nodes' mirror asks.
func (c *Cluster) push(ctx context.Context, img v1.Image, refs ...string) error {
	transport := http.DefaultTransport.(*http.Transport).Clone() //nolint:errcheck,forcetypeassert // net/http's own
	transport.DialContext = c.Control.Dial
	transport.DisableKeepAlives = true
	defer transport.CloseIdleConnections()
	for _, r := range refs {
		_, repo, _ := strings.Cut(r, "/")
		ref, err := name.ParseReference(fmt.Sprintf("%s:%d/%s", controlIP4, registryPort, repo), name.Insecure)
		if err != nil {
			return err
		}
		if err := remote.Write(ref, img, remote.WithContext(ctx), remote.WithTransport(transport)); err != nil {
			return err
		}
	}
	return nil
}
