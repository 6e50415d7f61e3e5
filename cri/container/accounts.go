// SPDX-License-Identifier: Apache-2.0

package container

import (
	"bytes"
	"errors"
	"io"
	"io/fs"
	"sync"

	"github.com/nodeagent/nodeagent/cri/spec"
)

// Every container's user is looked up in its image's /etc/passwd, and to read that the image is mounted and unmounted, which is a
// third of a CreateContainer. What the files say depends on nothing but the image's layers, so it is remembered by their chain.

// Bounds of what is remembered: an image more makes room by forgetting all, a larger file is read each time.
const (
	maxImagesKnown = 64
	maxFileKnown   = 64 << 10
)

// accountFiles remembers files of images. The zero value is ready.
type accountFiles struct {
	mu sync.Mutex // guards known
	// known are files by image and name; nil for one that the image does not have.
	known map[string]map[string]*knownFile
}

type knownFile struct {
	data []byte
	info fs.FileInfo
}

func (a *accountFiles) get(image, name string) (f *knownFile, ok bool) {
	a.mu.Lock()
	defer a.mu.Unlock()
	f, ok = a.known[image][name]
	return f, ok
}

func (a *accountFiles) put(image, name string, f *knownFile) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.known == nil || a.known[image] == nil && len(a.known) >= maxImagesKnown {
		a.known = map[string]map[string]*knownFile{}
	}
	if a.known[image] == nil {
		a.known[image] = map[string]*knownFile{}
	}
	a.known[image][name] = f
}

// rememberedRoot is an image's root of which files are remembered once they were read. It resolves links inside the image itself.
type rememberedRoot struct {
	files *accountFiles
	image string // what files are remembered by; "" for not at all
	root  fs.ReadLinkFS
}

var _ fs.FS = rememberedRoot{}

// Open opens a file of the image, from memory if it was read before.
func (r rememberedRoot) Open(name string) (fs.File, error) {
	if r.image == "" {
		return spec.OpenInside(r.root, name)
	}
	if f, ok := r.files.get(r.image, name); ok {
		if f == nil {
			return nil, &fs.PathError{Op: "open", Path: name, Err: fs.ErrNotExist}
		}
		return f.open(), nil
	}
	file, err := spec.OpenInside(r.root, name)
	if errors.Is(err, fs.ErrNotExist) {
		r.files.put(r.image, name, nil)
	}
	if err != nil {
		return nil, err
	}
	info, err := file.Stat()
	if err != nil || !info.Mode().IsRegular() || info.Size() > maxFileKnown {
		return file, nil // who reads it will see
	}
	defer func() { _ = file.Close() }()
	data, err := io.ReadAll(file)
	if err != nil {
		return nil, err
	}
	f := &knownFile{data: data, info: info}
	r.files.put(r.image, name, f)
	return f.open(), nil
}

func (f *knownFile) open() fs.File { return &openKnown{Reader: bytes.NewReader(f.data), info: f.info} }

// openKnown is a remembered file that is being read.
type openKnown struct {
	*bytes.Reader
	info fs.FileInfo
}

// Stat describes the file as it was in the image.
func (o *openKnown) Stat() (fs.FileInfo, error) { return o.info, nil }

// Close has nothing to do.
func (o *openKnown) Close() error { return nil }
