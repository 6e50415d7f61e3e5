// SPDX-License-Identifier: Apache-2.0

package image

import (
	"slices"
	"strings"

	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	runtimeapi "k8s.io/cri-api/pkg/apis/runtime/v1"
)

// Image is one image of the node. It is never changed after it was handed out.
type Image struct {
	// ID is the digest of the image's configuration: "sha256:<64 hex>".
	ID string
	// RepoTags and RepoDigests are the full references by which the image is
	// known, sorted.
	RepoTags    []string
	RepoDigests []string
	// ChainID names the snapshot that a container's root starts from.
	ChainID digest.Digest
	// Size in bytes, as in the registry.
	Size int64
	// Config is the OCI image configuration.
	Config ocispec.Image
	// Target is the manifest or index that the names point to; Name is one of
	// the names in containerd's image store.
	Target ocispec.Descriptor
	Name   string
	// Checkpoint means that it holds a container's checkpoint.
	Checkpoint bool
	// Pinned images are not for garbage collection.
	Pinned bool
}

// Ref returns what a container's status shows as image_ref: a repo digest when
// there is one, else the id.
func (i *Image) Ref() string {
	if len(i.RepoDigests) > 0 {
		return i.RepoDigests[0]
	}
	return i.ID
}

// CRI returns the image as the CRI describes it.
func (i *Image) CRI() *runtimeapi.Image {
	img := &runtimeapi.Image{
		Id:          i.ID,
		RepoTags:    slices.Clone(i.RepoTags),
		RepoDigests: slices.Clone(i.RepoDigests),
		Size:        uint64(max(i.Size, 0)),
		Pinned:      i.Pinned,
	}
	img.Uid, img.Username = user(i.Config.Config.User)
	return img
}

// user splits an image's "user[:group]" into the CRI's exclusive uid and name.
// Both are empty when the image names nobody: the kubelet takes that for root.
func user(s string) (*runtimeapi.Int64Value, string) {
	name, _, _ := strings.Cut(s, ":")
	if name == "" {
		return nil, ""
	}
	if uid, ok := number(name); ok {
		return &runtimeapi.Int64Value{Value: uid}, ""
	}
	return nil, name
}

// number parses a decimal uid without a sign.
func number(s string) (int64, bool) {
	var n int64
	for _, c := range []byte(s) {
		if c < '0' || c > '9' || n > 1<<32 {
			return 0, false
		}
		n = n*10 + int64(c-'0')
	}
	return n, true
}

// names sorts one record's name under tags or digests. A name with a tag also
// has a digest, for the record says what the tag points to.
func names(name string, target digest.Digest) (tag, repoDigest string) {
	ref, err := reference.ParseAnyReference(name)
	if err != nil {
		return "", ""
	}
	named, ok := ref.(reference.Named)
	if !ok {
		return "", "" // an id
	}
	if _, ok := named.(reference.Digested); ok {
		return "", name
	}
	if _, ok := named.(reference.Tagged); ok {
		tag = name
	}
	if d, err := reference.WithDigest(reference.TrimNamed(named), target); err == nil {
		repoDigest = d.String()
	}
	return tag, repoDigest
}
