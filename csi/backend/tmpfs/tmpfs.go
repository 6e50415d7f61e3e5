// SPDX-License-Identifier: Apache-2.0

// Package tmpfs keeps volumes in memory: a file system of its own per volume,
// with a hard size, gone with its last unstage. For caches and inline volumes.
// What a pod writes is charged to the pod's memory.
package tmpfs

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"strconv"
	"strings"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// Backend mounts a tmpfs per volume. There is no payload on disk.
type Backend struct {
	// meminfo is /proc/meminfo.
	meminfo string
	// noSwap says whether this kernel keeps the pages out of swap; set by Probe.
	noSwap bool
}

var _ backend.Backend = (*Backend)(nil)

// New returns the backend.
func New() *Backend { return &Backend{meminfo: "/proc/meminfo"} }

// source is the mount's source: how a mount is known to be a volume's.
func source(o backend.Object) string { return "nodeagent-" + o.ID + "-" + o.Handle }

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

// Create has nothing to keep.
func (b *Backend) Create(_ context.Context, obj backend.Object, from *backend.Object) error {
	if from != nil {
		return fmt.Errorf("copy %s: %w", from.ID, backend.ErrNotSupported)
	}
	return nil
}

// Destroy has nothing to remove.
func (b *Backend) Destroy(context.Context, backend.Object) error { return nil }

// Grow has nothing to do before Refresh.
func (b *Backend) Grow(context.Context, backend.Object) error { return nil }

// Usage measures a mounted volume; one that is not mounted may still ask for all.
func (b *Backend) Usage(_ context.Context, obj backend.Object, _ bool) (backend.Usage, error) {
	points, err := b.points(obj)
	if err != nil || len(points) == 0 {
		return backend.Usage{Debt: obj.Bytes}, err
	}
	s, err := mount.StatSpace(points[0])
	if err != nil {
		return backend.Usage{}, err
	}
	used := s.Total - s.Free
	return backend.Usage{Allocated: used, Debt: max(obj.Bytes-used, 0)}, nil
}

func (b *Backend) points(obj backend.Object) ([]string, error) {
	all, err := mount.Table("")
	if err != nil {
		return nil, err
	}
	var out []string
	for _, e := range all {
		if e.Type == "tmpfs" && e.Source == source(obj) {
			out = append(out, e.Point)
		}
	}
	return out, nil
}

// Attach says how to mount the volume. Someone who stages it again gets an empty
// one: memory does not survive its last user.
func (b *Backend) Attach(_ context.Context, obj backend.Object, o backend.AttachOptions) (*backend.Attachment, error) {
	opts := []string{"size=" + strconv.FormatInt(obj.Bytes, 10), "mode=0755"}
	if b.noSwap {
		opts = append(opts, "noswap")
	}
	return &backend.Attachment{Kind: backend.Filesystem, Path: source(obj), FSType: "tmpfs", Options: opts}, nil
}

// Attached says whether the volume is mounted anywhere.
func (b *Backend) Attached(_ context.Context, obj backend.Object) ([]*backend.Attachment, error) {
	points, err := b.points(obj)
	if err != nil || len(points) == 0 {
		return nil, err
	}
	return []*backend.Attachment{{Kind: backend.Filesystem, Path: source(obj), FSType: "tmpfs"}}, nil
}

// Refresh gives a mounted volume its new size.
func (b *Backend) Refresh(_ context.Context, obj backend.Object) error {
	points, err := b.points(obj)
	if err != nil || len(points) == 0 {
		return err
	}
	return mount.Reconfigure(points[0], "size", strconv.FormatInt(obj.Bytes, 10))
}

// Detach has nothing to do.
func (b *Backend) Detach(context.Context, backend.Object) error { return nil }

// Check has nothing to look at.
func (b *Backend) Check(context.Context, backend.Object) error { return nil }
