// SPDX-License-Identifier: Apache-2.0

package archive

import (
	"archive/tar"
	"bytes"
	"cmp"
	"compress/gzip"
	"fmt"
	"path"
	"slices"
	"strings"
	"time"
)

// File is one file of a package or image.
type File struct {
	// Path is absolute.
	Path string
	// Mode is the permission; 0 means 0644.
	Mode int64
	Data []byte
}

// tarball is a tar of files with their directories, sorted, all root's. dot
// writes names as "./usr/bin", as dpkg does.
func tarball(files []File, when time.Time, dot bool) ([]byte, error) {
	files = slices.Clone(files)
	slices.SortFunc(files, func(a, b File) int { return cmp.Compare(a.Path, b.Path) })
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	name := func(p string) string {
		p = strings.TrimPrefix(p, "/")
		if dot {
			return "./" + p
		}
		return p
	}
	if err := check(files); err != nil {
		return nil, err
	}
	seen := map[string]bool{"/": true}
	if dot {
		if err := w.WriteHeader(header("./", tar.TypeDir, 0o755, 0, when)); err != nil {
			return nil, err
		}
	}
	for _, f := range files {
		for _, dir := range parents(f.Path) {
			if seen[dir] {
				continue
			}
			seen[dir] = true
			if err := w.WriteHeader(header(name(dir)+"/", tar.TypeDir, 0o755, 0, when)); err != nil {
				return nil, err
			}
		}
		mode := f.Mode
		if mode == 0 {
			mode = 0o644
		}
		if err := w.WriteHeader(header(name(f.Path), tar.TypeReg, mode, int64(len(f.Data)), when)); err != nil {
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

// check looks at sorted files.
func check(files []File) error {
	for i, f := range files {
		if !path.IsAbs(f.Path) || path.Clean(f.Path) != f.Path {
			return fmt.Errorf("archive %q: not a clean absolute path", f.Path)
		}
		if i > 0 && files[i-1].Path == f.Path {
			return fmt.Errorf("archive %s: it is there twice", f.Path)
		}
	}
	return nil
}

func header(name string, kind byte, mode, size int64, when time.Time) *tar.Header {
	return &tar.Header{
		Name: name, Typeflag: kind, Mode: mode, Size: size, ModTime: when,
		Uname: "root", Gname: "root", Format: tar.FormatGNU,
	}
}

// parents are the directories above a path, the highest first.
func parents(p string) []string {
	var out []string
	for dir := path.Dir(p); dir != "/"; dir = path.Dir(dir) {
		out = append(out, dir)
	}
	slices.Reverse(out)
	return out
}

// compress is gzip without a name or time.
func compress(data []byte) ([]byte, error) {
	var buf bytes.Buffer
	w, err := gzip.NewWriterLevel(&buf, gzip.BestCompression)
	if err != nil {
		return nil, err
	}
	if _, err := w.Write(data); err != nil {
		return nil, err
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}

// Tgz is a compressed tar of files, as Helm charts are.
func Tgz(files []File, when time.Time) ([]byte, error) {
	data, err := tarball(files, when, false)
	if err != nil {
		return nil, err
	}
	return compress(data)
}
