// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"bytes"
	"encoding/json"
	"fmt"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/opencontainers/image-spec/specs-go"
	ociv1 "github.com/opencontainers/image-spec/specs-go/v1"
)

// Image describes an OCI image of one layer for one platform.
type Image struct {
	// Ref is the image's name with its tag, as in "ghcr.io/nodeagent/nodeagent:v1".
	Ref          string
	Architecture string
	Entrypoint   []string
	Env          []string
	Labels       map[string]string
	Files        []File
	// Time of the release.
	Time time.Time
}

// Write gives an archive in OCI layout: what `ctr images import`, `podman load`,
// `skopeo copy oci-archive:` and `docker load` take.
func (i Image) Write() ([]byte, error) {
	layer, err := tarball(i.Files, i.Time, false)
	if err != nil {
		return nil, err
	}
	packed, err := compress(layer)
	if err != nil {
		return nil, err
	}
	var blobs []File
	add := func(mediaType string, data []byte) ociv1.Descriptor {
		d := digest.FromBytes(data)
		blobs = append(blobs, File{Path: "/blobs/sha256/" + d.Encoded(), Data: data})
		return ociv1.Descriptor{MediaType: mediaType, Digest: d, Size: int64(len(data))}
	}
	platform := ociv1.Platform{OS: "linux", Architecture: i.Architecture}
	config, err := json.Marshal(ociv1.Image{
		Created: &i.Time, Platform: platform,
		Config: ociv1.ImageConfig{Entrypoint: i.Entrypoint, Env: i.Env, Labels: i.Labels, WorkingDir: "/"},
		RootFS: ociv1.RootFS{Type: "layers", DiffIDs: []digest.Digest{digest.FromBytes(layer)}},
	})
	if err != nil {
		return nil, fmt.Errorf("render image configuration: %w", err)
	}
	versioned := specs.Versioned{SchemaVersion: 2}
	manifest, err := json.Marshal(ociv1.Manifest{
		Versioned: versioned, MediaType: ociv1.MediaTypeImageManifest,
		Config:      add(ociv1.MediaTypeImageConfig, config),
		Layers:      []ociv1.Descriptor{add(ociv1.MediaTypeImageLayerGzip, packed)},
		Annotations: i.Labels,
	})
	if err != nil {
		return nil, fmt.Errorf("render image manifest: %w", err)
	}
	desc := add(ociv1.MediaTypeImageManifest, manifest)
	desc.Platform = &platform
	desc.Annotations = map[string]string{
		ociv1.AnnotationRefName: i.Ref, "io.containerd.image.name": i.Ref,
	}
	index, err := json.Marshal(ociv1.Index{
		Versioned: versioned, MediaType: ociv1.MediaTypeImageIndex, Manifests: []ociv1.Descriptor{desc},
	})
	if err != nil {
		return nil, fmt.Errorf("render image index: %w", err)
	}
	layout, err := json.Marshal(ociv1.ImageLayout{Version: ociv1.ImageLayoutVersion})
	if err != nil {
		return nil, fmt.Errorf("render image layout: %w", err)
	}
	files := append(blobs, File{Path: "/index.json", Data: index}, File{Path: "/" + ociv1.ImageLayoutFile, Data: layout})
	return writeLayout(files, i.Time)
}

// writeLayout puts the layout's marker first, where readers that stream look.
func writeLayout(files []File, when time.Time) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	for n := range files {
		f := files[len(files)-1-n]
		if err := w.WriteHeader(header(f.Path[1:], tar.TypeReg, 0o644, int64(len(f.Data)), when)); err != nil {
			return nil, err
		}
		if _, err := w.Write(f.Data); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
