// SPDX-License-Identifier: Apache-2.0

package image

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"

	"github.com/nodeagent/nodeagent/cri/containerd"
)

// entry is one record of containerd that leads to a complete image.
type entry struct {
	rec  containerd.ImageRecord
	info *containerd.ImageInfo
}

// index answers all reads. Images are rebuilt, never changed, when one of
// their records changes.
type index struct {
	// mu guards all fields.
	mu      sync.RWMutex
	entries map[string]entry                        // by record name
	infos   map[digest.Digest]*containerd.ImageInfo // by target
	images  map[string]*Image                       // by id
	refs    map[string]string                       // tag, digest, record name -> id
	list    []*Image                                // sorted by id; nil: to be made
}

func newIndex() *index {
	return &index{
		entries: map[string]entry{},
		infos:   map[digest.Digest]*containerd.ImageInfo{},
		images:  map[string]*Image{},
		refs:    map[string]string{},
	}
}

// info returns what is known of a target, nil when it was never inspected.
func (x *index) info(target digest.Digest) *containerd.ImageInfo {
	x.mu.RLock()
	defer x.mu.RUnlock()
	return x.infos[target]
}

// put adds or replaces one record.
func (x *index) put(rec containerd.ImageRecord, info *containerd.ImageInfo) {
	x.mu.Lock()
	defer x.mu.Unlock()
	old, had := x.entries[rec.Name]
	x.entries[rec.Name] = entry{rec, info}
	x.infos[rec.Target.Digest] = info
	if had && old.info.ConfigDigest != info.ConfigDigest {
		x.rebuild(old.info.ConfigDigest)
	}
	if had && old.rec.Target.Digest != rec.Target.Digest {
		x.forget(old.rec.Target.Digest)
	}
	x.rebuild(info.ConfigDigest)
}

// drop removes one record.
func (x *index) drop(name string) {
	x.mu.Lock()
	defer x.mu.Unlock()
	old, had := x.entries[name]
	if !had {
		return
	}
	delete(x.entries, name)
	x.forget(old.rec.Target.Digest)
	x.rebuild(old.info.ConfigDigest)
}

// retain drops all records whose names are not in keep.
func (x *index) retain(keep map[string]bool) {
	x.mu.RLock()
	var gone []string
	for name := range x.entries {
		if !keep[name] {
			gone = append(gone, name)
		}
	}
	x.mu.RUnlock()
	for _, name := range gone {
		x.drop(name)
	}
}

// forget drops what is cached of a target that no record has; mu is held.
func (x *index) forget(target digest.Digest) {
	for _, e := range x.entries {
		if e.rec.Target.Digest == target {
			return
		}
	}
	delete(x.infos, target)
}

// rebuild makes one image anew from its records; mu is held.
func (x *index) rebuild(config digest.Digest) {
	id := config.String()
	x.list = nil
	maps.DeleteFunc(x.refs, func(_, v string) bool { return v == id })
	img, found := &Image{ID: id}, false
	tags, digests := map[string]bool{}, map[string]bool{}
	for name, e := range x.entries {
		if e.info.ConfigDigest != config {
			continue
		}
		if !found || name < img.Name {
			found = true
			img.Name, img.Target = name, e.rec.Target
		}
		img.ChainID, img.Size, img.Config = e.info.ChainID, e.info.Size, e.info.Config
		img.Checkpoint = e.info.Checkpoint
		img.Pinned = img.Pinned || e.rec.Labels[labelPinned] == pinned
		x.refs[name] = id
		tag, dgst := names(name, e.rec.Target.Digest)
		if tag != "" {
			tags[tag] = true
		}
		if dgst != "" {
			digests[dgst] = true
			x.refs[dgst] = id
		}
		x.refs[e.rec.Target.Digest.String()] = id
	}
	if !found {
		delete(x.images, id)
		return
	}
	img.RepoTags, img.RepoDigests = slices.Sorted(maps.Keys(tags)), slices.Sorted(maps.Keys(digests))
	x.images[id] = img
}

// all returns the images sorted by id. The slice is shared: read only.
func (x *index) all() []*Image {
	x.mu.RLock()
	list := x.list
	x.mu.RUnlock()
	if list != nil {
		return list
	}
	x.mu.Lock()
	defer x.mu.Unlock()
	if x.list == nil {
		x.list = make([]*Image, 0, len(x.images))
		for _, id := range slices.Sorted(maps.Keys(x.images)) {
			x.list = append(x.list, x.images[id])
		}
	}
	return x.list
}

// records returns the names of an image's records, sorted.
func (x *index) records(id string) []string {
	x.mu.RLock()
	defer x.mu.RUnlock()
	var out []string
	for name, e := range x.entries {
		if e.info.ConfigDigest.String() == id {
			out = append(out, name)
		}
	}
	slices.Sort(out)
	return out
}

// lookup finds an image by id, reference, digest or a prefix of the id that
// only one image has.
func (x *index) lookup(ref string) (*Image, error) {
	x.mu.RLock()
	defer x.mu.RUnlock()
	if img, ok := x.images[ref]; ok {
		return img, nil
	}
	if id, ok := x.refs[ref]; ok {
		return x.images[id], nil
	}
	if named, err := reference.ParseDockerRef(ref); err == nil {
		if id, ok := x.refs[named.String()]; ok {
			return x.images[id], nil
		}
	}
	return x.byPrefix(ref)
}

// byPrefix finds an image by the beginning of its id; mu is held.
func (x *index) byPrefix(ref string) (*Image, error) {
	hex := strings.TrimPrefix(ref, "sha256:")
	if hex == "" || strings.Trim(hex, "0123456789abcdef") != "" {
		return nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	var found *Image
	for id, img := range x.images {
		if !strings.HasPrefix(id, "sha256:"+hex) {
			continue
		}
		if found != nil {
			return nil, fmt.Errorf("image id %q is the beginning of several: %w", ref, errdefs.ErrInvalidArgument)
		}
		found = img
	}
	if found == nil {
		return nil, fmt.Errorf("image %q: %w", ref, errdefs.ErrNotFound)
	}
	return found, nil
}
