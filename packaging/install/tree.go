// SPDX-License-Identifier: Apache-2.0

package install

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"iter"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// recordPath is what was installed on a node.
const recordPath = "/var/lib/nodeagent/install.json"

const recordVersion = 1

// record is what was installed, with the hash of each file.
type record struct {
	Format  int               `json:"format"`
	Version string            `json:"version"`
	Mode    Mode              `json:"mode"`
	Files   map[string]string `json:"files"`
}

// tree is the node's file system. A symbolic link on the way is followed within
// root only, so that a node seen from a pod stays within its mount.
type tree struct{ root string }

// open is the directory that all is relative to.
func (t tree) open() (*os.Root, error) {
	r, err := os.OpenRoot(t.root)
	if err != nil {
		return nil, fmt.Errorf("open root of the node: %w", err)
	}
	return r, nil
}

// rel is a node's path relative to its root.
func rel(path string) string { return filepath.Clean("." + path) }

func (t tree) read(path string) ([]byte, error) {
	r, err := t.open()
	if err != nil {
		return nil, err
	}
	defer func() { _ = r.Close() }()
	return r.ReadFile(rel(path))
}

func (t tree) exists(path string) bool {
	r, err := t.open()
	if err != nil {
		return false
	}
	defer func() { _ = r.Close() }()
	_, err = r.Stat(rel(path))
	return err == nil
}

// put writes a file if it differs: whole or not at all.
func (t tree) put(f file) (Change, error) {
	r, err := t.open()
	if err != nil {
		return Change{}, err
	}
	defer func() { _ = r.Close() }()
	path := rel(f.path)
	have, err := r.ReadFile(path)
	switch {
	case err == nil && f.once && !bytes.Equal(have, f.data):
		return Change{Path: f.path, Action: "kept", Why: "it is there"}, nil
	case err == nil && bytes.Equal(have, f.data):
		if info, err := r.Stat(path); err == nil && info.Mode().Perm() == f.mode {
			return Change{Path: f.path, Action: "unchanged"}, nil
		}
	case err != nil && !errors.Is(err, fs.ErrNotExist):
		return Change{}, fmt.Errorf("read %s: %w", f.path, err)
	}
	action := "updated"
	if err != nil {
		action = "created"
	}
	if err := r.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return Change{}, fmt.Errorf("make directory of %s: %w", f.path, err)
	}
	if err := writeWhole(r, path, f.data, f.mode); err != nil {
		return Change{}, fmt.Errorf("write %s: %w", f.path, err)
	}
	return Change{Path: f.path, Action: action}, nil
}

// writeWhole writes beside, syncs and renames: a program that runs keeps its
// old file.
func writeWhole(r *os.Root, path string, data []byte, mode os.FileMode) (retErr error) {
	tmp := filepath.Join(filepath.Dir(path), "."+filepath.Base(path)+".new")
	f, err := r.OpenFile(tmp, os.O_CREATE|os.O_WRONLY|os.O_TRUNC, mode)
	if err != nil {
		return err
	}
	defer func() {
		if retErr != nil {
			_ = r.Remove(tmp)
		}
	}()
	_, werr := f.Write(data)
	if err := errors.Join(werr, f.Chmod(mode), f.Sync(), f.Close()); err != nil {
		return err
	}
	return r.Rename(tmp, path)
}

// remove takes a file off that is as it was installed.
func (t tree) remove(path, sum string, purge bool) (Change, error) {
	r, err := t.open()
	if err != nil {
		return Change{}, err
	}
	defer func() { _ = r.Close() }()
	have, err := r.ReadFile(rel(path))
	if errors.Is(err, fs.ErrNotExist) {
		return Change{Path: path, Action: "unchanged"}, nil
	}
	if err != nil {
		return Change{}, fmt.Errorf("read %s: %w", path, err)
	}
	if hash(have) != sum && !purge {
		return Change{Path: path, Action: "kept", Why: "it was changed since"}, nil
	}
	if err := r.Remove(rel(path)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return Change{}, fmt.Errorf("remove %s: %w", path, err)
	}
	return Change{Path: path, Action: "removed"}, nil
}

func (t tree) readRecord() (record, error) {
	rec := record{Format: recordVersion, Files: map[string]string{}}
	data, err := t.read(recordPath)
	if errors.Is(err, fs.ErrNotExist) {
		return rec, nil
	}
	if err != nil {
		return rec, fmt.Errorf("read what was installed: %w", err)
	}
	if err := json.Unmarshal(data, &rec); err != nil {
		return rec, fmt.Errorf("read what was installed: %s: %w", recordPath, err)
	}
	if rec.Format > recordVersion {
		return rec, fmt.Errorf("%s has format %d, this build knows %d: it was written by a newer nodeagent", recordPath, rec.Format, recordVersion)
	}
	if rec.Files == nil {
		rec.Files = map[string]string{}
	}
	return rec, nil
}

func (t tree) writeRecord(rec record) error {
	data, err := json.MarshalIndent(rec, "", "  ")
	if err != nil {
		return err
	}
	_, err = t.put(file{path: recordPath, mode: 0o644, data: append(data, '\n')})
	return err
}

func (t tree) removeRecord() error {
	r, err := t.open()
	if err != nil {
		return err
	}
	defer func() { _ = r.Close() }()
	if err := r.Remove(rel(recordPath)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("remove %s: %w", recordPath, err)
	}
	return nil
}

func hash(data []byte) string {
	sum := sha256.Sum256(data)
	return hex.EncodeToString(sum[:])
}

// sorted goes through a map in the order of its keys.
func sorted(m map[string]string) iter.Seq2[string, string] {
	return func(yield func(string, string) bool) {
		for _, k := range slices.Sorted(maps.Keys(m)) {
			if !yield(k, m[k]) {
				return
			}
		}
	}
}
