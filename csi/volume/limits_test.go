// SPDX-License-Identifier: Apache-2.0

package volume

import (
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/nodeagent/nodeagent/csi/mount"
)

// fakeCgroups makes a hierarchy of plain files in which writes can be read back.
func fakeCgroups(t *testing.T, v2 bool, dirs ...string) string {
	t.Helper()
	root := t.TempDir()
	put := func(path, text string) {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	base := root
	if v2 {
		put(filepath.Join(root, "cgroup.controllers"), "cpu io memory\n")
	} else {
		base = filepath.Join(root, "blkio")
		put(filepath.Join(base, "cgroup.procs"), "")
	}
	for _, d := range dirs {
		for _, f := range []string{"io.max", "blkio.throttle.read_bps_device", "blkio.throttle.write_bps_device", "blkio.throttle.read_iops_device", "blkio.throttle.write_iops_device"} {
			put(filepath.Join(base, d, f), "")
		}
	}
	return root
}

func TestLimitPod(t *testing.T) {
	const uid = "8f3c-11"
	l := Limits{ReadIOPS: 500, WriteBandwidth: 1 << 20}
	for _, tc := range []struct {
		name string
		v2   bool
		dir  string
	}{
		{"v2, cgroupfs", true, "kubepods/burstable/pod8f3c-11"},
		{"v2, systemd", true, "kubepods.slice/kubepods-besteffort.slice/kubepods-besteffort-pod8f3c_11.slice"},
		{"v2, nested", true, "node/kubepods/pod8f3c-11"},
		{"v1", false, "kubepods/pod8f3c-11"},
		{"v1, deep below", false, "cluster/node/pods/kubepods/burstable/pod8f3c-11"},
	} {
		t.Run(tc.name, func(t *testing.T) {
			root := fakeCgroups(t, tc.v2, tc.dir, tc.dir+"/container", "kubepods/podother")
			if err := limitPod(root, uid, "7:3", l); err != nil {
				t.Fatal(err)
			}
			read := func(path ...string) string {
				b, err := os.ReadFile(filepath.Join(append([]string{root}, path...)...))
				if err != nil {
					t.Fatal(err)
				}
				return string(b)
			}
			if tc.v2 {
				if got := read(tc.dir, "io.max"); got != "7:3 rbps=max wbps=1048576 riops=500 wiops=max" {
					t.Errorf("io.max: %q", got)
				}
				if got := read("kubepods/podother/io.max"); got != "" {
					t.Errorf("another pod was limited: %q", got)
				}
				return
			}
			for _, d := range []string{tc.dir, tc.dir + "/container"} {
				if got := read("blkio", d, "blkio.throttle.read_iops_device"); got != "7:3 500" {
					t.Errorf("%s: %q", d, got)
				}
			}
		})
	}
	if err := limitPod(fakeCgroups(t, true), uid, "7:3", l); err != nil {
		t.Errorf("a pod that has no cgroup yet: %v", err)
	}
	if err := limitPod(fakeCgroups(t, true), "../x", "7:3", l); err == nil {
		t.Error("a path as a pod uid was accepted")
	}
	if err := limitPod(t.TempDir(), uid, "7:3", l); err == nil {
		t.Error("no controller, no error")
	}
}

// The kernel's own throttle, through publish and modify.
func TestRootLimitsReachTheKernel(t *testing.T) {
	const blkio = "/sys/fs/cgroup/blkio"
	if _, err := os.Stat(blkio); err != nil {
		if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
			t.Fatal("neither blkio nor cgroup v2 is mounted")
		}
		t.Skip("cgroup v2: TestLimitPod covers the format, the host's pods are not touched")
	}
	ctx := context.Background()
	w := newWorld(t, "", 0)
	uid := fmt.Sprintf("na-test-%d", os.Getpid())
	pod := filepath.Join(blkio, "nodeagent-csi-test", "kubepods", "pod"+uid)
	if err := os.MkdirAll(pod, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		for _, d := range []string{pod, filepath.Dir(pod), filepath.Dir(filepath.Dir(pod))} {
			_ = unix.Rmdir(d)
		}
	})
	w.stop()
	w.cfg.CgroupRoot = "/sys/fs/cgroup"
	w.start()
	v := must[Volume](t)(w.m.Create(ctx, CreateRequest{Name: "a", Required: testBytes, Capabilities: []Capability{mounted}, Mutable: map[string]string{"writeIOPS": "100"}}))
	w.ok(w.m.Stage(ctx, StageRequest{ID: v.ID, Path: w.path("stage-a"), Capability: mounted}))
	w.ok(w.m.Publish(ctx, PublishRequest{ID: v.ID, Staging: w.path("stage-a"), Target: w.target("a"), Capability: mounted, Pod: PodRef{UID: uid}}))
	at := must[mount.Point](t)(mount.At(w.target("a")))
	line := func(n int) string { return fmt.Sprintf("%d:%d %d", unix.Major(at.Dev), unix.Minor(at.Dev), n) }
	has := func(want string) bool {
		b := must[[]byte](t)(os.ReadFile(filepath.Join(pod, "blkio.throttle.write_iops_device")))
		return strings.Contains(string(b), want)
	}
	if !has(line(100)) {
		t.Error("the limit is not set")
	}
	w.want(w.m.Modify(ctx, v.ID, map[string]string{"writeIOPS": "7", "colour": "red"}), ErrInvalid)
	w.want(w.m.Modify(ctx, "vol-none", map[string]string{"writeIOPS": "7"}), ErrNotFound)
	w.ok(w.m.Modify(ctx, v.ID, map[string]string{"writeIOPS": "250", "readBandwidth": "10Mi"}))
	if !has(line(250)) {
		t.Error("the limit was not changed")
	}
	w.restart()
	if l := must[Volume](t)(w.m.Get(v.ID)).Params.Limits; l.WriteIOPS != 250 || l.ReadBandwidth != 10<<20 {
		t.Errorf("after a restart: %+v", l)
	}
	w.ok(w.m.Modify(ctx, v.ID, map[string]string{"writeIOPS": "0", "readBandwidth": "0"}))
	if has(line(250)) {
		t.Error("the limit was not lifted")
	}
	w.release(v.ID, "a")
	w.ok(w.m.Delete(ctx, v.ID))
	w.clean()
}
