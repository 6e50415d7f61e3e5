// SPDX-License-Identifier: Apache-2.0

// Package lvm keeps payloads in logical volumes: thick ones in a volume group,
// or thin ones in a thin pool, where snapshots share blocks. It needs device
// mapper in the kernel and the lvm program; the probe refuses a pool without.
//
// A logical volume is named na-<handle>: unique per creation, so that one that
// is being destroyed is never taken for its namesake.
package lvm

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/backend"
	"github.com/nodeagent/nodeagent/csi/mount"
)

// Runner executes one lvm command and returns what it printed on stdout.
type Runner func(ctx context.Context, args ...string) ([]byte, error)

// Backend keeps logical volumes in one group.
type Backend struct {
	group, thin string
	lvm         Runner
}

var (
	_ backend.Backend     = (*Backend)(nil)
	_ backend.Snapshotter = (*Backend)(nil)
)

// New returns the backend of a volume group, thin when a thin pool is named. run
// is nil outside tests.
func New(group, thinPool string, run Runner) *Backend {
	if run == nil {
		run = command
	}
	return &Backend{group: group, thin: thinPool, lvm: run}
}

func command(ctx context.Context, args ...string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, "lvm", args...)
	cmd.Env = append(os.Environ(), "LC_ALL=C", "LVM_SUPPRESS_FD_WARNINGS=1")
	var stderr strings.Builder
	cmd.Stderr = &stderr
	out, err := cmd.Output()
	if err != nil {
		return out, fmt.Errorf("lvm %s: %w: %s", args[0], err, strings.Join(strings.Fields(stderr.String()), " "))
	}
	return out, nil
}

func name(o backend.Object) string              { return "na-" + o.Handle }
func (b *Backend) path(o backend.Object) string { return "/dev/" + b.group + "/" + name(o) }
func (b *Backend) full(o backend.Object) string { return b.group + "/" + name(o) }

// Probe looks for device mapper, the program, and the group.
func (b *Backend) Probe(ctx context.Context) (backend.Features, error) {
	f := backend.Features{
		HardLimit: true, Reserve: b.thin == "", Block: true, Mount: true, OnlineGrow: true, OwnSuperblock: true, DirectIO: true,
		Snapshots: b.thin != "", Instant: b.thin != "", MinBytes: 4 << 20,
	}
	if _, err := os.Stat("/dev/mapper/control"); err != nil {
		return f, fmt.Errorf("no device mapper in this kernel: %w", backend.ErrNotSupported)
	}
	if _, err := b.Space(ctx); err != nil {
		return f, fmt.Errorf("volume group %s: %w: %w", b.group, backend.ErrNotSupported, err)
	}
	return f, nil
}

// report is what lvm's --reportformat json prints.
type report struct {
	Report []map[string][]map[string]string `json:"report"`
}

// rows runs a reporting command and returns its rows.
func (b *Backend) rows(ctx context.Context, kind string, args ...string) ([]map[string]string, error) {
	out, err := b.lvm(ctx, append([]string{kind + "s", "--reportformat", "json", "--units", "b", "--nosuffix"}, args...)...)
	if err != nil {
		return nil, err
	}
	var r report
	if err := json.Unmarshal(out, &r); err != nil {
		return nil, fmt.Errorf("lvm %ss: %w", kind, err)
	}
	var rows []map[string]string
	for _, part := range r.Report {
		rows = append(rows, part[kind]...)
	}
	return rows, nil
}

// Space reads the group, or the thin pool.
func (b *Backend) Space(ctx context.Context) (backend.Space, error) {
	if b.thin != "" {
		return b.thinSpace(ctx)
	}
	rows, err := b.rows(ctx, "vg", "-o", "vg_size,vg_free", b.group)
	if err != nil {
		return backend.Space{}, err
	}
	if len(rows) != 1 {
		return backend.Space{}, fmt.Errorf("volume group %s: %d rows", b.group, len(rows))
	}
	total, err1 := strconv.ParseInt(rows[0]["vg_size"], 10, 64)
	free, err2 := strconv.ParseInt(rows[0]["vg_free"], 10, 64)
	return backend.Space{Total: total, Free: free}, errors.Join(err1, err2)
}

func (b *Backend) thinSpace(ctx context.Context) (backend.Space, error) {
	rows, err := b.rows(ctx, "lv", "-o", "lv_size,data_percent", b.group+"/"+b.thin)
	if err != nil {
		return backend.Space{}, err
	}
	if len(rows) != 1 {
		return backend.Space{}, fmt.Errorf("thin pool %s/%s: %d rows", b.group, b.thin, len(rows))
	}
	total, err1 := strconv.ParseInt(rows[0]["lv_size"], 10, 64)
	used, err2 := strconv.ParseFloat(rows[0]["data_percent"], 64)
	return backend.Space{Total: total, Free: int64(float64(total) * (100 - used) / 100)}, errors.Join(err1, err2)
}

// exists says whether the logical volume is there, and its size.
func (b *Backend) exists(ctx context.Context, obj backend.Object) (size int64, ok bool, err error) {
	rows, err := b.rows(ctx, "lv", "-o", "lv_name,lv_size", "-S", "vg_name="+b.group+" && lv_name="+name(obj))
	if err != nil || len(rows) == 0 {
		return 0, false, err
	}
	size, err = strconv.ParseInt(rows[0]["lv_size"], 10, 64)
	return size, true, err
}

// recorded makes the object's directory durable before a logical volume exists
// that only its record knows.
func recorded(obj backend.Object) error {
	if obj.Dir == "" {
		return nil
	}
	return errors.Join(mount.SyncDir(obj.Dir), mount.SyncDir(filepath.Dir(obj.Dir)))
}

// Create makes the logical volume. A thick one is zeroed: the extents may have
// been somebody else's.
func (b *Backend) Create(ctx context.Context, obj backend.Object, from *backend.Object) error {
	if err := errors.Join(b.Destroy(ctx, obj), recorded(obj)); err != nil {
		return err
	}
	size := strconv.FormatInt(obj.Bytes, 10) + "b"
	switch {
	case from != nil && b.thin == "":
		return fmt.Errorf("copy %s: thick logical volumes have no snapshots: %w", from.ID, backend.ErrNotSupported)
	case from != nil:
		if err := b.snapshot(ctx, *from, obj); err != nil {
			return err
		}
		if from.Bytes < obj.Bytes {
			return b.Grow(ctx, obj)
		}
		return nil
	case b.thin != "":
		_, err := b.lvm(ctx, "lvcreate", "-y", "-n", name(obj), "-V", size, "--thinpool", b.thin, "--addtag", "nodeagent", b.group)
		return space(err)
	}
	if _, err := b.lvm(ctx, "lvcreate", "-y", "-W", "y", "-n", name(obj), "-L", size, "--addtag", "nodeagent", b.group); err != nil {
		return space(err)
	}
	return mount.ZeroDevice(b.path(obj))
}

func (b *Backend) snapshot(ctx context.Context, src, dst backend.Object) error {
	_, err := b.lvm(ctx, "lvcreate", "-y", "-s", "-n", name(dst), "-kn", "--addtag", "nodeagent", b.full(src))
	return space(err)
}

// Snapshot makes a thin snapshot.
func (b *Backend) Snapshot(ctx context.Context, src, dst backend.Object) error {
	if b.thin == "" {
		return fmt.Errorf("snapshot %s: thick logical volumes have none: %w", src.ID, backend.ErrNotSupported)
	}
	if err := errors.Join(b.Destroy(ctx, dst), recorded(dst)); err != nil {
		return err
	}
	return b.snapshot(ctx, src, dst)
}

// Destroy removes the logical volume.
func (b *Backend) Destroy(ctx context.Context, obj backend.Object) error {
	if obj.Handle == "" {
		return nil // never got as far as a logical volume
	}
	_, ok, err := b.exists(ctx, obj)
	if err != nil || !ok {
		return err
	}
	if _, err := b.lvm(ctx, "lvremove", "-f", b.full(obj)); err != nil {
		if strings.Contains(err.Error(), "in use") {
			return fmt.Errorf("%w: %w", backend.ErrBusy, err)
		}
		return err
	}
	return nil
}

// Grow extends the logical volume; devices see it at once.
func (b *Backend) Grow(ctx context.Context, obj backend.Object) error {
	size, ok, err := b.exists(ctx, obj)
	if err != nil {
		return err
	}
	if !ok {
		return fmt.Errorf("grow %s: %w", obj.ID, backend.ErrMissing)
	}
	if size >= obj.Bytes {
		return nil
	}
	_, err = b.lvm(ctx, "lvextend", "-L", strconv.FormatInt(obj.Bytes, 10)+"b", b.full(obj))
	return space(err)
}

// Usage of a thick volume is its size; a thin one owes what it has not written.
func (b *Backend) Usage(ctx context.Context, obj backend.Object, _ bool) (backend.Usage, error) {
	if b.thin == "" {
		return backend.Usage{Allocated: obj.Bytes}, nil
	}
	rows, err := b.rows(ctx, "lv", "-o", "data_percent", b.full(obj))
	if err != nil || len(rows) != 1 {
		return backend.Usage{Debt: obj.Bytes}, err
	}
	used, err := strconv.ParseFloat(rows[0]["data_percent"], 64)
	taken := int64(float64(obj.Bytes) * used / 100)
	return backend.Usage{Allocated: taken, Debt: obj.Bytes - taken}, err
}

// Attach activates the logical volume.
func (b *Backend) Attach(ctx context.Context, obj backend.Object, o backend.AttachOptions) (*backend.Attachment, error) {
	if o.ReadOnly {
		return nil, fmt.Errorf("a read-only device beside a writable one on the same logical volume: %w", backend.ErrNotSupported)
	}
	if err := b.Check(ctx, obj); err != nil {
		return nil, err
	}
	if _, err := b.lvm(ctx, "lvchange", "-ay", "-K", b.full(obj)); err != nil {
		return nil, err
	}
	all, err := b.Attached(ctx, obj)
	if err == nil && len(all) == 0 {
		err = fmt.Errorf("device of %s: %w", obj.ID, backend.ErrMissing)
	}
	if err != nil {
		return nil, err
	}
	return all[0], nil
}

// Attached says whether the logical volume is active.
func (b *Backend) Attached(_ context.Context, obj backend.Object) ([]*backend.Attachment, error) {
	var st unix.Stat_t
	err := unix.Stat(b.path(obj), &st)
	if errors.Is(err, unix.ENOENT) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("device of %s: %w", obj.ID, err)
	}
	return []*backend.Attachment{{Kind: backend.Device, Path: b.path(obj), Rdev: st.Rdev}}, nil
}

// Refresh has nothing to do.
func (b *Backend) Refresh(context.Context, backend.Object) error { return nil }

// Detach deactivates the logical volume.
func (b *Backend) Detach(ctx context.Context, obj backend.Object) error {
	if all, err := b.Attached(ctx, obj); err != nil || len(all) == 0 {
		return err
	}
	if _, err := b.lvm(ctx, "lvchange", "-an", b.full(obj)); err != nil {
		if strings.Contains(err.Error(), "in use") {
			return fmt.Errorf("%w: %w", backend.ErrBusy, err)
		}
		return err
	}
	return nil
}

// Check compares the logical volume with what was promised.
func (b *Backend) Check(ctx context.Context, obj backend.Object) error {
	size, ok, err := b.exists(ctx, obj)
	switch {
	case err != nil:
		return err
	case !ok:
		return fmt.Errorf("logical volume of %s: %w", obj.ID, backend.ErrMissing)
	case size < obj.Bytes:
		return fmt.Errorf("logical volume of %s has %d of %d bytes: %w", obj.ID, size, obj.Bytes, backend.ErrDamaged)
	}
	return nil
}

// space marks lvm's words for a full group.
func space(err error) error {
	if err != nil && (strings.Contains(err.Error(), "insufficient free space") || strings.Contains(err.Error(), "Insufficient free space")) {
		return fmt.Errorf("%w: %w", backend.ErrNoSpace, err)
	}
	return err
}
