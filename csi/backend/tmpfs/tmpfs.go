// SPDX-License-Identifier: Apache-2.0

// Package tmpfs keeps volumes in memory: a file system of its own per volume, with a
// hard size. It is mounted in the volume's directory from its first use to its
// deletion, so that contents outlive pods and the daemon, and die with the boot.
// What a pod writes is charged to the pod's memory, and to its parent's when the
// pod has gone.
package tmpfs

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// Backend mounts a tmpfs per volume.
type Backend struct {
	// meminfo is /proc/meminfo.
	meminfo string
	// noSwap says whether this kernel keeps the pages out of swap; set by Probe.
	noSwap bool
}

var _ backend.Backend = (*Backend)(nil)

// New returns the backend.
func New() *Backend { return &Backend{meminfo: "/proc/meminfo"} }

// Probe asks the kernel whether it has tmpfs, and noswap.
func (b *Backend) Probe(context.Context) (backend.Features, error) {
	f := backend.Features{HardLimit: true, Reserve: true, Mount: true, OnlineGrow: true, OwnSuperblock: true, MinBytes: 64 << 10}
	if err := mount.ProbeFS("tmpfs", "size=1m"); err != nil {
		return f, fmt.Errorf("tmpfs: %w: %w", backend.ErrNotSupported, err)
	}
	b.noSwap = mount.ProbeFS("tmpfs", "noswap") == nil
	if !b.noSwap {
		f.Notes = append(f.Notes, "no noswap: contents may reach the swap device")
	}
	return f, nil
}

// Space is the machine's memory.
func (b *Backend) Space(context.Context) (backend.Space, error) {
	f, err := os.Open(b.meminfo)
	if err != nil {
		return backend.Space{}, err
	}
	defer func() { _ = f.Close() }()
	var s backend.Space
	for sc := bufio.NewScanner(f); sc.Scan(); {
		fields := strings.Fields(sc.Text())
		if len(fields) < 2 {
			continue
		}
		n, err := strconv.ParseInt(fields[1], 10, 64)
		if err != nil {
			continue
		}
		switch fields[0] {
		case "MemTotal:":
			s.Total = n << 10
		case "MemAvailable:":
			s.Free = n << 10
		}
	}
	return s, nil
}

// memory is where, in the volume's directory, its memory is mounted; data is the
// volume's root, one level below. The kubelet takes another mount of the same root
// for a user of the volume, and would never unstage it.
func memory(o backend.Object) string { return filepath.Join(o.Dir, "memory") }
func data(o backend.Object) string   { return filepath.Join(memory(o), "data") }

// Create makes the place for the memory.
func (b *Backend) Create(_ context.Context, obj backend.Object, from *backend.Object) error {
	if from != nil {
		return fmt.Errorf("copy %s: %w", from.ID, backend.ErrNotSupported)
	}
	if err := os.Mkdir(memory(obj), 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return fmt.Errorf("create %s: %w", obj.ID, err)
	}
	return nil
}

// Destroy gives the memory back.
func (b *Backend) Destroy(_ context.Context, obj backend.Object) error {
	err := mount.Unmount(memory(obj))
	if errors.Is(err, mount.ErrBusy) || errors.Is(err, unix.EBUSY) {
		return fmt.Errorf("%w: %w", backend.ErrBusy, err)
	}
	return err
}

// Grow has nothing to do before Refresh.
func (b *Backend) Grow(context.Context, backend.Object) error { return nil }

// mounted says whether the volume's memory is there.
func (b *Backend) mounted(obj backend.Object) (bool, error) {
	at, err := mount.At(memory(obj))
	return at.Mounted, err
}

// Usage measures a volume in memory; one that is not there yet may still ask for all.
func (b *Backend) Usage(_ context.Context, obj backend.Object, _ bool) (backend.Usage, error) {
	if there, err := b.mounted(obj); err != nil || !there {
		return backend.Usage{Debt: obj.Bytes}, err
	}
	s, err := mount.StatSpace(memory(obj))
	if err != nil {
		return backend.Usage{}, err
	}
	used := s.Total - s.Free
	return backend.Usage{Allocated: used, Debt: max(obj.Bytes-used, 0)}, nil
}

// unowned is the mode of a fresh volume's root: whoever stages it sets another.
const unowned = 0

// Attach makes the memory, unless it is there, and says where.
func (b *Backend) Attach(ctx context.Context, obj backend.Object, _ backend.AttachOptions) (*backend.Attachment, error) {
	there, err := b.mounted(obj)
	switch {
	case err != nil:
		return nil, err
	case there:
		err = b.Refresh(ctx, obj) // it may have grown while nobody used it
	default:
		opts := []string{"size=" + strconv.FormatInt(obj.Bytes, 10), "mode=0700"}
		if b.noSwap {
			opts = append(opts, "noswap")
		}
		err = mount.Mount(mount.FS{Type: "tmpfs", Source: "nodeagent-" + obj.ID, Options: opts}, memory(obj))
	}
	if err != nil {
		return nil, err
	}
	if err := os.Mkdir(data(obj), unowned); err != nil && !errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("make root of %s: %w", obj.ID, err)
	}
	st, err := os.Stat(data(obj))
	if err != nil {
		return nil, err
	}
	return &backend.Attachment{Kind: backend.Directory, Path: data(obj), Fresh: st.Mode().Perm() == unowned}, nil
}

// Attached says whether the memory is there.
func (b *Backend) Attached(_ context.Context, obj backend.Object) ([]*backend.Attachment, error) {
	there, err := b.mounted(obj)
	if err != nil || !there {
		return nil, err
	}
	return []*backend.Attachment{{Kind: backend.Directory, Path: data(obj)}}, nil
}

// Refresh gives the memory its new size.
func (b *Backend) Refresh(_ context.Context, obj backend.Object) error {
	there, err := b.mounted(obj)
	if err != nil || !there {
		return err
	}
	return mount.Reconfigure(memory(obj), "size", strconv.FormatInt(obj.Bytes, 10))
}

// Detach leaves the memory where it is: it is the volume's data.
func (b *Backend) Detach(context.Context, backend.Object) error { return nil }

// Check has nothing to look at.
func (b *Backend) Check(context.Context, backend.Object) error { return nil }
