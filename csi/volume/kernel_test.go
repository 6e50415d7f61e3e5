// SPDX-License-Identifier: Apache-2.0

//go:build kernels

package volume

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/mount"
	"github.com/nodeagent/nodeagent/csi/mount/mounttest"
)

// These are of what a development kernel may lack; `make test-kernels` runs them in an
// emulated machine that has it: device mapper, project quotas, cgroup v2's io controller.

// tool runs a program of the machine.
func tool(t *testing.T, argv ...string) {
	t.Helper()
	if out, err := exec.CommandContext(context.WithoutCancel(t.Context()), argv[0], argv[1:]...).CombinedOutput(); err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
}

const kernelBytes = 64 << 20

// TestKernelLVM follows a volume through its life in a real volume group, thick and thin:
// hard size, growth, raw use, deletion, and for a thin one snapshot and restore.
func TestKernelLVM(t *testing.T) {
	for _, thin := range []string{"", "pool"} {
		t.Run("thin="+thin, func(t *testing.T) {
			mounttest.Root(t)
			disk := mounttest.Disks(t, 1, 600<<20)[0]
			tool(t, "lvm", "vgcreate", "-y", "nodeagent-test", disk)
			t.Cleanup(func() { tool(t, "lvm", "vgremove", "-f", "-y", "nodeagent-test") })
			if thin != "" {
				tool(t, "lvm", "lvcreate", "-y", "--type", "thin-pool", "-L", "400m", "-n", thin, "nodeagent-test")
			}
			w := newWorldOn(t, PoolConfig{
				Name: "p", Path: mounttest.FileSystem(t, "", 0), Backend: BackendLVM, VolumeGroup: "nodeagent-test", ThinPool: thin, Overcommit: 2,
			})
			params := map[string]string{}
			if thin != "" {
				params["provisioning"] = "thin"
			}
			lvmLife(t, w, params, thin != "")
		})
	}
}

func lvmLife(t *testing.T, w *world, params map[string]string, snapshots bool) {
	t.Helper()
	ctx := context.Background()
	v := must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: "a", Required: kernelBytes, Capabilities: []Capability{mounted}, Parameters: params}))
	target := w.use(v.ID, "a")
	if n, err := fill(t, target); !errors.Is(err, unix.ENOSPC) || n > kernelBytes {
		t.Errorf("%d bytes went into %d: %v", n, kernelBytes, err)
	}
	entries, err := os.ReadDir(target)
	w.ok(err)
	for _, e := range entries {
		if e.Name() != "lost+found" {
			w.ok(os.Remove(filepath.Join(target, e.Name())))
		}
	}
	w.write(target, "kept")
	if snapshots {
		// An emulated lvm takes longer than writers may be held; it suspends the device itself.
		s := must[Volume](t)(w.m.Snapshot(ctx, SnapshotRequest{Name: "s", Volume: v.ID, Parameters: map[string]string{"freeze": "never"}}))
		w.write(target, "changed")
		r := must[Volume](t)(w.m.Create(ctx, CreateRequest{
			Name: "r", Required: 2 * kernelBytes, Capabilities: []Capability{mounted}, Parameters: params, Source: &SourceRef{Kind: KindSnapshot, ID: s.ID},
		}))
		w.read(w.use(r.ID, "r"), "kept")
		w.ok(w.m.DeleteSnapshot(ctx, s.ID))
		w.release(r.ID, "r")
		w.ok(w.m.Delete(ctx, r.ID))
		w.write(target, "kept")
	}
	w.release(v.ID, "a")
	must[Expanded](t)(w.m.Expand(ctx, v.ID, 2*kernelBytes, 0))
	w.restart()
	w.read(w.use(v.ID, "a"), "kept")
	if s := must[Stats](t)(w.m.Stats(ctx, v.ID, target)); s.Total < kernelBytes*5/4 {
		t.Errorf("grown to %+v", s)
	}
	w.release(v.ID, "a")
	w.ok(w.m.Delete(ctx, v.ID))
	w.clean()
}

// TestKernelQuota holds directories to their size by project quota, on ext4 and XFS.
func TestKernelQuota(t *testing.T) {
	for fs, option := range map[string]string{"ext4": "prjquota", "xfs": "pquota"} {
		t.Run(fs, func(t *testing.T) {
			mounttest.Root(t)
			disk, pool := mounttest.Disks(t, 1, 400<<20)[0], filepath.Join(t.TempDir(), "pool")
			if fs == "ext4" {
				tool(t, "mke2fs", "-q", "-t", "ext4", "-O", "quota,project", disk)
			} else {
				tool(t, "mkfs.xfs", "-q", "-f", disk)
			}
			if err := os.Mkdir(pool, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := mount.Mount(mount.FS{Type: fs, Source: disk, Options: []string{option}}, pool); err != nil {
				t.Fatal(err)
			}
			t.Cleanup(func() {
				if err := mount.Unmount(pool); err != nil {
					t.Error(err)
				}
			})
			quotaLife(t, newWorldOn(t, PoolConfig{Name: "p", Path: pool, Backend: BackendDirectory}))
		})
	}
}

func quotaLife(t *testing.T, w *world) {
	t.Helper()
	ctx := context.Background()
	plain := Capability{Mode: SingleWriter}
	for _, name := range []string{"a", "b"} {
		v := must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: name, Required: 32 << 20, Capabilities: []Capability{plain}}))
		stage, target := w.path("stage-"+name), w.target(name)
		w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: stage, Capability: plain}))
		w.ok(w.m.Publish(ctx, PublishRequest{ID: v.ID, Staging: stage, Target: target, Capability: plain}))
		n, err := fillUnprivileged(t, target)
		if !errors.Is(err, unix.EDQUOT) && !errors.Is(err, unix.ENOSPC) || n < 24<<20 || n > 32<<20 {
			t.Errorf("%s: %d bytes went into %d: %v", name, n, 32<<20, err)
		}
		if s := must[Stats](t)(w.m.Stats(ctx, v.ID, target)); s.Total != 32<<20 || s.Used < 24<<20 {
			t.Errorf("%s: %+v", name, s)
		}
		must[Expanded](t)(w.m.Expand(ctx, v.ID, 64<<20, 0))
		if err := os.WriteFile(filepath.Join(target, "more"), bytes.Repeat([]byte("x"), 16<<20), 0o600); err != nil {
			t.Errorf("%s after growth: %v", name, err)
		}
	}
	w.restart()
	for _, name := range []string{"a", "b"} {
		id := w.cfg.volumeID(name)
		w.ok(w.m.Unpublish(ctx, id, w.target(name)))
		w.ok(w.m.Unstage(ctx, id, w.path("stage-"+name)))
		w.ok(w.m.Delete(ctx, id))
	}
	w.clean()
}

// fillUnprivileged is fill without CAP_SYS_RESOURCE, which ext4 lets go beyond quotas and
// which containers do not have.
func fillUnprivileged(t *testing.T, dir string) (n int64, err error) {
	t.Helper()
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread() // never unlocked: the thread ends with the goroutine
		hdr := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var caps [2]unix.CapUserData
		if err = unix.Capget(&hdr, &caps[0]); err != nil {
			return
		}
		caps[0].Effective &^= 1 << unix.CAP_SYS_RESOURCE
		if err = unix.Capset(&hdr, &caps[0]); err == nil {
			n, err = fill(t, dir)
		}
	}()
	<-done
	return n, err
}

// TestKernelLimits sets a volume's limits through cgroup v2 and changes them in use, and
// the kernel keeps writers to them.
func TestKernelLimits(t *testing.T) {
	mounttest.Root(t)
	const root, uid = "/sys/fs/cgroup", "5c1f-limits"
	pod := filepath.Join(root, "kubepods/burstable/pod"+uid)
	if err := os.MkdirAll(pod, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, dir := range []string{root, filepath.Join(root, "kubepods"), filepath.Join(root, "kubepods/burstable")} {
		if err := os.WriteFile(filepath.Join(dir, "cgroup.subtree_control"), []byte("+io"), 0); err != nil {
			t.Fatal(err)
		}
	}
	t.Cleanup(func() {
		for dir := pod; dir != root; dir = filepath.Dir(dir) {
			if err := os.Remove(dir); err != nil {
				t.Error(err)
			}
		}
	})
	w := newWorld(t, "", 0)
	w.stop()
	w.cfg.CgroupRoot = root
	w.start()
	ctx := context.Background()
	v := must[Volume](t)(w.m.Create(ctx, CreateRequest{
		Name: "a", Required: kernelBytes, Capabilities: []Capability{mounted}, Mutable: map[string]string{"writeIOPS": "50", "readBandwidth": "1Mi"},
	}))
	stage, target := w.path("stage-a"), w.target("a")
	w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: stage, Capability: mounted}))
	w.ok(w.m.Publish(ctx, PublishRequest{ID: v.ID, Staging: stage, Target: target, Capability: mounted, Pod: PodRef{UID: uid}}))
	has := func(want string) {
		t.Helper()
		got, err := os.ReadFile(filepath.Join(pod, "io.max"))
		if err != nil || !strings.Contains(string(got), want) {
			t.Errorf("io.max is %q, want %q: %v", got, want, err)
		}
	}
	has("rbps=1048576 wbps=max riops=max wiops=50")
	w.ok(w.m.Modify(ctx, v.ID, map[string]string{"writeIOPS": "70"}))
	has("wiops=70")
	w.ok(w.m.Modify(ctx, v.ID, map[string]string{"writeIOPS": "0", "readBandwidth": "0"}))
	if got, err := os.ReadFile(filepath.Join(pod, "io.max")); err != nil || len(bytes.TrimSpace(got)) != 0 {
		t.Errorf("limits are left: %q, %v", got, err)
	}
	if c, err := w.m.Health(ctx, v.ID); err != nil || len(c) > 0 {
		t.Errorf("health %v, %v", c, err)
	}
	w.release(v.ID, "a")
	w.ok(w.m.Delete(ctx, v.ID))
	w.clean()
}
