// SPDX-License-Identifier: Apache-2.0

// Package checkpoint knows the archive of a container's checkpoint, the one that
// CRI-O, containerd and Podman write and checkpointctl shows: a tar of what CRIU
// dumped, of what the container had written, and of who it was.
//
// It promises never to write over an archive, to leave none behind that is not
// whole, and to take nothing out of a stranger's archive but regular files at
// the places that it knows.
package checkpoint

import (
	"archive/tar"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	metadata "github.com/checkpoint-restore/checkpointctl/lib"
	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// AnnotationName marks the manifest of an image that holds an archive's files.
const AnnotationName = metadata.CheckpointAnnotationName

// Names in an archive beside those that CRIU gives.
const (
	Config     = metadata.ConfigDumpFile
	Spec       = metadata.SpecDumpFile
	Status     = metadata.StatusDumpFile
	Images     = metadata.CheckpointDirectory
	RootFSDiff = metadata.RootFsDiffTar
	Log        = "container.log"
)

// ContainerConfig says of which container and image the checkpoint is.
type ContainerConfig = metadata.ContainerConfig

// Write makes the archive at location of the files in dir. It ends early with ctx.
func Write(ctx context.Context, location, dir string) (retErr error) {
	out, err := os.OpenFile(location, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if errors.Is(err, fs.ErrExist) {
		return fmt.Errorf("archive %s exists: %w", location, errdefs.ErrAlreadyExists)
	}
	if err != nil {
		return fmt.Errorf("make archive: %w: %w", err, errdefs.ErrInvalidArgument)
	}
	defer func() {
		if err := out.Close(); err != nil {
			retErr = errors.Join(retErr, fmt.Errorf("write archive %s: %w", location, err))
		}
		if retErr != nil {
			retErr = errors.Join(retErr, os.Remove(location))
		}
	}()
	w := tar.NewWriter(out)
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("read checkpoint: %w", err)
	}
	defer root.Close() //nolint:errcheck // read-only
	err = fs.WalkDir(root.FS(), ".", func(name string, e fs.DirEntry, err error) error {
		if err == nil {
			err = ctx.Err()
		}
		if err != nil || name == "." {
			return err
		}
		return add(w, root, name, e)
	})
	if err != nil {
		return fmt.Errorf("write archive %s: %w", location, err)
	}
	return w.Close()
}

// add writes one directory or file.
func add(w *tar.Writer, root *os.Root, name string, e fs.DirEntry) error {
	info, err := e.Info()
	if err != nil {
		return err
	}
	h, err := tar.FileInfoHeader(info, "")
	if err != nil {
		return err
	}
	h.Name, h.Uname, h.Gname = name, "", ""
	if e.IsDir() {
		h.Name += "/"
		return w.WriteHeader(h)
	}
	if !info.Mode().IsRegular() {
		return nil // criu leaves sockets behind
	}
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close() //nolint:errcheck // read-only
	if err := w.WriteHeader(h); err != nil {
		return err
	}
	_, err = io.CopyN(w, f, h.Size)
	return err
}

// ReadConfig reads of which container an archive, or a directory of its files, is.
func ReadConfig(location string) (*ContainerConfig, error) {
	var c ContainerConfig
	return &c, read(location, Config, &c)
}

// ReadSpec reads the specification of an archive's container.
func ReadSpec(location string) (*specs.Spec, error) {
	var s specs.Spec
	return &s, read(location, Spec, &s)
}

// maxMetadata is the largest description that is read.
const maxMetadata = 8 << 20

// read decodes a JSON file of an archive or directory.
func read(location, name string, v any) error {
	info, err := os.Stat(location)
	if err != nil {
		return fmt.Errorf("checkpoint: %w: %w", err, errdefs.ErrNotFound)
	}
	if info.IsDir() {
		_, err := metadata.ReadJSONFile(v, location, name)
		if err != nil {
			return fmt.Errorf("checkpoint %s: %w: %w", location, err, errdefs.ErrInvalidArgument)
		}
		return nil
	}
	f, err := os.Open(location)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	defer f.Close() //nolint:errcheck // read-only
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if err != nil {
			return fmt.Errorf("checkpoint %s has no %s: %w: %w", location, name, err, errdefs.ErrInvalidArgument)
		}
		if path.Clean(h.Name) != name || h.Typeflag != tar.TypeReg {
			continue
		}
		if err := json.NewDecoder(io.LimitReader(r, maxMetadata)).Decode(v); err != nil {
			return fmt.Errorf("checkpoint %s: %s: %w: %w", location, name, err, errdefs.ErrInvalidArgument)
		}
		return nil
	}
}

// Unpack puts an archive's files into dir, which must exist: the description,
// the diff, and CRIU's images. Whatever else is in there stays there.
func Unpack(ctx context.Context, location, dir string) error {
	f, err := os.Open(location)
	if err != nil {
		return fmt.Errorf("checkpoint: %w", err)
	}
	defer f.Close() //nolint:errcheck // read-only
	root, err := os.OpenRoot(dir)
	if err != nil {
		return fmt.Errorf("unpack checkpoint: %w", err)
	}
	defer root.Close() //nolint:errcheck // a directory
	if err := root.MkdirAll(Images, 0o700); err != nil {
		return fmt.Errorf("unpack checkpoint: %w", err)
	}
	for r := tar.NewReader(f); ; {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = ctx.Err()
		}
		if err != nil {
			return fmt.Errorf("unpack checkpoint %s: %w", location, err)
		}
		name := path.Clean(h.Name)
		if h.Typeflag != tar.TypeReg || !known(name) {
			continue
		}
		if err := put(root, name, r); err != nil {
			return fmt.Errorf("unpack checkpoint %s: %w", location, err)
		}
	}
}

// known tells whether a file is one that a restore needs.
func known(name string) bool {
	dir, file := path.Split(name)
	if dir == Images+"/" {
		return filepath.IsLocal(file)
	}
	return dir == "" && (file == RootFSDiff || strings.HasSuffix(file, ".dump"))
}

func put(root *os.Root, name string, r io.Reader) error {
	f, err := root.OpenFile(name, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
