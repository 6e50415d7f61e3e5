// SPDX-License-Identifier: Apache-2.0

package cluster

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"context"
	"encoding/binary"
	"fmt"
	"io"
	"math/rand/v2"
	"path/filepath"
	"time"

	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
)

// Boxes starts the nodes' boxes on their switch and nothing in them: who
// measures or tests one program alone starts it there.
func Boxes(ctx context.Context, cfg Config) (*Cluster, error) {
	if err := cfg.Validate(); err != nil {
		return nil, err
	}
	c := &Cluster{Config: cfg, dir: filepath.Join(cfg.Base, cfg.Name), bare: true}
	return c.up(ctx, []step{
		{"network switch", c.startControlBox},
		{"boxes", func(ctx context.Context) error {
			for i := range c.Config.Nodes {
				if _, err := c.startBox(ctx, i+1, c.Runtime); err != nil {
					return err
				}
			}
			return c.saveState()
		}},
	})
}

// Images whose pull is measured.
const (
	LargeImage = "registry.local/bench/large:1"
	FilesImage = "registry.local/bench/files:1"
)

// pullImages makes an image of four layers of 64 MiB that do not compress,
// and one of 20,000 files.
func (c *Cluster) pullImages(ctx context.Context) error {
	if !c.PullImages {
		return nil
	}
	r := rand.NewChaCha8([32]byte{1})
	blob := func(name string, size int) ([]byte, error) {
		return packed(1, size, func(int) string { return name }, r)
	}
	var layers []v1.Layer
	for i := range 4 {
		data, err := blob(fmt.Sprintf("data%d", i), 64<<20)
		if err != nil {
			return err
		}
		layer, err := layerOf(data)
		if err != nil {
			return err
		}
		layers = append(layers, layer)
	}
	if err := c.pushLayers(ctx, LargeImage, layers...); err != nil {
		return err
	}
	data, err := packed(20000, 1000, func(i int) string { return fmt.Sprintf("dir%d/file%d", i%200, i) }, r)
	if err != nil {
		return err
	}
	layer, err := layerOf(data)
	if err != nil {
		return err
	}
	return c.pushLayers(ctx, FilesImage, layer)
}

// packed is an archive of n files of random bytes.
func packed(n, size int, name func(int) string, r io.Reader) ([]byte, error) {
	var buf bytes.Buffer
	buf.Grow(n * (size + 1024))
	w := tar.NewWriter(&buf)
	data := make([]byte, size)
	if _, err := io.ReadFull(r, data); err != nil {
		return nil, err
	}
	for i := range n {
		binary.LittleEndian.PutUint64(data, uint64(i))
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name(i), Mode: 0o644, Size: int64(size), ModTime: time.Unix(0, 0)}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(data); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), w.Close()
}

func layerOf(data []byte) (v1.Layer, error) {
	return tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil },
		tarball.WithCompressionLevel(gzip.BestSpeed))
}

func (c *Cluster) pushLayers(ctx context.Context, ref string, layers ...v1.Layer) error {
	img, err := mutate.ConfigFile(empty.Image, &v1.ConfigFile{
		Architecture: "amd64", OS: "linux", RootFS: v1.RootFS{Type: "layers"},
	})
	if err == nil {
		img, err = mutate.AppendLayers(img, layers...)
	}
	if err == nil {
		err = c.push(ctx, img, ref)
	}
	if err != nil {
		return fmt.Errorf("image %s: %w", ref, err)
	}
	return nil
}
