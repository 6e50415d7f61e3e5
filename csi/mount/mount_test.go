// SPDX-License-Identifier: Apache-2.0

package mount_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/mount"
	"github.com/nodeagent/nodeagent/csi/mount/mounttest"
)

func TestParseOptions(t *testing.T) {
	for _, tc := range []struct {
		name    string
		in      []string
		attr    uint64
		ro      bool
		params  []string
		refused bool
	}{
		{name: "none"},
		{name: "attributes and parameters", in: []string{"noatime,nosuid", "data=ordered"}, attr: unix.MOUNT_ATTR_NOATIME | unix.MOUNT_ATTR_NOSUID, params: []string{"data=ordered"}},
		{name: "read-only", in: []string{"ro"}, ro: true},
		{name: "defaults mean nothing", in: []string{"defaults", "rw", "relatime"}},
		{name: "quoted comma", in: []string{`context="system_u:object_r:container_file_t:s0:c1,c2"`}, params: []string{"context=system_u:object_r:container_file_t:s0:c1,c2"}},
		{name: "bind is ours", in: []string{"bind"}, refused: true},
		{name: "remount is ours", in: []string{"noatime,remount"}, refused: true},
		{name: "another source", in: []string{"source=/dev/vda"}, refused: true},
		{name: "control character", in: []string{"a=\nb"}, refused: true},
	} {
		t.Run(tc.name, func(t *testing.T) {
			o, err := mount.ParseOptions(tc.in)
			if got := errors.Is(err, mount.ErrOption); got != tc.refused {
				t.Fatalf("refused = %v, want %v (%v)", got, tc.refused, err)
			}
			if err == nil && (o.Attr != tc.attr || o.ReadOnly != tc.ro || !slices.Equal(o.Params, tc.params)) {
				t.Errorf("got %+v", o)
			}
		})
	}
}

func TestDetectBytes(t *testing.T) {
	blank := make([]byte, 128<<10)
	if got := mount.DetectBytes(blank); got != mount.FormatBlank {
		t.Errorf("zeroes: %q", got)
	}
	data := slices.Clone(blank)
	data[70000] = 1
	if got := mount.DetectBytes(data); got != mount.FormatUnknown {
		t.Errorf("one byte: %q", got)
	}
	for at, magic := range map[int]string{0: "XFSB", 65600: "_BHRfS_M", 512: "EFI PART", 32769: "CD001"} {
		b := slices.Clone(blank)
		copy(b[at:], magic)
		if got := mount.DetectBytes(b); got == mount.FormatBlank || got == mount.FormatUnknown {
			t.Errorf("%s at %d: %q", magic, at, got)
		}
	}
	if got := mount.DetectBytes(nil); got != mount.FormatBlank {
		t.Errorf("empty: %q", got)
	}
}

func makeImage(t *testing.T, dir string, size int64) string {
	t.Helper()
	path := filepath.Join(dir, "img")
	f, err := os.Create(path)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = f.Close() }()
	if err := mount.Reserve(f, size); err != nil {
		t.Fatal(err)
	}
	return path
}

//nolint:cyclop // one life of a file system, step by step
func TestRootLoopMountGrow(t *testing.T) {
	mounttest.Root(t)
	for _, fs := range []string{"ext4", "xfs", "btrfs"} {
		t.Run(fs, func(t *testing.T) {
			ctx := context.Background()
			dir := t.TempDir()
			img := makeImage(t, dir, 320<<20)
			l, err := mount.AttachLoop(ctx, img, mount.LoopOptions{BlockSize: 4096, DirectIO: true, AutoClear: true})
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = l.Close() }()
			if format, err := mount.Detect(l.Path); err != nil || format != mount.FormatBlank {
				t.Fatalf("fresh image: %q, %v", format, err)
			}
			if err := mount.MakeFS(ctx, l.Path, mount.FormatOptions{Type: fs}); err != nil {
				t.Fatal(err)
			}
			if format, err := mount.Detect(l.Path); err != nil || format != fs {
				t.Fatalf("after mkfs: %q, %v", format, err)
			}
			if err := mount.CheckFS(ctx, l.Path, fs); err != nil {
				t.Fatal(err)
			}
			target := filepath.Join(dir, "mnt")
			if err := os.Mkdir(target, 0o755); err != nil {
				t.Fatal(err)
			}
			if err := mount.Mount(mount.FS{Type: fs, Source: l.Path}, target); err != nil {
				t.Fatal(err)
			}
			defer func() {
				if err := mount.Unmount(target); err != nil {
					t.Error(err)
				}
			}()
			p, err := mount.At(target)
			if err != nil || !p.Mounted || p.ReadOnly || (fs != "btrfs" && p.Dev != l.Rdev) {
				t.Fatalf("at %s: %+v, %v", target, p, err)
			}
			before, err := mount.StatSpace(target)
			if err != nil {
				t.Fatal(err)
			}
			f, err := os.OpenFile(img, os.O_RDWR, 0)
			if err != nil {
				t.Fatal(err)
			}
			defer func() { _ = f.Close() }()
			if err := mount.Reserve(f, 480<<20); err != nil {
				t.Fatal(err)
			}
			if err := mount.GrowLoop(l); err != nil {
				t.Fatal(err)
			}
			err = mount.GrowFS(target, fs, 480<<20)
			if errors.Is(err, mount.ErrOffline) && fs == "ext4" {
				return // without CAP_SYS_RESOURCE; the offline way has its own test
			}
			if err != nil {
				t.Fatal(err)
			}
			after, err := mount.StatSpace(target)
			if err != nil || after.Total < before.Total+(120<<20) {
				t.Fatalf("grown from %d to %d: %v", before.Total, after.Total, err)
			}
		})
	}
}

func TestRootBindReadOnlyAndStacking(t *testing.T) {
	mounttest.Root(t)
	fs := mounttest.FileSystem(t, "tmpfs", 1<<20)
	target := filepath.Join(t.TempDir(), "t")
	if err := os.Mkdir(target, 0o755); err != nil {
		t.Fatal(err)
	}
	for range 3 {
		if err := mount.Bind(fs, target, mount.BindOptions{ReadOnly: true}); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(target, "x"), nil, 0o600); !errors.Is(err, unix.EROFS) {
		t.Errorf("write through a read-only bind: %v", err)
	}
	if err := os.WriteFile(filepath.Join(fs, "x"), nil, 0o600); err != nil {
		t.Errorf("write at the source: %v", err)
	}
	if err := mount.Clear(target); err != nil {
		t.Fatal(err)
	}
	if p, err := mount.At(target); err != nil || p.Exists {
		t.Errorf("after clear: %+v, %v", p, err)
	}
	if err := mount.Clear(target); err != nil {
		t.Errorf("clear of the absent: %v", err)
	}
}

func TestRootMountRefusals(t *testing.T) {
	mounttest.Root(t)
	dir := t.TempDir()
	link := filepath.Join(dir, "link")
	if err := os.Symlink(dir, link); err != nil {
		t.Fatal(err)
	}
	if err := mount.Mount(mount.FS{Type: "tmpfs", Source: "x"}, link); !errors.Is(err, unix.ELOOP) {
		t.Errorf("symbolic link: %v", err)
	}
	if err := mount.Mount(mount.FS{Type: "tmpfs", Source: "x"}, "relative"); !errors.Is(err, unix.EINVAL) {
		t.Errorf("relative path: %v", err)
	}
	if err := mount.Mount(mount.FS{Type: "tmpfs", Source: "x", Options: []string{"colour=red"}}, dir); !errors.Is(err, mount.ErrOption) {
		t.Errorf("unknown option: %v", err)
	}
	if p, err := mount.At(dir); err != nil || p.Mounted {
		t.Errorf("a refused mount left something: %+v, %v", p, err)
	}
}

// The kernel raises a reflinked image's block size to 4096 and would turn direct
// I/O off for a 512-byte one; born with 4096 it stays as it is.
func TestRootReflinkKeepsDirectIO(t *testing.T) {
	mounttest.Root(t)
	ctx := context.Background()
	pool := mounttest.FileSystem(t, "xfs", 512<<20)
	img := makeImage(t, pool, 32<<20)
	src, err := os.Open(img)
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = src.Close() }()
	dst, err := os.Create(filepath.Join(pool, "clone"))
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = dst.Close() }()
	if err := mount.Clone(dst, src); err != nil {
		t.Fatal(err)
	}
	l, err := mount.AttachLoop(ctx, img, mount.LoopOptions{BlockSize: 4096, DirectIO: true})
	if err != nil {
		t.Fatal(err)
	}
	defer func() { _ = l.Close() }()
	if !l.DirectIO {
		t.Error("direct I/O is off after a reflink")
	}
	_ = l.Close()
	if err := mount.DetachLoop(ctx, l); err != nil {
		t.Error(err)
	}
	if left, err := mount.LoopsOf(l.Backing, ""); err != nil || len(left) != 0 {
		t.Errorf("after detach: %d loops, %v", len(left), err)
	}
}

func TestRootDetachBusy(t *testing.T) {
	mounttest.Root(t)
	ctx := context.Background()
	img := makeImage(t, t.TempDir(), 4<<20)
	l, err := mount.AttachLoop(ctx, img, mount.LoopOptions{BlockSize: 4096, DirectIO: true})
	if err != nil {
		t.Fatal(err)
	}
	if err := mount.DetachLoop(ctx, l); !errors.Is(err, mount.ErrBusy) {
		t.Errorf("detach of an open device: %v", err)
	}
	if err := l.Close(); err != nil {
		t.Fatal(err)
	}
	if err := mount.DetachLoop(ctx, l); err != nil {
		t.Errorf("detach after the last close: %v", err)
	}
}

func TestRootFreezeThaw(t *testing.T) {
	mounttest.Root(t)
	fs := mounttest.FileSystem(t, "ext4", 64<<20)
	for range 2 {
		if err := mount.Freeze(fs); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		if err := mount.Thaw(fs); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(fs, "x"), []byte("x"), 0o600); err != nil {
		t.Fatal(err)
	}
}
